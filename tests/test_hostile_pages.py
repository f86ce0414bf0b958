"""Names and values of others stay text in every HTML page: no element, attribute or script of theirs."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

from genrank.model.report import write_report
from genrank.pipelines.messages import LeafSummary
from genrank.pipelines.presentation.sample_statistics import write_statistics
from genrank.pipelines.sample_statistics import DayStatistics, Summary
from genrank.schemas import load_schema
from genrank.schemas.present.docs import feature_page

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = "\"'><script>planted()</script><img src=x onerror=planted()>{{ 7 * 7 }}</title></svg>"
"""Closes attributes, elements and titles, and would be an expression of the template."""


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script" and self.cdata_elem == "script":
            self.scripts.append(data)
        else:
            self.words += data


def require_text(text: str) -> None:
    page = Page(text)
    assert "planted()" not in "".join(page.scripts)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert not any(name == "src" and value == "x" for name, value in page.attributes)
    assert not any((value or "").strip().lower().startswith("javascript:") for _, value in page.attributes)
    assert "<script>planted()" in page.words, "what is given is shown as it is"
    assert "{{ 7 * 7 }}" in page.words


def test_the_check_finds_what_is_planted() -> None:
    page = Page(f"<p>{HOSTILE}</p>")
    assert page.scripts == ["planted()"] and ("onerror", "planted()") in page.attributes


def test_the_feature_catalogue() -> None:
    schema = load_schema(str(ROOT / "examples" / "minimal" / "schema.py"))
    data = json.loads(schema.model_dump_json())

    def plant(value: object) -> object:
        if isinstance(value, dict):
            words = ("description", "owner")
            return {k: HOSTILE if k in words else plant(v) for k, v in value.items()}
        return [plant(each) for each in value] if isinstance(value, list) else value

    planted = type(schema).model_validate(plant(data))
    source = planted.sources[0].name
    planted = planted.replace(
        sources=tuple(
            s.replace(rename=dict.fromkeys(list(s.columns)[:1], f"javascript:{HOSTILE}")) if s.name == source else s
            for s in planted.sources
        )
    )
    text = feature_page(planted)
    assert text.count("planted()") > 3
    require_text(text)


def test_the_statistics(tmp_path: Path) -> None:
    summary = Summary(HOSTILE, "number")
    summary.add(
        LeafSummary(
            0,
            HOSTILE,
            "number",
            count=2,
            missing=0,
            total=3.0,
            low=1.0,
            high=2.0,
            values=[1.0, 2.0],
            weights=[1.0, 1.0],
        )
    )
    days = [DayStatistics(HOSTILE, {HOSTILE: summary}, {HOSTILE: 0.5}, (HOSTILE,))]
    write_statistics(days, tmp_path / "stats.html")
    require_text((tmp_path / "stats.html").read_text())


def test_the_report(tmp_path: Path) -> None:
    """A run of others: its folder's name, and what its files say of device and days."""
    run = tmp_path / HOSTILE.replace("/", "\N{FRACTION SLASH}")
    shutil.copytree(ROOT / "tests" / "fixtures" / "release_0_1" / "runs" / "din", run)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "device": HOSTILE, "model": HOSTILE}))
    write_report([run], tmp_path / "report.html")
    require_text((tmp_path / "report.html").read_text())

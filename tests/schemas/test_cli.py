"""`genrank schema ...` and the pages it writes."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from schemas_shop import SHOP, candidates
from strategies import schemas
from typer.testing import CliRunner, Result

from genrank.command.schema import app
from genrank.schemas import Numeric, Schema, UserError, load_schema, to_json
from genrank.schemas.derive.sample_schema import arrow_schema
from genrank.schemas.present.docs import feature_page
from genrank.schemas.present.lineage_picture import lineage_picture


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "shop.json"
    path.write_text(to_json(SHOP))
    return path


def run(*arguments: object, status: int = 0) -> str:
    result: Result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result.output


def test_check_of_the_declaration_alone(shop: Path) -> None:
    lines = run("check", "--schema", shop).splitlines()
    assert lines[0].startswith("advice: label click: oracle 'p_click'")
    assert lines[-1].startswith("the declaration of shop holds (")


def test_check_of_sources_ends_with_status_1_on_errors(shop: Path, tmp_path: Path) -> None:
    report = run("check", "--schema", shop, "--data", tmp_path, "--columns", status=1)
    assert "error: exposures: there is no folder" in report
    assert re.search(r"^7 errors, 0 warnings, \d+ pieces of advice$", report, re.M)


def test_diff_groups_changes_by_cost_and_can_refuse(shop: Path, tmp_path: Path) -> None:
    more = candidates(Numeric(name="list_price", column="items.price")).replace(utc_offset="+00:00")
    (tmp_path / "more.json").write_text(to_json(more))
    report = run("diff", shop, tmp_path / "more.json").splitlines()
    assert report == [
        "rebuild samples: `genrank build` the days you train and evaluate on, then train --from-checkpoint",
        "  candidates.list_price: added",
        "      candidates.list_price of every day; its inputs start fresh, every other weight carries over",
    ]
    run("diff", shop, tmp_path / "more.json", "--at-most", "retrain", status=1)
    assert run("diff", shop, shop, "--at-most", "nothing").strip() == "no difference of meaning"


def test_diff_reads_the_schema_of_a_sample_file(shop: Path, tmp_path: Path) -> None:
    pq.write_table(arrow_schema(SHOP).empty_table(), tmp_path / "part-0.parquet")
    assert run("diff", tmp_path / "part-0.parquet", shop).strip() == "no difference of meaning"


def test_convert_keeps_the_schema(shop: Path, tmp_path: Path) -> None:
    for name in ("a.yaml", "a.json"):
        run("convert", "--schema", shop, "--out", tmp_path / name)
        same = load_schema(str(tmp_path / name)) == SHOP
        assert same
    with pytest.raises(UserError, match=r"end it in \.yaml or \.json"):
        run("convert", "--schema", shop, "--out", tmp_path / "a.toml")


def test_json_schema_goes_to_standard_output_or_a_file(tmp_path: Path) -> None:
    printed = json.loads(run("json-schema"))
    run("json-schema", "--out", tmp_path / "schema.json")
    assert json.loads((tmp_path / "schema.json").read_text()) == printed
    assert printed["title"] == "genrank schema"


# ---------------------------------------------------------------------- the catalogue


class Page(HTMLParser):
    """Ids, links and whatever would be fetched from elsewhere."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: set[str] = set()
        self.nodes: set[str] = set()
        self.edges: set[tuple[str, str]] = set()
        self.fetched: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            assert given["id"] not in self.ids, f"two elements are called {given['id']}"
            self.ids.add(str(given["id"]))
        if str(given.get("href", "")).startswith("#"):
            self.targets.add(str(given["href"])[1:])
        elif given.get("href") or given.get("src"):
            self.fetched.append(tag)
        if given.get("data-id"):
            self.nodes.add(str(given["data-id"]))
        if given.get("data-from"):
            self.edges.add((str(given["data-from"]), str(given["data-to"])))


def test_the_catalogue_holds_every_feature_and_nothing_from_elsewhere(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.html"
    assert run("docs", "--schema", shop, "--out", out).strip() == f"wrote {out}"
    html = out.read_text()
    page = Page(html)
    assert page.fetched == [] and "http" not in html.replace("http-equiv", "")
    assert page.targets <= page.ids
    names = {f"{group}.{feature.name}" for group, features in SHOP.groups() for feature in features}
    assert names <= page.ids & page.nodes
    with pytest.raises(UserError, match="there is no folder"):
        run("docs", "--schema", shop, "--out", tmp_path / "nowhere" / "a.html")


def reached(edges: set[tuple[str, str]], start: str) -> set[str]:
    seen, queue = {start}, [start]
    while queue:
        at = queue.pop()
        for one, other in edges:
            if one == at and other not in seen:
                seen.add(other)
                queue.append(other)
    return seen


def test_lineage_runs_from_source_column_to_token() -> None:
    edges = set(lineage_picture(SHOP).edges)
    down = reached(edges, "column items.category")
    assert {"candidates.category", "candidates.city_category", "candidates.clicks_7d", "token candidate"} <= down
    assert "user.city" not in down and "token user.city" not in down
    assert {"user.city", "table user.city", "token user.city", "history.city", "token history event"} <= reached(
        edges, "column users.city"
    )
    assert {"label buy", "head buy", "candidates.last_item", "table items"} <= reached(
        edges, "column purchases.item_id"
    )
    assert "token history dwell" in reached(edges, "column clicks.dwell")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(schemas())
def test_any_schema_has_a_page_without_overlaps(schema: Schema) -> None:
    page = Page(feature_page(schema))
    assert page.targets <= page.ids and page.fetched == []
    picture = lineage_picture(schema)
    places = [
        (node.column, node.y // 22) for node in picture.nodes.values() if node.column in ("feature", "leaf", "source")
    ]
    assert len(places) == len(set(places))
    for one, other in picture.edges:
        assert {one, other} <= picture.nodes.keys()
    features = [f for _, own in schema.groups() for f in own]
    assert all(feature.value_in_words() for feature in features)


def test_values_are_reported_in_words() -> None:
    words = {feature.name: feature.value_in_words() for feature in SHOP.candidates.features}
    assert words["item_ctr"] == "rate of clicks over exposures by item_id in 30d, towards 0.05 with strength 20"
    assert words["last_item"] == "last of item_id in purchases by user_id in 90d"
    assert words["city_category"] == "user.city × category"

"""Why a published day would be built again, cause by cause; and that labels that nothing can change any more are current."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrank.examples.minimal.schema import schema
from genrank.pipelines.days import moment_text
from genrank.pipelines.staleness import _same_labels, why_stale
from genrank.schemas.base import DAY_MS
from genrank.schemas.manifest import Counts, DataFile, SampleManifest

DAY = 20_000
DT = "2024-10-04"
END = schema.local_days.start(DAY + 1)
SETTLED = END + 10 * 60_000 + 3 * DAY_MS + DAY_MS
"""The day's end, the label's window, the logs' lateness, and the day on which the last late row lands."""


def plan_of(out: Path, inputs: dict[str, dict[str, str]], as_of: int = END) -> Any:
    return SimpleNamespace(out=out, schema=schema, as_of=as_of, inputs_of=lambda day: inputs)


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, SampleManifest]:
    folder = tmp_path / "samples" / f"dt={DT}"
    folder.mkdir(parents=True)
    (folder / "part.parquet").write_bytes(b"")
    manifest = SampleManifest(
        schema_name="minimal",
        fingerprint=schema.fingerprint,
        samples_fingerprint=schema.samples_fingerprint,
        build_id="b",
        dt=DT,
        engine="local",
        as_of=moment_text(END),
        files=(DataFile(path="part.parquet", rows=0, bytes=0, sha256=""),),
        samples=0,
        candidates=0,
        inputs=(),
        counts=Counts(rows_in={}, out={}, duplicates={}, quarantined={}),
        partials={"clicks": {DT: "k1"}},
        created=moment_text(END),
    )
    (folder / "manifest.json").write_text(manifest.text())
    return tmp_path, manifest


CURRENT = {"clicks": {DT: "k1"}}


def test_a_day_built_of_what_is_there_is_current(published: tuple[Path, SampleManifest]) -> None:
    assert why_stale(plan_of(published[0], CURRENT), DAY) is None


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ({"clicks": {DT: "k2"}}, f"changed since: clicks {DT}"),
        ({"clicks": {}}, f"changed since: clicks {DT}"),
        ({"clicks": {DT: "k1", "2024-10-05": "k"}}, "changed since: clicks 2024-10-05"),
        (
            {"clicks": {f"2024-10-1{n}": "k" for n in range(5)}},
            "changed since: clicks 2024-10-04, clicks 2024-10-10, clicks 2024-10-11, clicks 2024-10-12 ...",
        ),
    ],
)
def test_changed_inputs_are_named(
    published: tuple[Path, SampleManifest], inputs: dict[str, dict[str, str]], why: str
) -> None:
    assert why_stale(plan_of(published[0], inputs), DAY) == why


def test_what_is_wrong_with_the_day_itself_comes_first(published: tuple[Path, SampleManifest]) -> None:
    out, manifest = published
    folder = out / "samples" / f"dt={DT}"
    (folder / "part.parquet").unlink()
    assert why_stale(plan_of(out, {}), DAY) == "part.parquet is missing"
    (folder / "manifest.json").write_text(manifest.model_copy(update={"samples_fingerprint": "other"}).text())
    assert "schema's samples changed" in str(why_stale(plan_of(out, {}), DAY))
    (folder / "manifest.json").write_text("{")
    assert why_stale(plan_of(out, {}), DAY) == "its manifest is missing or damaged"


@given(built=st.integers(0, 8 * 24), now=st.integers(0, 8 * 24))
def test_labels_are_current_at_the_same_moment_or_once_settled(built: int, now: int) -> None:
    moments = [END + hours * 3_600_000 for hours in (built, now)]
    plan = plan_of(Path(), {}, moments[1])
    assert _same_labels(plan, DAY, moments[0]) == (built == now or all(moment > SETTLED for moment in moments))


def test_labels_of_another_moment_are_named(published: tuple[Path, SampleManifest]) -> None:
    why = why_stale(plan_of(published[0], CURRENT, END + 3_600_000), DAY)
    assert why == f"labels are as of {moment_text(END)}, now {moment_text(END + 3_600_000)}"

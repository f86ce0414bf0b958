"""Every kind of wrong day is stopped by the gate's own line, though the builder had counted and hashed it as if it were right."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrank.pipelines.build import BuildConfig, build
from genrank.pipelines.gate import data_docs, reading
from genrank.pipelines.gate.data_docs import judge, write_page, write_pages
from genrank.pipelines.gate.expectations import Between, Suite
from genrank.pipelines.gate.judge import DayFindings, Expected, Gate, QuarantineRate
from genrank.pipelines.gate.reading import RawDay, RawRows
from genrank.pipelines.messages import LeafSummary, SampleReport
from genrank.schemas import CrossFeature, UserError
from genrank.schemas.derive.sample_schema import arrow_schema
from genrank.schemas.files import file_sha256
from tests.pipelines.plantings import PLANTED, Row
from tests.pipelines.worlds import full_schema, write_world

pytestmark = pytest.mark.usefixtures("recomputing_gate")

SCHEMA = full_schema()
READ = RawDay.read


@dataclass(frozen=True)
class Staged:
    """A day as it came before the gate."""

    gate: Gate
    day: int
    dt: str
    file: SampleReport
    rows: list[Row]
    expected: Expected
    joins: Sequence[LeafSummary]

    def judge(self, file: SampleReport | None = None, expected: Expected | None = None) -> DayFindings:
        files = [file or self.file]
        return self.gate.judge([self.day], files, {self.day: expected or self.expected}, self.joins)[self.day]

    def rewritten(self, table: pa.Table, path: Path) -> SampleReport:
        """A file as if the builder had written it so: counted and hashed as it is."""
        pq.write_table(table, path)
        ts = [row["candidates"]["ts"] for row in table.select(["candidates"]).to_pylist()]
        counts = {"rows": table.num_rows, "candidates": sum(map(len, ts)), "bytes": path.stat().st_size}
        return replace(self.file, path=str(path), sha256=file_sha256(path), **counts)


@pytest.fixture(scope="module", autouse=True)
def read_once() -> Iterator[None]:
    """The raw log is the same for every planting, so rows of the same users are read once."""
    known: dict[tuple[object, ...], RawRows] = {}
    read = RawDay.read

    def kept(self: RawDay, below: int, staged: pa.Array, wanted: int) -> RawRows:
        key = (self.day, below, wanted, *sorted(staged.to_pylist()))
        if key not in known:
            known[key] = read(self, below, staged, wanted)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RawDay, "read", kept)
        yield


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory, recomputing_gate: None) -> Staged:
    root = tmp_path_factory.mktemp("staged")
    days = write_world(root / "data", seed=51, users=6, per_day=90)
    seen: list[Staged] = []
    judge = Gate.judge

    def kept(
        self: Gate,
        days: Sequence[int],
        files: Sequence[SampleReport],
        expected: Mapping[int, Expected],
        joins: Sequence[LeafSummary],
    ) -> Any:
        own = next(file for file in files if file.day == days[2])
        copy = root / "staged.parquet"
        copy.write_bytes(Path(own.path).read_bytes())
        rows = pq.read_table(copy).to_pylist()
        of_day = [join for join in joins if join.day == days[2]]
        dt = rows[0]["sample_id"].split(":")[1]
        seen.append(Staged(self, days[2], dt, replace(own, path=str(copy)), rows, expected[days[2]], of_day))
        return judge(self, days, files, expected, joins)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gate, "judge", kept)
        build(BuildConfig(SCHEMA, root / "data", root / "out", days[0], days[-1], buckets=1))
    return seen[0]


def test_a_sound_day_passes(staged: Staged, tmp_path: Path) -> None:
    staged.judge()
    staged.judge(staged.rewritten(pa.Table.from_pylist(staged.rows, arrow_schema(SCHEMA)), tmp_path / "same.parquet"))


@pytest.mark.parametrize(("plant", "line"), PLANTED, ids=[plant.__name__ for plant, _ in PLANTED])
def test_what_is_planted_is_stopped(
    staged: Staged, tmp_path: Path, plant: Callable[[list[Row]], None], line: str
) -> None:
    rows = pa.Table.from_pylist(staged.rows, arrow_schema(SCHEMA)).to_pylist()
    plant(rows)
    table = pa.Table.from_pylist(rows, arrow_schema(SCHEMA))
    with pytest.raises(
        UserError, match=rf"^quality gate, {staged.dt}: .*({line}).*; nothing was published\. "
    ) as caught:
        staged.judge(staged.rewritten(table, tmp_path / "planted.parquet"))
    assert "\n" not in str(caught.value)


KEYED = {f"candidates.{f.name}" for f in SCHEMA.candidates.features if isinstance(f, CrossFeature)}
BY_USER = {
    f"candidates.{f.name}" for f in SCHEMA.candidates.features if isinstance(f, CrossFeature) and "user_id" in f.keys
}


def test_every_kind_of_value_is_compared(staged: Staged) -> None:
    found = staged.judge()
    assert found.users == len(staged.rows)
    leaves = {name for name, leaf in found.recomputed.items() if leaf.compared and not leaf.differ}
    assert leaves >= KEYED
    assert leaves >= {f"labels.{label.name}{part}" for label in SCHEMA.labels for part in ("", "_weight")}
    assert leaves >= {
        "mask.candidate_sees",
        "history.ts",
        "history.item_id",
        "realtime.available",
        "candidates.price",
        "user.city",
    }


@pytest.mark.parametrize(
    ("bound", "value", "compared"),
    [
        ("PER_EXPOSURE", -1000, {"labels.click", "candidates.price"}),  # no day before this one is read
        ("MOST_ROWS", 1, {"labels.click", "history.ts", *BY_USER}),  # nor other users' rows of the same keys
        ("COMPARED", 0, {"candidates.ts", "history.ts"}),
        ("BUSY", 0, set[str]()),
    ],
)
def test_what_is_not_read_is_not_compared(
    staged: Staged, monkeypatch: pytest.MonkeyPatch, bound: str, value: int, compared: set[str]
) -> None:
    monkeypatch.setattr(RawDay, "read", READ)
    monkeypatch.setattr(reading, bound, value)
    if bound == "PER_EXPOSURE":
        monkeypatch.setattr(reading, "AT_LEAST", 0)
    found = staged.judge()
    leaves = {name for name, leaf in found.recomputed.items() if leaf.compared}
    assert leaves >= compared
    left_out = {
        "PER_EXPOSURE": {"candidates.user_spent"},
        "MOST_ROWS": KEYED - BY_USER,
        "COMPARED": {"candidates.price", "labels.click"},
        "BUSY": {"candidates.ts", "history.ts"},
    }
    assert not leaves & left_out[bound]


def test_rows_quarantined_for_an_infinite_number_are_no_difference(tmp_path: Path, recomputing_gate: None) -> None:
    """A price over a list price of 0: the row is gone from the samples, and from what they are compared with."""
    days = write_world(tmp_path / "data", seed=9, users=4, per_day=80, days=2)
    for file in (tmp_path / "data" / "items").rglob("*.parquet"):
        items = pq.read_table(file)
        prices = [0.0 if at % 2 else price for at, price in enumerate(items.column("list_price").to_pylist())]
        at = items.column_names.index("list_price")
        pq.write_table(items.set_column(at, "list_price", pa.array(prices, pa.float32())), file)
    result = build(BuildConfig(SCHEMA, tmp_path / "data", tmp_path / "out", days[0], days[1]))
    reasons = result.manifests[days[0]].counts.quarantined["exposures"]
    assert any("does not fit float32" in reason and rows for reason, rows in reasons.items())


def test_a_missing_or_damaged_file_is_one_line(staged: Staged, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"quality gate: staged file .*none\.parquet can't be read"):
        staged.judge(replace(staged.file, path=str(tmp_path / "none.parquet")))
    content = bytearray(Path(staged.file.path).read_bytes())
    (tmp_path / "cut.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"quality gate: staged file .*cut\.parquet can't be read"):
        staged.judge(replace(staged.file, path=str(tmp_path / "cut.parquet")))


def test_another_schema_and_nulls_are_one_line(staged: Staged, tmp_path: Path) -> None:
    table = pq.read_table(staged.file.path)
    null = table.set_column(0, "sample_id", pa.array([None, *table.column("sample_id").to_pylist()[1:]]))
    plain = table.cast(pa.schema([pa.field(field.name, field.type) for field in table.schema]))
    renamed = table.rename_columns([{"history": "past"}.get(name, name) for name in table.column_names])
    for wrong, line in ((null, "sample_id"), (plain, "contract"), (renamed, "column history is missing")):
        path = tmp_path / f"{line.replace(' ', '-')}.parquet"
        pq.write_table(wrong, path)
        with pytest.raises(UserError, match=rf"^quality gate, {staged.dt}: .*{line}.*; nothing was published"):
            staged.judge(replace(staged.file, path=str(path), sha256=file_sha256(path)))


def test_files_hold_what_was_written_to_them(staged: Staged) -> None:
    for wrong, line in (
        (replace(staged.file, rows=staged.file.rows + 1), r"holds \d+ samples, \d+ were written to it"),
        (replace(staged.file, sha256="0" * 64), "has changed since it was written"),
        (replace(staged.file, bucket=1), "there is no bucket|in bucket 1"),
        (replace(staged.file, candidates=0), r"holds \d+ candidates, 0 were written"),
    ):
        with pytest.raises(UserError, match=line):
            staged.judge(wrong)
    with pytest.raises(UserError, match="exposures went in"):
        staged.judge(expected=staged.expected._replace(exposures=staged.expected.exposures + 1))


NUMBERS = st.none() | st.sampled_from([0.0, -0.0, 1.0, 2.0, 0.1, -1.0]) | st.floats(width=64)
FRAMES = st.integers(1, 30).flatmap(
    lambda rows: st.lists(
        st.tuples(st.lists(NUMBERS, min_size=rows, max_size=rows), st.sampled_from([(0, 0), (-1, 1), (0, 1e300)])),
        min_size=8,
        max_size=16,
    )
)


@given(frame=FRAMES)
@settings(max_examples=3)  # of many columns each
def test_the_verdict_is_great_expectations_own(frame: list[tuple[list[float | None], tuple[float, float]]]) -> None:
    """Of every expectation the same verdict, counts and examples."""
    suite = Suite("a day", tuple(Between(f"c{i}", low, high, f"note {i}") for i, (_, (low, high)) in enumerate(frame)))
    rows = [{f"c{i}": values[at] for i, (values, _) in enumerate(frame)} for at in range(len(frame[0][0]))]
    verdict = suite.judge(rows)
    judged = judge(json.loads(verdict.suite), json.loads(verdict.counts))
    own = json.loads(verdict.validation)["results"]
    assert [one["success"] for one in judged.results] == [one["success"] for one in own]
    assert [one["result"] for one in judged.results] == [one["result"] for one in own]
    failed = [one["expectation_config"]["kwargs"]["column"] for one in own if not one["success"]]
    assert verdict.failed == failed
    assert all(f"c{i}" in judged.page for i in range(len(frame)))


def test_a_days_page_is_written_when_asked_for(staged: Staged, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="judged none of any day"):
        write_pages(tmp_path)
    verdict = Suite("a day", (Between("labels", 0, 0, "labels are 0 or 1"),)).judge([{"labels": 0.0}, {"labels": 2.0}])
    folder = tmp_path / "gate" / "dt=2026-01-01" / "refused"
    folder.mkdir(parents=True)
    for name in ("suite", "validation", "counts"):
        (folder / f"{name}.json").write_text(getattr(verdict, name))
    with pytest.raises(UserError, match="judged none of 2026-01-02"):
        write_pages(tmp_path, ["2026-01-02"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_docs, "write_page", write_page)
        assert write_pages(tmp_path) == [folder / "index.html"]
    page = (folder / "index.html").read_text()
    assert "labels" in page
    assert len(page) < 1_000_000
    (folder / "counts.json").write_text('{"labels": [0.0, 0.0]}')
    with pytest.raises(UserError, match="judges the counts otherwise than the gate did"):
        write_page(folder)
    (folder / "counts.json").write_text('{"labels": [0.0')
    with pytest.raises(UserError, match=r"counts\.json or validation\.json can't be read .*--force"):
        write_page(folder)


def test_quarantined_rows_beyond_the_limit_stop_the_day(staged: Staged) -> None:
    rate = QuarantineRate("clicks", staged.dt, 0.2, 0.05, {"late": 2, "item is null": 30})
    with pytest.raises(
        UserError,
        match=r"'clicks': 20.0% of .*5.0% \(30 item is null, 2 late\).*The rows and reasons lie in quarantine/",
    ):
        staged.judge(expected=staged.expected._replace(rates=(rate,)))

"""Every kind of wrong day is stopped by the gate's own line, though the builder had counted and hashed it as if it were right."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrank.pipelines.build import BuildConfig, build
from genrank.pipelines.gate import reading
from genrank.pipelines.gate.expectations import load, validate
from genrank.pipelines.gate.judge import DayFindings, Expected, Gate, QuarantineRate
from genrank.pipelines.gate.reading import RawDay, RawRows
from genrank.pipelines.messages import LeafSummary, SampleReport
from genrank.schemas import CrossFeature, UserError
from genrank.schemas.derive.sample_schema import arrow_schema
from genrank.schemas.files import file_sha256
from genrank.schemas.ids import MISSING_ID
from tests.pipelines.worlds import DAY, full_schema, write_world

pytestmark = pytest.mark.usefixtures("recomputing_gate")

Row = dict[str, Any]
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


def longest(rows: list[Row], group: str) -> Row:
    return max(rows, key=lambda row: len(row[group]["ts"]))


def all_values(rows: list[Row], group: str, leaf: str, change: Callable[[Any], Any]) -> None:
    for row in rows:
        row[group][leaf] = [change(value) for value in row[group][leaf]]


# ---------------------------------------------------------------------- labels


def labels_shifted_by_one_candidate(rows: list[Row]) -> None:
    for row in rows:
        for leaf in row["labels"]:
            row["labels"][leaf] = row["labels"][leaf][1:] + row["labels"][leaf][:1]


def label_outside_its_window(rows: list[Row]) -> None:
    """As from a window without end: whatever was clicked before or after counts."""
    all_values(rows, "labels", "click", lambda _: 1)


def infinite_value_label(rows: list[Row]) -> None:
    longest(rows, "candidates")["labels"]["spent"][0] = math.inf


def nan_label_with_weight(rows: list[Row]) -> None:
    row = longest(rows, "candidates")
    row["labels"]["dwell"][0], row["labels"]["dwell_weight"][0] = math.nan, 1.0


def label_of_two(rows: list[Row]) -> None:
    longest(rows, "candidates")["labels"]["click"][0] = 2


def negative_weight(rows: list[Row]) -> None:
    longest(rows, "candidates")["labels"]["click_weight"][0] = -1.0


def infinite_weight(rows: list[Row]) -> None:
    longest(rows, "candidates")["labels"]["click_weight"][0] = math.inf


def weight_of_an_immature_label(rows: list[Row]) -> None:
    """The click's and the order's windows reach beyond what has landed."""
    for row in rows:
        for leaf in row["labels"]:
            if leaf.endswith("_weight"):
                row["labels"][leaf] = [1.0] * len(row["labels"][leaf])


def mature_label_without_weight(rows: list[Row]) -> None:
    all_values(rows, "labels", "click_weight", lambda _: 0.0)


def positive_without_its_given(rows: list[Row]) -> None:
    row = next(row for row in rows if 0 in row["labels"]["click"])
    row["labels"]["order"][row["labels"]["click"].index(0)] = 1


# ---------------------------------------------------------------------- rows


def half_of_the_samples(rows: list[Row]) -> None:
    del rows[::2]


def half_of_the_candidates(rows: list[Row]) -> None:
    for row in rows:
        keep = range(0, len(row["candidates"]["ts"]), 2)
        for group, leaves in (("candidates", None), ("labels", None), ("mask", ["candidate_sees"])):
            for leaf in leaves or list(row[group]):
                row[group][leaf] = [row[group][leaf][at] for at in keep]


def ten_times_the_rows_under_new_ids(rows: list[Row]) -> None:
    rows += [{**row, "sample_id": f"{row['sample_id']}{copy}"} for copy in range(9) for row in list(rows)[:6]]


def samples_twice(rows: list[Row]) -> None:
    rows.append(rows[0])


def no_sample_at_all(rows: list[Row]) -> None:
    rows.clear()


def a_sample_without_candidates(rows: list[Row]) -> None:
    row = min(rows, key=lambda row: len(row["candidates"]["ts"]))
    for group in ("candidates", "labels"):
        row[group] = {leaf: [] for leaf in row[group]}
    row["mask"]["candidate_sees"] = []


def users_swapped(rows: list[Row]) -> None:
    """The whole identity of two users: only the raw log knows."""
    first, second = sorted(rows, key=lambda row: -len(row["candidates"]["ts"]))[:2]
    for name in ("user_id", "sample_id"):
        first[name], second[name] = second[name], first[name]


def user_of_another_sample_id(rows: list[Row]) -> None:
    rows[0]["user_id"] += 1


def exposure_outside_the_day(rows: list[Row]) -> None:
    row = longest(rows, "candidates")
    row["candidates"]["ts"][-1] = row["window_end"]


def exposures_backwards(rows: list[Row]) -> None:
    row = max(rows, key=lambda row: row["candidates"]["ts"][-1] - row["candidates"]["ts"][0])
    row["candidates"]["ts"].reverse()


def another_days_window(rows: list[Row]) -> None:
    for row in rows:
        row["window_start"] -= DAY
        row["window_end"] -= DAY


def item_missing(rows: list[Row]) -> None:
    longest(rows, "candidates")["candidates"]["item"][0] = MISSING_ID


def item_of_another(rows: list[Row]) -> None:
    all_values(rows, "candidates", "item", lambda item: item + 1)


def columns_swapped(rows: list[Row]) -> None:
    for row in rows:
        candidates = row["candidates"]
        candidates["price"], candidates["discount"] = candidates["discount"], candidates["price"]


def ragged(rows: list[Row]) -> None:
    longest(rows, "candidates")["candidates"]["price"].pop()


def list_of_another_length(rows: list[Row]) -> None:
    """A feature of at most two tags, as a vector of fixed size would be."""
    longest(rows, "candidates")["candidates"]["tags"][0] = [1, 2, 3, 4]


# ---------------------------------------------------------------------- cross features


def cross_feature_off_by_one(rows: list[Row]) -> None:
    all_values(rows, "candidates", "user_shown", lambda count: count + 1)


def keyed_feature_off_by_one(rows: list[Row]) -> None:
    all_values(rows, "candidates", "item_users", lambda count: count + 1)


def cross_feature_negative(rows: list[Row]) -> None:
    longest(rows, "candidates")["candidates"]["all_today"][0] = -1.0


def cross_feature_not_a_number(rows: list[Row]) -> None:
    longest(rows, "candidates")["candidates"]["user_shown"][0] = math.nan


def cross_feature_infinite(rows: list[Row]) -> None:
    longest(rows, "candidates")["candidates"]["item_dwell"][0] = math.inf


def cross_feature_of_the_next_candidate(rows: list[Row]) -> None:
    for row in rows:
        values = row["candidates"]["user_spent"]
        row["candidates"]["user_spent"] = [value + 7 for value in values]


def rate_knows_the_click(rows: list[Row]) -> None:
    for row in rows:
        pairs = zip(row["candidates"]["item_ctr"], row["labels"]["click"], strict=True)
        row["candidates"]["item_ctr"] = [rate + 0.2 * click for rate, click in pairs]


# ---------------------------------------------------------------------- sequences


def history_of_the_future(rows: list[Row]) -> None:
    row = longest(rows, "history")
    row["history"]["ts"][-1] = row["window_start"]


def history_in_another_order(rows: list[Row]) -> None:
    for row in rows:
        for leaf in row["history"]:
            row["history"][leaf] = row["history"][leaf][::-1]


def history_too_long(rows: list[Row]) -> None:
    row = longest(rows, "history")
    row["history"] = {leaf: values * 7 for leaf, values in row["history"].items()}


def history_without_its_newest_event(rows: list[Row]) -> None:
    for row in rows:
        row["history"] = {leaf: values[:-1] for leaf, values in row["history"].items()}


def history_features_of_another_event(rows: list[Row]) -> None:
    row = longest(rows, "history")
    row["history"]["item_id"] = [item + 1 for item in row["history"]["item_id"]]


def realtime_before_it_happened(rows: list[Row]) -> None:
    row = longest(rows, "realtime")
    row["realtime"]["ts"][0] = row["realtime"]["available"][0] + 1


def realtime_backwards(rows: list[Row]) -> None:
    row = max(rows, key=lambda row: len(set(row["realtime"]["available"])))
    row["realtime"]["available"].reverse()


def realtime_event_after_the_day(rows: list[Row]) -> None:
    row = longest(rows, "realtime")
    row["realtime"]["available"][-1] = row["window_end"]


def candidate_sees_the_future(rows: list[Row]) -> None:
    longest(rows, "candidates")["mask"]["candidate_sees"][0] += 1


def event_sees_itself(rows: list[Row]) -> None:
    longest(rows, "realtime")["mask"]["realtime_sees"][-1] += 1


def realtime_without_its_first_event(rows: list[Row]) -> None:
    """Lists and counts agree with each other, and an event is gone."""
    for row in rows:
        if row["realtime"]["ts"]:
            row["realtime"] = {leaf: values[1:] for leaf, values in row["realtime"].items()}
            seen = row["realtime"]["available"]
            row["mask"]["candidate_sees"] = [sum(at < ts for at in seen) for ts in row["candidates"]["ts"]]
            row["mask"]["realtime_sees"] = [sum(at < own for at in seen) for own in seen]


PLANTED: list[tuple[Callable[[list[Row]], None], str]] = [
    (labels_shifted_by_one_candidate, r"labels\.\w+\[\d+\] of sample .* the raw log gives"),
    (label_outside_its_window, r"labels\.click\[\d+\] of sample .* is 1, the raw log gives 0"),
    (infinite_value_label, r"labels\.spent\[0\] of sample .* is inf, not a number"),
    (nan_label_with_weight, r"labels\.dwell\[0\] of sample .* is nan, not a number"),
    (label_of_two, r"labels\.click\[0\] of sample .* is 2, not 0 or 1"),
    (negative_weight, r"labels\.click_weight\[0\] of sample .* is -1\.0, not 0 or more"),
    (infinite_weight, r"labels\.click_weight\[0\] of sample .* is inf, not a number"),
    (weight_of_an_immature_label, r"_weight\[\d+\] of sample .* is 1\.0, not 0: the label is not mature"),
    (mature_label_without_weight, r"labels\.click_weight\[\d+\] of sample .* is 0\.0, not 1: the label is mature"),
    (positive_without_its_given, r"labels\.order\[\d+\] of sample .* is 1, not 0 where click is not positive"),
    (half_of_the_samples, r"\d+ exposures went in and \d+ candidates came out"),
    (half_of_the_candidates, r"\d+ exposures went in and \d+ candidates came out"),
    (ten_times_the_rows_under_new_ids, r"\d+ exposures went in and \d+ candidates came out"),
    (samples_twice, r"sample_id .* is there more than once"),
    (no_sample_at_all, r"\d+ exposures went in and 0 candidates came out"),
    (a_sample_without_candidates, r"every sample has a candidate"),
    (users_swapped, r"of sample .* the raw log gives|candidates; the raw log has"),
    (user_of_another_sample_id, r"sample_id\[0\] of sample .* is of another user or day"),
    (exposure_outside_the_day, r"candidates\.ts\[\d+\] of sample .* not inside the day"),
    (exposures_backwards, r"candidates\.ts\[\d+\] of sample .* not after the one before"),
    (another_days_window, r"window_start\[0\] of sample"),
    (item_missing, r"candidates\.item\[0\] of sample .*, not an id of type string"),
    (item_of_another, r"candidates\.item\[0\] of sample .* the raw log gives"),
    (columns_swapped, r"candidates\.price\[\d+\] of sample .* the raw log gives"),
    (ragged, r"is of another length than its group"),
    (list_of_another_length, r"candidates\.tags\[\d+\] of sample .* is 4, not at most 2 long"),
    (cross_feature_off_by_one, r"candidates\.user_shown\[\d+\] of sample .* the raw log gives"),
    (keyed_feature_off_by_one, r"candidates\.item_users\[\d+\] of sample .* the raw log gives"),
    (cross_feature_negative, r"candidates\.all_today\[0\] of sample .* is -1\.0, not a count"),
    (cross_feature_not_a_number, r"candidates\.user_shown\[0\] of sample .* is nan, not a count"),
    (cross_feature_infinite, r"candidates\.item_dwell\[0\] of sample .* is inf, not a number"),
    (cross_feature_of_the_next_candidate, r"candidates\.user_spent\[\d+\] of sample .* the raw log gives"),
    (rate_knows_the_click, r"candidates\.item_ctr\[\d+\] of sample .* the raw log gives"),
    (history_of_the_future, r"history\.ts\[\d+\] of sample .* not available before the window"),
    (history_in_another_order, r"history\.ts\[\d+\] of sample"),
    (history_too_long, r"history\[0\] of sample .* not at most 6"),
    (history_without_its_newest_event, r"history\S* of sample .* the raw log gives"),
    (history_features_of_another_event, r"history\.item_id\[\d+\] of sample .* the raw log gives"),
    (realtime_before_it_happened, r"realtime\.available\[0\] of sample"),
    (realtime_backwards, r"realtime\.available\[\d+\] of sample"),
    (realtime_event_after_the_day, r"realtime\.available\[\d+\] of sample .* not inside the window"),
    (candidate_sees_the_future, r"mask\.candidate_sees\[0\] of sample"),
    (event_sees_itself, r"mask\.realtime_sees\[\d+\] of sample"),
    (realtime_without_its_first_event, r"realtime\S* of sample .* the raw log gives"),
]


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


def test_great_expectations_judges_each_column() -> None:
    rows = [{"labels": 0.0, "drift": None}, {"labels": 2.0, "drift": 0.0}]
    verdict = validate(load(), "a day", rows, {"labels": "labels are 0 or 1", "drift": "steady"})
    assert verdict.failed == ["labels"]
    assert not json.loads(verdict.validation)["success"]
    assert [e["notes"] for e in json.loads(verdict.suite)["expectations"]] == ["labels are 0 or 1", "steady"]
    assert "labels" in verdict.page


def test_quarantined_rows_beyond_the_limit_stop_the_day(staged: Staged) -> None:
    rate = QuarantineRate("clicks", staged.dt, 0.2, 0.05, {"late": 2, "item is null": 30})
    with pytest.raises(
        UserError,
        match=r"'clicks': 20.0% of .*5.0% \(30 item is null, 2 late\).*The rows and reasons lie in quarantine/",
    ):
        staged.judge(expected=staged.expected._replace(rates=(rate,)))

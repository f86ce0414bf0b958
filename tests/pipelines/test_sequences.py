"""What is cut, counted and assigned on the way to samples, against the obvious way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from genrank.pipelines.compaction.plan import CompactionPlan
from genrank.pipelines.merge_scan import Int
from genrank.pipelines.reach import landed_days, reach_of
from genrank.pipelines.sequences import newest
from genrank.pipelines.sources import home_days
from genrank.schemas.base import DAY_MS
from genrank.schemas.local_days import LocalDays
from tests.pipelines.worlds import full_schema

small = st.integers(0, 6)


def ints(values: list[int]) -> Int:
    return np.array(values, np.int64)


@given(st.lists(st.tuples(st.integers(0, 2), small, small, small), max_size=25), st.integers(1, 4), small)
def test_histories_keep_the_newest_of_what_had_settled(
    rows: list[tuple[int, int, int, int]], most: int, settled: int
) -> None:
    names = ("u", "available", "ts", "id")
    table = pa.table({name: pa.array([row[i] for row in rows], pa.int64()) for i, name in enumerate(names)})
    kept = sorted(zip(*(table_column(newest(table, most, settled), name) for name in names), strict=True))
    expected: list[tuple[int, ...]] = [row for row in rows if row[1] >= settled]
    for user in {row[0] for row in rows}:
        old = sorted(row for row in rows if row[0] == user and row[1] < settled)
        expected += old[-most:]
    assert kept == sorted(expected)


def table_column(table: pa.Table, name: str) -> list[int]:
    values: list[int] = table.column(name).to_pylist()
    return values


@given(
    st.lists(st.none() | st.integers(-3 * DAY_MS, 8 * DAY_MS), max_size=20),
    st.integers(0, 5),
    st.integers(-14, 14),
    st.integers(0, 3),
)
def test_a_row_belongs_to_its_own_day_unless_it_is_too_late_or_early(
    moments: list[int | None], partition: int, hours: int, late_days: int
) -> None:
    offset, lateness = hours * 3_600_000, late_days * DAY_MS
    sign = "-" if hours < 0 else "+"
    zone = LocalDays(f"{sign}{abs(hours):02d}:00")
    home, _ = home_days(pa.array(moments, pa.int64()), partition, zone, lateness)
    for ms, found in zip(moments, home.tolist(), strict=True):
        own = None if ms is None else (ms + offset) // DAY_MS
        usable = own is not None and partition - late_days <= own <= partition
        assert found == (own if usable else partition)


def test_what_spark_copies_covers_what_a_build_reads() -> None:
    schema = full_schema()
    first = last = 20_000
    for source in schema.sources:
        begin, end = landed_days(schema, source, first, last)
        back, ahead = reach_of(schema)[source.name]
        assert begin <= pa.scalar(first - back, pa.date32()).as_py().isoformat()
        if source.name in ("exposures", "clicks", "orders"):
            assert end >= pa.scalar(last + ahead, pa.date32()).as_py().isoformat()


def test_an_empty_past_has_nothing_to_compact(tmp_path: Path) -> None:
    schema = full_schema()
    nothing = {source.name: () for source in schema.sources}
    plan = CompactionPlan(schema, tmp_path, 20_000, 20_000, nothing, {name: {} for name in nothing}, 1, None, make=True)
    assert not plan.missing
    assert all(not read.days and not read.compacted for read in (*plan.tiles.values(), *plan.sequences.values()))

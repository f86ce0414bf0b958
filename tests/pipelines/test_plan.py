"""How a build is divided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrank.pipelines import plan, sources
from genrank.pipelines.days import day_number
from genrank.pipelines.engine import TASKS, together
from genrank.pipelines.plan import BUCKET_ROWS, FEWEST_BUCKETS, FEWEST_ROWS, MANY_BUCKETS, bucket_count
from genrank.pipelines.spark_session import without_set
from genrank.schemas import EventLog
from genrank.schemas.base import DAY_MS
from genrank.schemas.local_days import LocalDays
from tests.pipelines.worlds import full_schema, write_world


@given(rows=st.integers(0, 10**11), asked=st.integers(1, 1 << 20))
def test_buckets_follow_the_day_and_not_what_is_asked(rows: int, asked: int) -> None:
    found = bucket_count(rows, asked)
    assert found == asked or found < asked
    assert found <= FEWEST_BUCKETS or rows >= found * FEWEST_ROWS
    # Halved no further than that.
    assert found in (asked, FEWEST_BUCKETS) or rows < 2 * found * FEWEST_ROWS
    usual = bucket_count(rows)
    assert usual & (usual - 1) == 0 and bucket_count(2 * rows) in (usual, 2 * usual)
    if rows <= MANY_BUCKETS * BUCKET_ROWS:
        assert rows <= usual * BUCKET_ROWS and (usual == FEWEST_BUCKETS or rows > usual * BUCKET_ROWS // 2)


def test_the_largest_days_have_larger_buckets() -> None:
    found = [bucket_count(rows) for rows in (10**5, 10**6, 5 * 10**6, 10**8, 10**9, 24 * 10**9)]
    assert found == [4, 8, 32, 512, 2048, 8192]


def test_histories_that_outweigh_the_exposures_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    days = write_world(tmp_path / "data", seed=64, users=4, days=4, per_day=40)
    number = day_number(days[-1])
    monkeypatch.setattr(plan, "BUCKET_ROWS", 1)

    def buckets() -> int:
        return plan.BuildPlan(full_schema(), tmp_path / "data", tmp_path / "out", number, number, None).buckets

    exposures = pq.read_table(tmp_path / "data" / "exposures" / f"dt={days[-1]}").num_rows
    monkeypatch.setattr(plan, "EVENTS_AN_EXPOSURE", 10**9)
    assert exposures / 2 < buckets() <= 2 * exposures  # A late row more or less.
    few = buckets()
    monkeypatch.setattr(plan, "EVENTS_AN_EXPOSURE", 1)
    assert buckets() > few


def test_late_rows_are_counted_without_reading_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups that lie in the day are counted by their footers; of the others the time is read, in batches."""
    log = EventLog(name="clicks", path="clicks/dt={dt}", columns={"user_id": "int64", "ts": "int64"}, lateness="2d")
    day = 20_000
    hour = 3_600_000
    groups = [
        [day * DAY_MS, (day + 1) * DAY_MS - 1],
        [day * DAY_MS + hour, (day - 1) * DAY_MS + hour, None, (day - 2) * DAY_MS, (day - 3) * DAY_MS],
        [None, None],
        [(day - 1) * DAY_MS],
    ]
    folder = tmp_path / "clicks" / "dt=2024-10-04"
    folder.mkdir(parents=True)
    types = pa.schema({"user_id": pa.int64(), "ts": pa.int64()})
    with pq.ParquetWriter(folder / "part.parquet", types) as writer:
        for times in groups:
            writer.write_table(pa.table({"user_id": list(range(len(times))), "ts": times}, types))
    read: list[int] = []
    plain = sources.home_days

    def watched(ms: pa.Array, *others: Any) -> Any:
        read.append(len(ms))
        return plain(ms, *others)

    monkeypatch.setattr(sources, "home_days", watched)
    partition = sources.read_partition(log, day, folder, {})
    # A day too late and no time at all count for the partition's day.
    assert sources.census(log, partition, LocalDays("+00:00")) == {day: 7, day - 1: 2, day - 2: 1}
    assert read == [5, 2, 1]


@given(rows=st.lists(st.integers(0, 50), max_size=60), most=st.integers(1, 100))
def test_small_units_share_a_task(rows: list[int], most: int) -> None:
    tasks = together(rows, int, most)
    assert [unit for task in tasks for unit in task] == rows
    limit = min(most, -(-sum(rows) // TASKS))
    for at, task in enumerate(tasks):
        assert len(task) == 1 or sum(task) <= limit
        assert at == 0 or sum(tasks[at - 1]) + task[0] > limit


def test_what_is_submitted_comes_before_our_settings() -> None:
    ours = {"spark.sql.adaptive.enabled": "false", "spark.driver.memory": "2g", "spark.shuffle.compress": "false"}
    assert without_set(ours, {"spark.sql.adaptive.enabled": "true"}) == {"spark.shuffle.compress": "false"}

"""Rows on their way into partials: hashed, checked, deduplicated, sorted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from genrank.pipelines.engine import gather
from genrank.pipelines.local_engine import LocalEngine
from genrank.pipelines.merge_scan import Int, mix, slot_of
from genrank.pipelines.messages import NormalizedRows, PartialReport, QuarantinedRows
from genrank.pipelines.partial_writer import PartialWriter, by_day_user_and_time, first_of_each, once_in_order
from genrank.pipelines.partials import Bucket, Layout, Partial, PartialRef, PartialStore, load
from genrank.pipelines.quarantine import Reasons
from genrank.pipelines.raw_rows import content_hash
from genrank.pipelines.row_order import order_by

small = st.integers(-3, 3)


def ints(values: list[int]) -> Int:
    return np.array(values, np.int64)


@given(st.lists(st.tuples(small, small, small), max_size=30))
def test_of_equal_rows_the_first_to_arrive_is_kept(rows: list[tuple[int, int, int]]) -> None:
    same, arrived, id_ = (ints([row[i] for row in rows]) for i in range(3))
    kept = [row for row, keep in zip(rows, first_of_each(same, arrived, id_.take).tolist(), strict=True) if keep]
    assert sorted(kept) == sorted({key: min(row for row in rows if row[0] == key) for key, *_ in rows}.values())


@given(st.lists(st.tuples(small, small, small, small), max_size=30))
def test_rows_are_sorted_by_day_user_time_and_id(rows: list[tuple[int, int, int, int]]) -> None:
    day, user, ts, id_ = (ints([row[i] for row in rows]) for i in range(4))
    packed = by_day_user_and_time(day, user, ts)
    order = order_by(packed, id_.take).tolist()
    assert [rows[at] for at in order] == sorted(rows)
    assert sorted(order) == list(range(len(rows)))
    once, others = once_in_order(packed, id_.take)
    assert [rows[at] for at in once.tolist()] == sorted(set(rows))
    assert sorted([*once.tolist(), *others.tolist()]) == list(range(len(rows)))
    assert once.tolist() == sorted({rows.index(row) for row in rows}, key=lambda at: rows[at])


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), max_size=4))
def test_a_row_has_the_reason_of_the_first_check_it_fails(checks: list[list[bool]]) -> None:
    reasons = Reasons.first(4, ((str(i), np.array(failed)) for i, failed in enumerate(checks)))
    for row in range(4):
        first = next((i for i, failed in enumerate(checks) if failed[row]), -1)
        assert reasons.which[row] == first and reasons.good[row] == (first < 0)


VALUES = {
    "text": (pa.string(), st.none() | st.text(max_size=3)),
    "number": (pa.float64(), st.none() | st.floats(width=32)),
    "whole": (pa.int64(), st.none() | small),
    "list": (pa.list_(pa.int64()), st.none() | st.lists(small, max_size=3)),
}
rows_of = st.lists(st.tuples(*(values for _, values in VALUES.values())), min_size=1, max_size=12)


@given(rows_of)
def test_rows_hash_alike_where_they_are_alike(rows: list[tuple[object, ...]]) -> None:
    """Null differs from every value but a number's NaN; 0.0 is -0.0; an empty list isn't null."""
    arrays = [pa.array([row[i] for row in rows], type_) for i, (type_, _) in enumerate(VALUES.values())]
    batch = pa.RecordBatch.from_arrays(arrays, names=list(VALUES))

    def meaning(row: tuple[object, ...]) -> str:
        number = row[1]
        assert number is None or isinstance(number, float)
        return repr((row[0], "nan" if number is None or number != number else number + 0.0, *row[2:]))

    hashes = content_hash(batch, VALUES).tolist()
    by_meaning = {meaning(row): hashed for row, hashed in zip(rows, hashes, strict=True)}
    assert [by_meaning[meaning(row)] for row in rows] == hashes
    assert len(set(hashes)) == len(by_meaning)


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    day, same = ints([3, 3, 4, 3]), ints([1, 1, 2, 3])
    columns = {"u": [5, 5, 6, 4], "ts": [9, 9, 8, 7], "arrived": [10, 9, 8, 7], "id": [1, 2, 3, 4]}
    good = NormalizedRows(day, same, pa.table(columns), {"items": np.array([True, False, True, True])})
    bad = QuarantinedRows.because(pa.table({"a": [1, 2]}), ["x", "y"], ints([3, 3]))
    tables = {NormalizedRows.tag("clicks"): good.table(), QuarantinedRows.tag("clicks"): bad.table()}
    layout = Layout(("u", "ts", "arrived", "id", "again"), {"again": "u"}, ())
    writer = PartialWriter(str(tmp_path), {"clicks": layout})
    reports = PartialReport.collected(gather(writer.write(0, tables)))
    of = {(report.day, report.reason): report for report in reports}
    assert {key: (report.rows, report.duplicates) for key, report in of.items()} == {
        (3, ""): (2, 1),
        (4, ""): (1, 0),
        (3, "x"): (1, 0),
        (3, "y"): (1, 0),
    }
    assert of[3, ""].joins == {"items": 1}
    kept = pq.read_table(of[3, ""].path)
    assert kept.column("id").to_pylist() == [4, 2]
    assert kept.column_names == ["u", "ts", "arrived", "id"]
    assert kept.column("u").to_pylist() == [4, 5]
    assert pq.read_table(of[3, "x"].path).to_pylist() == [{"a": 1, "reason": "x"}, {"a": 2, "reason": "y"}]


def test_a_committed_partial_is_found_and_read(tmp_path: Path) -> None:
    store, day = PartialStore(tmp_path), 20_000
    table = pa.table({"u": [1, 2], "ts": [5, 6]})
    pq.write_table(table, tmp_path / "staged.parquet")
    partial = Partial(
        source="clicks",
        dt="2024-10-04",
        key="abc",
        buckets=2,
        inputs=(),
        files={1: "bucket-00001.parquet"},
        rows=2,
        duplicates=1,
        quarantined={"x": 3},
    )
    assert store.find("clicks", day, "abc") is None
    store.commit(LocalEngine(), partial, day, {1: tmp_path / "staged.parquet"})
    assert store.find("clicks", day, "abc") == partial and partial.rows_in == 6
    ref = store.ref(partial, day)
    read = load([ref], Bucket(1, 2), ["u", "ts"], table.schema, pa.array([2]))
    assert read.to_pylist() == [{"u": 2, "ts": 6, "_day": day}]
    assert load([ref], Bucket(0, 2), ["u"], table.schema).num_rows == 0
    assert load([PartialRef(day, ref.folder, {}, 2)], None, ["u"], table.schema).column_names == ["u", "_day"]


@given(users=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), of=st.integers(1, 12), among=st.integers(1, 12))
def test_buckets_of_any_number_share_out_files_of_any_other(users: list[int], of: int, among: int) -> None:
    """Each row of each file is read by one bucket, and that of its user."""
    ids = np.array(users, np.int64)
    file = slot_of(mix(ids), among)
    read = np.zeros(len(ids), np.int64)
    for bucket in (Bucket(number, of) for number in range(of)):
        found = np.isin(file, bucket.files(among))
        if bucket.whole(among):
            assert bucket.holds(ids)[found].all()
        found &= bucket.holds(ids)
        assert (found == bucket.holds(ids)).all()
        read += found
    assert (read == 1).all()

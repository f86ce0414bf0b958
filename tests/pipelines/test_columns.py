"""Values as partials store them, against a loop over Python values."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrank.pipelines.column_roles import ROLE_TYPES, Column
from genrank.pipelines.columns import compute, feature_column, infinite_numbers, store
from genrank.schemas import EventLog, Hashed, Sql, UserError
from genrank.schemas.ids import MISSING_ID, hash_string

IDS = st.none() | st.integers(-(2**62), 2**62)
TEXTS = st.none() | st.text(max_size=4)


@settings(deadline=None)
@given(st.lists(st.none() | st.lists(IDS, max_size=6), max_size=8), st.integers(0, 4))
def test_lists_keep_the_first_so_many_ids_or_all(lists: list[list[int | None] | None], limit: int) -> None:
    stored = store(pa.array(lists, pa.list_(pa.int64())), Column("ids", "x", limit=limit))
    assert stored.to_pylist() == [[i for i in ids or [] if i is not None][: limit or None] for ids in lists]


@settings(deadline=None)
@given(st.lists(st.none() | st.lists(IDS | st.sampled_from([1, 2]), max_size=6), max_size=8))
def test_sets_hold_each_id_once(lists: list[list[int | None] | None]) -> None:
    stored = store(pa.array(lists, pa.list_(pa.int64())), Column("set", "x"))
    assert stored.type == ROLE_TYPES["set"]
    assert stored.to_pylist() == [sorted(set(ids or []) - {None}) for ids in lists]


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=8))
def test_strings_are_stored_by_their_hash(texts: list[str | None]) -> None:
    stored = store(pa.array(texts, pa.string()), Column("id", "x")).to_pylist()
    assert stored == [MISSING_ID if text is None else hash_string(text) for text in texts]


@settings(deadline=None)
@given(st.lists(st.none() | st.floats(-1e6, 1e6, width=32) | st.just(math.nan), max_size=8))
def test_numbers_are_float32_and_amounts_float64(numbers: list[float | None]) -> None:
    array = pa.array(numbers, pa.float64())
    want = [math.nan if x is None else x for x in numbers]
    np.testing.assert_array_equal(store(array, Column("number", "x")).to_numpy(), np.array(want, np.float32))
    np.testing.assert_array_equal(store(array, Column("amount", "x")).to_numpy(), np.array(want))


def test_a_list_from_sql_is_kept_whole() -> None:
    feature = Sql(name="tags", expression="tags", type="list<int64>", vocabulary=Hashed(size=8), dim=4)
    column = feature_column(feature)
    assert column is not None and column.sql
    assert store(pa.array([[3, 1, 2], None]), column).to_pylist() == [[3, 1, 2], []]


@pytest.mark.parametrize(
    ("role", "missing"), [("id", MISSING_ID), ("time", MISSING_ID), ("flag", False), ("ids", []), ("set", [])]
)
def test_nulls_are_stored_as_what_is_missing(role: str, missing: object) -> None:
    types = {"flag": pa.bool_(), "ids": pa.list_(pa.int64()), "set": pa.list_(pa.int64())}
    assert store(pa.array([None], types.get(role, pa.int64())), Column(role, "x")).to_pylist() == [missing]


INT32, INT64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
ORDERS = EventLog(
    name="orders",
    path="orders/dt={dt}",
    columns={"user_id": "int64", "ts": "int64", "cents": "int32", "pieces": "int32"},
)


def computed(expression: str, **columns: pl.Series) -> list[int]:
    column = Column("id", expression, sql=True)
    return compute(pl.DataFrame(columns), ORDERS, (column,))[column.name].to_pylist()


@settings(deadline=None)
@given(st.lists(st.tuples(INT32, INT32), min_size=1, max_size=8))
def test_whole_numbers_do_not_wrap_in_their_columns_type(rows: list[tuple[int, int]]) -> None:
    cents, pieces = (pl.Series(values, dtype=pl.Int32) for values in zip(*rows, strict=True))
    assert computed("cents * pieces", cents=cents, pieces=pieces) == [c * p for c, p in rows]
    assert computed("-cents - 2", cents=cents) == [-c - 2 for c, _ in rows]


@settings(deadline=None)
@given(st.lists(st.tuples(INT64, INT64), min_size=1, max_size=8))
def test_a_value_beyond_int64_stops_the_build(rows: list[tuple[int, int]]) -> None:
    user, ts = (pl.Series(values, dtype=pl.Int64) for values in zip(*rows, strict=True))
    whole = [u * t for u, t in rows]
    if all(-(2**63) <= product < 2**63 for product in whole):
        assert computed("user_id * ts", user_id=user, ts=ts) == whole
    else:
        with pytest.raises(UserError, match=r"source 'orders': SQL 'user_id \* ts' is beyond int64 in \d+ rows; CAST"):
            computed("user_id * ts", user_id=user, ts=ts)
    # What comes back into range is right, however far it was beyond.
    assert computed("MOD(user_id * ts, 1000)", user_id=user, ts=ts) == [
        abs(p) % 1000 * (1 if p >= 0 else -1) for p in whole
    ]


def test_vectors_of_another_length_or_with_holes_are_named() -> None:
    column = Column("vector", "content", limit=2)
    rows = [[1.0, 2.0], None, [], [1.0], [1.0, None], [float("inf"), 0.0], [0.0, -0.0]]
    for type_ in (pa.list_(pa.float32()), pa.large_list(pa.float64())):
        kept = store(pa.array(rows, type_), column)
        assert kept.type == ROLE_TYPES["vector"] and not kept.null_count
        assert [len(row) for row in kept.to_pylist()] == [2, 0, 0, 1, 2, 2, 2]
        found = dict(infinite_numbers(pa.table({column.name: kept}), (column,)))
        assert {reason: np.flatnonzero(rows).tolist() for reason, rows in found.items()} == {
            "content has another length than 2": [3],
            "content holds a missing or infinite number": [4, 5],
        }
    assert store(pa.nulls(2), column).to_pylist() == [[], []]

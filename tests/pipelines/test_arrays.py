"""Arrow columns as single arrays and as polars series: the same values, whatever the chunks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from genrank.pipelines.arrays import frame_of, from_polars, int64s, single_array, to_polars

CHUNKS = st.lists(st.lists(st.none() | st.integers(-(2**40), 2**40), max_size=4), max_size=4)


@settings(deadline=None)
@given(CHUNKS)
def test_chunks_are_joined_in_order(chunks: list[list[int | None]]) -> None:
    column = pa.chunked_array([pa.array(chunk, pa.int64()) for chunk in chunks], pa.int64())
    flat = [value for chunk in chunks for value in chunk]
    joined = single_array(column)
    assert isinstance(joined, pa.Array) and joined.type == pa.int64() and joined.to_pylist() == flat
    assert single_array(column, pa.string()).to_pylist() == [None if v is None else str(v) for v in flat]
    assert single_array(joined) is joined


@settings(deadline=None)
@given(st.lists(st.none() | st.text(max_size=3)), st.lists(st.none() | st.lists(st.integers(0, 9), max_size=3)))
def test_polars_and_back_is_the_same(texts: list[str | None], lists: list[list[int] | None]) -> None:
    for values, type_ in ((texts, pa.string()), (lists, pa.list_(pa.int64()))):
        series = to_polars(pa.array(values, type_), "x")
        assert series.name == "x" and series.to_list() == values
        back = from_polars(series)
        assert back.to_pylist() == values
        assert back.type in (pa.large_string(), pa.large_list(pa.int64()))


def test_integers_of_any_width_are_int64() -> None:
    table = pa.table({"a": pa.array([1, 2, 3], pa.int16()), "b": pa.array(["x", "y", "z"])})
    values = int64s(table, "a")
    assert values.dtype == np.int64 and values.tolist() == [1, 2, 3]
    assert frame_of(table).to_dicts() == table.to_pylist()

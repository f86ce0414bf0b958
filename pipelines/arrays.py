"""Arrow columns as single arrays, NumPy arrays and polars series."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from genrank.pipelines.merge_scan import Int

Rows = TypeVar("Rows", pa.Table, pa.RecordBatch, pa.Array, pa.ChunkedArray)


def single_array(column: pa.ChunkedArray | pa.Array, type_: pa.DataType | None = None) -> pa.Array:
    """A column as one array, cast to `type_` where it is given and differs."""
    array = column
    if isinstance(column, pa.ChunkedArray):
        one = column.num_chunks == 1  # `combine_chunks` would copy it
        array = (
            column.chunk(0)
            if one
            else pa.concat_arrays(column.chunks)
            if column.num_chunks
            else pa.array([], column.type)
        )
    return array if type_ is None or array.type == type_ else array.cast(type_)


def taken(rows: Rows, at: Int) -> Rows:
    """Rows `at` of a table, batch or column, which are known to be there."""
    found: Rows = pc.take(rows, pa.array(at), boundscheck=False)
    return found


def int64s(table: pa.Table | pa.RecordBatch, name: str) -> Int:
    """A column of integers without nulls, as int64."""
    values: Int = table.column(name).to_numpy().astype(np.int64, copy=False)
    return values


def from_polars(series: pl.Series) -> pa.Array:
    """A polars series as one Arrow array; strings and lists have 64-bit offsets, none is a view."""
    return single_array(series.to_arrow(compat_level=pl.CompatLevel.oldest()))


def to_polars(column: pa.ChunkedArray | pa.Array, name: str) -> pl.Series:
    """An Arrow column as a polars series of that name."""
    series = pl.from_arrow(column)
    assert isinstance(series, pl.Series)
    return series.alias(name)


def frame_of(rows: pa.Table | pa.RecordBatch) -> pl.DataFrame:
    """An Arrow table as a polars frame."""
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    return frame

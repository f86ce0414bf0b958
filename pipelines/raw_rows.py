"""Raw rows of a source as it declares them, their times and their content's hash."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genrank.pipelines.arrays import single_array
from genrank.pipelines.column_roles import Column
from genrank.pipelines.columns import declared_schema, store
from genrank.pipelines.merge_scan import Bool, Int, mix
from genrank.schemas import EventLog, Snapshot
from genrank.schemas.conversion import FIRST_MS, Misfit, convert, epoch_ms, filled


def declared(source: EventLog | Snapshot, raw: pa.Table) -> tuple[pa.RecordBatch, list[tuple[str, Bool]]]:
    """(the rows as one batch of the declared types; (reason, rows) of each column that has values which don't fit its type)."""
    columns, misfits = [], []
    for name, type_ in source.columns.items():
        converted = convert(single_array(raw.column(name)), type_)
        columns.append(converted.values)
        misfits += [(f"{name} {misfit.what}", misfit.rows) for misfit in converted.misfits]
    return pa.RecordBatch.from_arrays(columns, schema=declared_schema(source)), misfits


def content_hash(rows: pa.RecordBatch, columns: Iterable[str]) -> Int:
    """64-bit hash of each row over `columns`."""
    parts: list[Int] = []
    for name in columns:
        array = rows.column(name)
        if pa.types.is_list(array.type):
            lengths = pc.fill_null(pc.list_value_length(array), -1).to_numpy(zero_copy_only=False).astype(np.int64)
            sizes = np.maximum(lengths, 0)
            row = np.repeat(np.arange(len(sizes)), sizes)
            position = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            total = np.zeros(len(sizes), np.int64)
            np.add.at(total, row, mix(_bits(array.flatten()), position))
            parts += [lengths, total]
        else:
            parts.append(_bits(array))
    return mix(*parts)


def _bits(array: pa.Array) -> Int:
    if pa.types.is_floating(array.type):
        value = pc.fill_null(array.cast(pa.float64()), np.nan).to_numpy(zero_copy_only=False)
        bits: Int = np.where(np.isnan(value), np.nan, value + 0.0).view(np.int64)
        return bits
    ids: Int = store(array, Column("id", "")).to_numpy()
    return ids


def hashed_ids(rows: pa.RecordBatch, column: str) -> Int:
    """A declared column as ids (strings by their hash, null as MISSING_ID)."""
    ids: Int = store(rows.column(column), Column("id", column)).to_numpy()
    return ids


def is_null(rows: pa.RecordBatch, column: str) -> Bool:
    """Which rows lack a value."""
    null: Bool = rows.column(column).is_null().to_numpy(zero_copy_only=False)
    return null


def null_as_zero(ms: pa.Array) -> Int:
    """int64 with 0 for null."""
    known: Int = filled(ms, 0).to_numpy(zero_copy_only=False)
    return known


def arrival(source: EventLog, rows: pa.RecordBatch, ts: Int) -> tuple[Int, tuple[Misfit, ...]]:
    """(epoch ms at which each row arrived: never before it happened, `ts`, and just then where the source has no arrival column or
    the row no value; the rows whose arrival is no usable time)."""
    if source.arrival is None:
        return ts, ()
    arrived = epoch_ms(rows.column(source.arrival), source.time_unit)
    latest: Int = np.maximum(ts, pc.fill_null(arrived.values, FIRST_MS).to_numpy(zero_copy_only=False))
    return latest, arrived.misfits

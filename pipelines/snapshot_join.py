"""Rows of an event log joined to snapshots, each as of its own day."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from genrank.pipelines.arrays import from_polars, single_array, to_polars
from genrank.pipelines.column_roles import Column
from genrank.pipelines.columns import store
from genrank.pipelines.merge_scan import Bool, Int
from genrank.pipelines.partials import PartialRef, load
from genrank.schemas import Snapshot


def join_snapshot(
    snapshot: Snapshot,
    partials: Mapping[int, PartialRef],
    columns: Mapping[str, str],
    schema: pa.Schema,
    frame: pl.DataFrame,
    day: Int,
) -> tuple[pl.DataFrame, Bool]:
    """(the frame with a snapshot's columns, null where it lacks a row's key; which rows it knows).

    Args:
        partials: row's day -> the snapshot's partial joined to it.
        columns: column of the snapshot's partial -> its name in the frame.
        schema: of the snapshot's partials.
        frame: rows of a log, with the snapshot's key.
        day: the day each row belongs to.
    """
    keys = store(from_polars(frame[snapshot.key]), Column("id", snapshot.key)).to_numpy()
    known = np.zeros(len(keys), np.bool_)
    parts = []
    for of_day in np.unique(day):
        rows = np.flatnonzero(day == of_day)
        table, known[rows] = _lookup(partials.get(int(of_day)), tuple(columns), schema, keys[rows])
        parts.append((rows, table))
    at = np.argsort(np.concatenate([rows for rows, _ in parts]), kind="stable")
    joined = pa.concat_tables([table for _, table in parts]).take(pa.array(at))
    return frame.hstack([to_polars(joined.column(column), name) for column, name in columns.items()]), known


def _lookup(ref: PartialRef | None, columns: tuple[str, ...], schema: pa.Schema, keys: Int) -> tuple[pa.Table, Bool]:
    """The snapshot's columns at `keys`, null where it has no such key; and where it has."""
    if ref is None or not ref.files:
        empty = pa.schema([schema.field(name) for name in columns]).empty_table()
        return empty.take(pa.nulls(len(keys), pa.int64())), np.zeros(len(keys), np.bool_)
    table = _snapshot_table(ref.folder, *(tuple(sorted(of.items())) for of in (ref.files, ref.sha256)), columns)
    at = pc.index_in(pa.array(keys), value_set=single_array(table.column("u")))
    return table.select(list(columns)).take(at), at.is_valid().to_numpy(zero_copy_only=False)


@lru_cache(maxsize=32)
def _snapshot_table(
    folder: str, files: tuple[tuple[int, str], ...], sha256: tuple[tuple[int, str], ...], columns: tuple[str, ...]
) -> pa.Table:
    return load([PartialRef(0, folder, dict(files), len(files), dict(sha256))], None, ("u", *columns), pa.schema([]))

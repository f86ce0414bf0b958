"""User sequences: the events of several logs and the change points of attributes, merged in the order they became available."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.columns import Column, change_columns, feature_column, reads_change, sequence_features
from pipelines.cross_features import available, numpy
from pipelines.days import start_of, whole_days
from pipelines.merge_scan import Axis, Int, mix, order_by
from schemas import Changes, EventLog, Schema, Sequence
from schemas.base import parse_duration
from schemas.contract import STORED_TYPES, Stored
from schemas.feature import Feature
from schemas.vocabulary import MISSING_ID

Load = Callable[[str, list[str]], pa.Table]
"""(source, columns) -> rows of its partials that may lie in a sequence, of the users asked about, with `_day`."""


class Timeline(NamedTuple):
    """Rows of a sequence of many users, sorted by (user, available, ts, kind, id)."""

    axis: Axis
    packed: Int
    """(user's code, available) of each row, ascending."""
    ts: Int
    available: Int
    type: Int
    """Position in the sequence's `events`."""
    leaves: dict[str, pa.Array]
    users: Int
    """Users' ids by code, ascending."""

    def before(self, codes: Int, moments: Int) -> Int:
        """First row of each (user, moment) that was not yet available strictly before the moment."""
        return np.searchsorted(self.packed, self.axis.pack(codes, moments), "left")

    def gather(self, rows: Int) -> dict[str, pa.Array]:
        """Every leaf, `ts` and `type` at `rows`."""
        index = pa.array(rows)
        return {
            **{name: leaf.take(index) for name, leaf in self.leaves.items()},
            "ts": pa.array(self.ts[rows]),
            "type": pa.array(self.type[rows].astype(np.int32)),
        }


def days_back(schema: Schema) -> dict[str, int]:
    """Source -> how many days before a day built its rows may lie in a sequence."""
    back: dict[str, int] = {}
    for sequence in schema.sequences:
        for entry in sequence.events:
            source = schema.source(entry.source)
            reach = parse_duration(sequence.lookback)
            if isinstance(source, EventLog):
                reach += parse_duration(source.lateness) + parse_duration(source.delay)
            back[source.name] = max(back.get(source.name, 0), whole_days(reach) + 1)
    return back


def merge(schema: Schema, sequence: Sequence, users: Int, load: Load, snapshot_days: Mapping[str, Int]) -> Timeline:
    """The sequence's rows of `users` (int64 ids, ascending), from all its sources.

    Args:
        snapshot_days: snapshot -> the days whose partials `load` reads, ascending.
    """
    features = list(sequence_features(sequence))
    parts = [_events(schema, sequence, kind, features, load, snapshot_days) for kind in range(len(sequence.events))]
    user, ts, seen, kind, id_ = (np.concatenate([part[i] for part in parts]) for i in range(5))
    code = np.searchsorted(users, user)
    known = (code < len(users)) & (users[np.minimum(code, len(users) - 1)] == user) if len(users) else code < 0
    rows = np.flatnonzero(known)
    axis = Axis.over(len(users), seen[rows])
    packed = axis.pack(code[rows], seen[rows])
    order = order_by(packed, ts[rows], kind[rows], id_[rows])
    rows = rows[order]
    leaves = {}
    for feature, stored in features:
        column = pa.chunked_array([part[5][feature.name] for part in parts], STORED_TYPES[stored])
        leaves[feature.name] = _one(column.take(pa.array(rows)), STORED_TYPES[stored])
    return Timeline(axis, packed[order], ts[rows], seen[rows], kind[rows], leaves, users)


Part = tuple[Int, Int, Int, Int, Int, dict[str, pa.Array]]


def _events(
    schema: Schema,
    sequence: Sequence,
    kind: int,
    features: list[tuple[Feature, Stored]],
    load: Load,
    snapshot_days: Mapping[str, Int],
) -> Part:
    entry = sequence.events[kind]
    if isinstance(entry, Changes):
        return _changes(schema, sequence, entry, kind, features, load, snapshot_days[entry.source])
    log = schema.event_log(entry.source)
    columns = {feature.name: feature_column(feature) for feature, _ in features}
    names = sorted({column.name for column in columns.values() if column})
    where = [Column("flag", entry.where, sql=True).name] if entry.where else []
    table = load(log.name, names + where)
    if where:
        table = table.filter(table.column(where[0]))
    user, ts, id_ = (numpy(table, name) for name in ("u", "ts", "id"))
    leaves = {
        name: _one(table.column(column.name), table.schema.field(column.name).type)
        for name, column in columns.items()
        if column
    }
    return user, ts, available(log, table), np.full(len(ts), kind, np.int64), id_, leaves


def _changes(
    schema: Schema,
    sequence: Sequence,
    changes: Changes,
    kind: int,
    features: list[tuple[Feature, Stored]],
    load: Load,
    days: Int,
) -> Part:
    """One row at the start of each day whose snapshot states another value than the snapshot before it (or the first one)."""
    columns = change_columns(changes, sequence)
    table = load(changes.source, [column.name for column in columns])
    user, day = numpy(table, "u"), table.column("_day").to_numpy().astype(np.int64)
    order = np.lexsort((day, user))
    user, day = user[order], day[order]
    value = _comparable(_one(table.column(columns[0].name), table.schema.field(columns[0].name).type))[order]
    present = _present(table.column(columns[0].name), columns[0])[order]
    place = np.searchsorted(days, day)
    same = np.zeros(len(user), np.bool_)
    same[1:] = (user[1:] == user[:-1]) & (place[1:] == place[:-1] + 1) & (value[1:] == value[:-1])
    changed = np.flatnonzero(present & ~same)
    rows = order[changed]
    ts = np.array([start_of(0, schema.offset_ms)], np.int64) + day[changed] * 86_400_000
    leaves: dict[str, pa.Array] = {}
    for feature, stored in features:
        column = feature_column(feature)
        if column and reads_change(changes, column):
            leaves[feature.name] = _one(table.column(column.name), STORED_TYPES[stored]).take(pa.array(rows))
        else:
            leaves[feature.name] = missing(stored, len(rows))
    id_ = mix(user[changed], day[changed], value[changed])
    return user[changed], ts, ts, np.full(len(rows), kind, np.int64), id_, leaves


def _comparable(array: pa.Array) -> Int:
    """An int64 per value that is equal where the values are."""
    if pa.types.is_list(array.type):
        texts = np.array([hash(tuple(value)) for value in array.to_pylist()], np.int64)
        return texts
    if pa.types.is_floating(array.type):
        return array.to_numpy(zero_copy_only=False).astype(np.float64).view(np.int64)
    return array.to_numpy(zero_copy_only=False).astype(np.int64)


def _present(column: pa.ChunkedArray, how: Column) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    if how.role == "ids":
        return np.array([bool(value) for value in column.to_pylist()], np.bool_)
    value = column.to_numpy()
    return ~np.isnan(value) if how.role == "number" else value != MISSING_ID


def missing(stored: Stored, rows: int) -> pa.Array:
    """`rows` missing values."""
    if stored == "number":
        return pa.array(np.full(rows, np.nan, np.float32))
    if stored == "ids":
        return pa.ListArray.from_arrays(
            pa.array(np.zeros(rows + 1, np.int32)), pa.array([], pa.int64()), type=STORED_TYPES["ids"]
        )
    return pa.array(np.full(rows, MISSING_ID, np.int64))


def _one(column: pa.ChunkedArray, type_: pa.DataType) -> pa.Array:
    combined = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(combined, pa.ChunkedArray):
        combined = pa.concat_arrays(combined.chunks) if combined.num_chunks else pa.array([], type_)
    return combined if combined.type == type_ else combined.cast(type_)

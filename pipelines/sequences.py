"""User sequences: the events of several logs and the change points of attributes, merged in the order they became available."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from genrank.pipelines.arrays import int64s, single_array, taken
from genrank.pipelines.column_roles import Column
from genrank.pipelines.columns import change_columns, feature_column, reads_change, sequence_features
from genrank.pipelines.cross_features import available
from genrank.pipelines.merge_scan import Axis, Bool, Int, Keys, mix
from genrank.pipelines.row_order import ascends, order_by
from genrank.schemas import ChangePoints, EventLog, Events, EventSequence, Schema, Snapshot
from genrank.schemas.base import parse_duration
from genrank.schemas.ids import MISSING_ID
from genrank.schemas.stored import STORED_TYPES, Stored

_LEAF = "leaf:"
"""Before a stored feature's name in a table of a sequence's rows, where it could be `id` or `ts`."""


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
    id: Int | None
    """Breaks ties; None where rows came in its order."""

    def codes(self, users: Int) -> Int:
        """Codes of users that are among the timeline's."""
        return np.searchsorted(self.users, users)

    def before(self, codes: Int, moments: Int) -> Int:
        """First row of each (user, moment) that was not yet available strictly before the moment."""
        return np.searchsorted(self.packed, self.axis.pack(codes, moments), "left")

    def gather(self, rows: Int) -> dict[str, pa.Array]:
        """Every leaf, `ts` and `type` at `rows`."""
        return {
            **{name: taken(leaf, rows) for name, leaf in self.leaves.items()},
            "ts": pa.array(self.ts[rows]),
            "type": pa.array(self.type[rows].astype(np.int32)),
        }


def days_back(schema: Schema, sequence: EventSequence, source: EventLog | Snapshot) -> int:
    """How many days before a day built the source's rows may lie in the sequence."""
    reach = parse_duration(sequence.lookback) if sequence.scope == "history" else 0
    if isinstance(source, EventLog):
        reach += parse_duration(source.lateness) + parse_duration(source.delay)
    return schema.local_days.covering(reach) + 1


def columns_of(sequence: EventSequence, entry: Events | ChangePoints, ids: bool = True) -> list[str]:
    """Columns of the source's partial that an entry of a sequence reads; of a log without its rows' ids where they aren't wanted."""
    if isinstance(entry, ChangePoints):
        return ["u", *(column.name for column in change_columns(entry, sequence))]
    columns = {column.name for feature, _ in sequence_features(sequence) if (column := feature_column(feature))}
    where = [Column("flag", entry.where, sql=True).name] if entry.where else []
    return list(dict.fromkeys(["u", "ts", "arrived", *(["id"] if ids else []), *sorted(columns), *where]))


def rows_of(schema: Schema, sequence: EventSequence, kind: int, table: pa.Table, days: Int, first: int) -> pa.Table:
    """Rows of a source's partials as a sequence holds them: u, ts, available, id where it is there (int64), and a column per stored feature.

    Args:
        kind: position of the entry in the sequence's `events`.
        table: `columns_of` the entry, and `_day`.
        days: the days read of a snapshot, ascending: the one before `first`, where there is one, says what changed on it.
    """
    entry = sequence.events[kind]
    if isinstance(entry, ChangePoints):
        return _changes(schema, sequence, entry, table, days, first)
    log = schema.event_log(entry.source)
    if entry.where:
        table = table.filter(table.column(Column("flag", entry.where, sql=True).name))
    own = {"u": table.column("u"), "ts": table.column("ts"), "available": pa.array(available(log, table))}
    if "id" in table.column_names:
        own["id"] = table.column("id")
    for feature, stored in sequence_features(sequence):
        column = feature_column(feature)
        assert column is not None
        own[f"{_LEAF}{feature.name}"] = table.column(column.name).cast(STORED_TYPES[stored])
    return pa.table(own)


def newest(rows: pa.Table, most: int, settled: int) -> pa.Table:
    """Of rows as `rows_of` gives them, what histories of windows from `settled` on may hold: of each user the newest `most` that were
    available before `settled`, by the sequence's own order, and whatever came later. Rows without ids are in their order already.
    """
    user = int64s(rows, "u")
    if ascends(user) and not (user[most:] == user[:-most]).any():
        return rows  # Of a day, as its partial has them: nobody has more.
    users = Keys(user)
    old = int64s(rows, "available") < settled
    many = np.bincount(users.codes[old], minlength=users.count) > most
    at = np.flatnonzero(old & many[users.codes])
    if not len(at):
        return rows
    ties = [int64s(rows, name)[at] for name in ("ts", "id") if name in rows.column_names]
    user, seen = users.codes[at], int64s(rows, "available")[at]
    order = order_by(Axis.over(users.count, seen).pack(user, seen), *ties)
    user = user[order]
    ends = np.flatnonzero(np.append(user[1:] != user[:-1], True))
    rank = np.repeat(ends, np.diff(ends, prepend=-1)) - np.arange(len(user))
    kept = np.ones(rows.num_rows, np.bool_)
    kept[at[order[rank >= most]]] = False
    return rows.filter(pa.array(kept))


def merge(schema: Schema, sequence: EventSequence, users: Int, parts: Iterable[pa.Table]) -> Timeline:
    """The sequence's rows of `users` (int64 ids, ascending).

    Args:
        parts: rows of each of the sequence's `events`, as `rows_of` gives them: all with ids, or all in the order of their ids where their
            times are equal, as files of partials have them.
    """
    tables = list(parts)
    kind = np.repeat(np.arange(len(tables)), [table.num_rows for table in tables])
    ids = all("id" in table.column_names for table in tables)
    names = [name for name in tables[0].column_names if ids or name != "id"]
    table = pa.concat_tables([table.select(names) for table in tables])
    user, ts, seen = (int64s(table, name) for name in ("u", "ts", "available"))
    code = np.searchsorted(users, user)
    known = (code < len(users)) & (users[np.minimum(code, len(users) - 1)] == user) if len(users) else code < 0
    rows = np.flatnonzero(known)
    axis = Axis.over(len(users), seen[rows])
    packed = axis.pack(code[rows], seen[rows])
    id_ = int64s(table, "id") if ids else None
    ties = (ts, kind) if id_ is None else (ts, kind, id_)
    order = order_by(packed, *(partial(_at, tie, rows) for tie in ties))
    rows = rows[order]
    leaves = {
        feature.name: single_array(taken(table.column(f"{_LEAF}{feature.name}"), rows), STORED_TYPES[stored])
        for feature, stored in sequence_features(sequence)
    }
    return Timeline(
        axis, packed[order], ts[rows], seen[rows], kind[rows], leaves, users, None if id_ is None else id_[rows]
    )


def _at(values: Int, rows: Int, few: Int) -> Int:
    """Values of a few of the rows."""
    found: Int = values[rows[few]]
    return found


def _changes(
    schema: Schema, sequence: EventSequence, changes: ChangePoints, table: pa.Table, days: Int, first: int
) -> pa.Table:
    """One row at the start of each day from `first` whose snapshot states another value than the snapshot before it (or the first
    one)."""
    columns = change_columns(changes, sequence)
    user, day = int64s(table, "u"), table.column("_day").to_numpy().astype(np.int64)
    order = np.lexsort((day, user))
    user, day = user[order], day[order]
    value = _comparable(single_array(table.column(columns[0].name), table.schema.field(columns[0].name).type))[order]
    present = _present(table.column(columns[0].name), columns[0])[order]
    place = np.searchsorted(days, day)
    same = np.zeros(len(user), np.bool_)
    same[1:] = (user[1:] == user[:-1]) & (place[1:] == place[:-1] + 1) & (value[1:] == value[:-1])
    changed = np.flatnonzero(present & ~same & (day >= first))
    rows = order[changed]
    ts = pa.array(schema.local_days.starts(day[changed]))
    own = {"u": pa.array(user[changed]), "ts": ts, "available": ts}
    own["id"] = pa.array(mix(user[changed], day[changed], value[changed]))
    for feature, stored in sequence_features(sequence):
        column = feature_column(feature)
        if column and reads_change(changes, column):
            leaf = single_array(table.column(column.name), STORED_TYPES[stored]).take(pa.array(rows))
        else:
            leaf = missing(stored, len(rows))
        own[f"{_LEAF}{feature.name}"] = leaf
    return pa.table(own)


def _comparable(array: pa.Array) -> Int:
    """An int64 per value that is equal where the values are."""
    if pa.types.is_list(array.type):
        texts = np.array([hash(tuple(value)) for value in array.to_pylist()], np.int64)
        return texts
    if pa.types.is_floating(array.type):
        bits: Int = array.to_numpy(zero_copy_only=False).astype(np.float64).view(np.int64)
        return bits
    values: Int = array.to_numpy(zero_copy_only=False).astype(np.int64)
    return values


def _present(column: pa.ChunkedArray, how: Column) -> Bool:
    if how.role in ("ids", "vector"):
        return np.array([bool(value) for value in column.to_pylist()], np.bool_)
    value = column.to_numpy()
    present: Bool = ~np.isnan(value) if how.role == "number" else value != MISSING_ID
    return present


def missing(stored: Stored, rows: int) -> pa.Array:
    """`rows` missing values."""
    if stored == "number":
        return pa.array(np.full(rows, np.nan, np.float32))
    if stored in ("ids", "vector"):
        type_ = STORED_TYPES[stored]
        return pa.ListArray.from_arrays(
            pa.array(np.zeros(rows + 1, np.int32)), pa.array([], type_.value_type), type=type_
        )
    return pa.array(np.full(rows, MISSING_ID, np.int64))

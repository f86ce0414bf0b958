"""A sequence of every user, in the order in which its events became available, cut for requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from genrank.pipelines import sequences
from genrank.pipelines.merge_scan import Int, ranges
from genrank.pipelines.sequences import Timeline
from genrank.schemas import ChangePoints, EventSequence, Schema
from genrank.schemas.base import parse_duration


class SequenceCuts:
    """What of a sequence depends on the schema alone.

    Args:
        schema: its schema.
        partials: event log -> schema of its partials.
        sequence: the declaration.
    """

    def __init__(self, schema: Schema, partials: Mapping[str, pa.Schema], sequence: EventSequence) -> None:
        self.sequence = sequence
        self.logs = {entry.source for entry in sequence.events if not isinstance(entry, ChangePoints)}
        self._schema = schema
        self._realtime = sequence.scope == "realtime"
        self._reach = 0 if self._realtime else parse_duration(sequence.lookback)
        nothing = [self.rows(kind, partials[entry.source].empty_table()) for kind, entry in enumerate(sequence.events)]
        self._nothing = nothing[0]
        self._empty = sequences.merge(schema, sequence, np.zeros(0, np.int64), nothing)

    def rows(self, kind: int, table: pa.Table, days: Sequence[int] = ()) -> pa.Table:
        """Rows of a source's partials as an entry of the sequence holds them.

        Args:
            kind: its position in the sequence's `events`.
            table: rows; of a snapshot with `_day`, unless there are none.
            days: of the snapshot, ascending.
        """
        if isinstance(self.sequence.events[kind], ChangePoints) and not table.num_rows:
            table = table.append_column("_day", pa.array([], pa.int32()))
        of_days = np.array(days, np.int64)
        return sequences.rows_of(self._schema, self.sequence, kind, table, of_days, days[0] if days else 0)

    def timeline(self, rows: Mapping[str, pa.Table], changes: Mapping[int, pa.Table] | None = None) -> Timeline | None:
        """The sequence of all users of some rows; None where there is none.

        Args:
            rows: event log -> rows of its partials; one that is left out has none.
            changes: position in the sequence's `events` -> its change points, as `sequences.rows_of` gives them.
        """
        tables = [self._nothing] * len(self.sequence.events)
        for kind, entry in enumerate(self.sequence.events):
            if changes and kind in changes:
                tables[kind] = changes[kind]
            elif entry.source in rows and entry.source in self.logs:
                tables[kind] = self.rows(kind, rows[entry.source])
        users = np.unique(np.concatenate([table.column("u").to_numpy() for table in tables]))
        return sequences.merge(self._schema, self.sequence, users, tables) if len(users) else None

    def cut(self, timelines: Sequence[Timeline], users: Int, start: Int, last: Int) -> tuple[Int, dict[str, pa.Array]]:
        """The history before each request's window, or the realtime events that its last exposure sees: the newest `max_length`, oldest
        first.

        Args:
            timelines: that hold the sequence's events, each some of them.
            users: [requests] hashed ids.
            start: [requests] epoch ms at which the window starts.
            last: [requests] epoch ms of the last exposure.

        Returns:
            `[requests + 1]` where each request's events begin, and every leaf of the events.
        """
        moment, oldest = (last, start) if self._realtime else (start, start - self._reach)
        most = self.sequence.max_length
        begins, lengths = [], []
        for timeline in timelines:
            code = np.minimum(np.searchsorted(timeline.users, users), len(timeline.users) - 1)
            code = np.where(timeline.users[code] == users, code, -1)
            until = timeline.before(code, moment)
            begin = np.maximum(timeline.before(code, oldest), until - most)
            begins.append(begin)
            lengths.append(until - begin)
        held = [at for at, length in enumerate(lengths) if length.any()]
        if not held:
            return np.zeros(len(users) + 1, np.int64), self._leaves(self._empty, slice(0, 0))
        if len(held) == 1:
            only, begin, length = timelines[held[0]], begins[held[0]], lengths[held[0]]
            bounds = np.concatenate([[0], np.cumsum(length)])
            if len(users) == 1:
                return bounds, self._leaves(only, slice(int(begin[0]), int(begin[0] + length[0])))
            return bounds, self._leaves(only, ranges(begin, length))
        return self._merged([(timelines[at], ranges(begins[at], lengths[at]), lengths[at]) for at in held])

    def _merged(self, parts: Sequence[tuple[Timeline, Int, Int]]) -> tuple[Int, dict[str, pa.Array]]:
        """Rows of several timelines as one would hold them, [requests] of each."""
        request = np.concatenate([np.repeat(np.arange(len(length)), length) for _, _, length in parts])
        keys = [
            np.concatenate([getattr(timeline, name)[rows] for timeline, rows, _ in parts])
            for name in ("id", "type", "ts", "available")
        ]
        order = np.lexsort([*keys, request])
        length = np.bincount(request, minlength=len(parts[0][2]))
        ends = np.cumsum(length)
        kept = np.minimum(length, self.sequence.max_length)
        order = order[ranges(ends - kept, kept)]
        own = [self._leaves(timeline, rows) for timeline, rows, _ in parts]
        index = pa.array(order)
        leaves = {name: pa.concat_arrays([each[name] for each in own]).take(index) for name in own[0]}
        return np.concatenate([[0], np.cumsum(kept)]), leaves

    def _leaves(self, timeline: Timeline, rows: Int | slice) -> dict[str, pa.Array]:
        if isinstance(rows, slice):
            leaves = {name: leaf[rows] for name, leaf in timeline.leaves.items()}
        else:
            index = pa.array(rows)
            leaves = {name: leaf.take(index) for name, leaf in timeline.leaves.items()}
        leaves["ts"] = pa.array(timeline.ts[rows])
        leaves["type"] = pa.array(timeline.type[rows].astype(np.int32))
        if self._realtime:
            leaves["available"] = pa.array(timeline.available[rows])
        return leaves

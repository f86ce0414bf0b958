"""What requests are answered from: indexed once of what lies in the build's partials, and in small parts of events that come.

A `State` never changes. Whoever adds events puts a new one in its place, so that a request sees all of a batch of events or none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from genrank.pipelines import sequences
from genrank.pipelines.cross_features import key_sets
from genrank.pipelines.online.crossed import CrossFeatures, HashedKeys
from genrank.pipelines.online.snapshots import SnapshotDays
from genrank.pipelines.online.standing import Block
from genrank.pipelines.online.timelines import SequenceCuts
from genrank.pipelines.sequences import Timeline
from genrank.schemas import ChangePoints, Schema

TIERS = (16_384, 1_024)
"""Rows of a log that came since loading lie in three tiers. New ones join the last, which is indexed anew whenever some come; when it holds
more than the last of these, its rows join the tier before it, and so on: a row is indexed often only while it is new."""


class State(NamedTuple):
    """Everything that a request reads of events."""

    blocks: Mapping[tuple[int, str], Sequence[Block]]
    """(position of the key set, log) -> its events."""
    timelines: Mapping[str, Sequence[Timeline]]
    """Sequence -> its events."""

    @property
    def nbytes(self) -> int:
        """What it holds in memory."""
        blocks = sum(block.nbytes for own in self.blocks.values() for block in own)
        return blocks + sum(_bytes_of(timeline) for own in self.timelines.values() for timeline in own)


class StateBuilder:
    """Makes states of one schema.

    Args:
        schema: what the samples are declared by.
        partials: source -> schema of its partials.
        snapshots: by name.
        loaded: event log -> rows of its partials.
    """

    def __init__(
        self,
        schema: Schema,
        partials: Mapping[str, pa.Schema],
        snapshots: Mapping[str, SnapshotDays],
        loaded: Mapping[str, pa.Table],
    ) -> None:
        self.crossed = [CrossFeatures(schema, partials, key_set) for key_set in key_sets(schema)]
        self.keys = HashedKeys(self.crossed)
        self.cuts = {sequence.name: SequenceCuts(schema, partials, sequence) for sequence in schema.sequences}
        self._tiers = {log: [table.slice(0, 0)] * (len(TIERS) + 1) for log, table in loaded.items()}
        none: list[None] = [None] * (len(TIERS) + 1)
        self._blocks: dict[tuple[int, str], list[Block | None]] = {}
        for at, of_set in enumerate(self.crossed):
            for log in of_set.logs:
                self._blocks[at, log] = [of_set.block(log, loaded[log]), *none]
        self._timelines: dict[str, list[Timeline | None]] = {}
        for name, cuts in self.cuts.items():
            self._timelines[name] = [cuts.timeline(loaded, _change_points(cuts, snapshots)), *none]

    @property
    def added_bytes(self) -> int:
        """What rows that came since loading take besides their indexes."""
        return sum(int(table.nbytes) for tiers in self._tiers.values() for table in tiers)

    def add(self, log: str, rows: pa.Table) -> None:
        """Rows of a log's partial, none of them known before."""
        tiers = self._tiers[log]
        tiers[-1] = pa.concat_tables([tiers[-1], rows])
        changed = {len(TIERS)}
        for at in range(len(TIERS), 0, -1):
            if tiers[at].num_rows > TIERS[at - 1]:
                tiers[at - 1] = pa.concat_tables([tiers[at - 1], tiers[at]]).combine_chunks()
                tiers[at] = rows.slice(0, 0)
                changed.add(at - 1)
        for (at, name), blocks in self._blocks.items():
            if name == log:
                for tier in changed:
                    blocks[1 + tier] = self.crossed[at].block(log, tiers[tier])
        for name, cuts in self.cuts.items():
            if log in cuts.logs:
                for tier in changed:
                    own = {source: self._tiers[source][tier] for source in cuts.logs}
                    self._timelines[name][1 + tier] = cuts.timeline(own)

    def state(self) -> State:
        """As of now."""
        return State(
            {key: tuple(block for block in own if block is not None) for key, own in self._blocks.items()},
            {name: tuple(each for each in own if each is not None) for name, own in self._timelines.items()},
        )


def _change_points(cuts: SequenceCuts, snapshots: Mapping[str, SnapshotDays]) -> dict[int, pa.Table]:
    """Position in the sequence's `events` -> the change points of all days; a request's moment says which of them it sees."""
    found = {}
    for kind, entry in enumerate(cuts.sequence.events):
        if isinstance(entry, ChangePoints) and (held := snapshots[entry.source].days):
            names, days = sequences.columns_of(cuts.sequence, entry), sorted(held)
            table = pa.concat_tables([_with_day(held[day].rows.select(names), day) for day in days])
            found[kind] = cuts.rows(kind, table, days)
    return found


def _with_day(rows: pa.Table, day: int) -> pa.Table:
    return rows.append_column("_day", pa.array(np.full(rows.num_rows, day, np.int32)))


def _bytes_of(timeline: Timeline) -> int:
    assert timeline.id is not None
    arrays = (timeline.packed, timeline.ts, timeline.available, timeline.type, timeline.users, timeline.id)
    return sum(array.nbytes for array in arrays) + sum(int(leaf.nbytes) for leaf in timeline.leaves.values())

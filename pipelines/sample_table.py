"""Exposures of a bucket and day become samples by the contract of `schemas.derive.sample_schema`: a struct per token group, a list per feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from genrank.pipelines.arrays import int64s, single_array, taken
from genrank.pipelines.column_roles import Column
from genrank.pipelines.columns import feature_column
from genrank.pipelines.days import dt_of
from genrank.pipelines.labels import Labels
from genrank.pipelines.merge_scan import Bool, Int, mix, ranges
from genrank.pipelines.sample_columns import (
    AVAILABLE,
    CANDIDATE_SEES,
    ITEM,
    LABELS,
    MASK,
    REALTIME_SEES,
    REQUEST,
    SAMPLE_ID,
    TS,
    USER_ID,
    WINDOW_END,
    WINDOW_START,
    oracle_of,
    weight_of,
)
from genrank.pipelines.sample_cuts import Cuts
from genrank.pipelines.sequences import Timeline
from genrank.pipelines.user_profile import Profiles
from genrank.schemas import Schema
from genrank.schemas.base import parse_duration
from genrank.schemas.derive.sample_schema import arrow_schema
from genrank.schemas.schema import CANDIDATES, USER

Leaves = tuple[Int, dict[str, pa.Array]]
"""(length of each sample's list, leaf -> the values of all samples)."""


@dataclass(frozen=True)
class DayOfBucket:
    """A bucket's exposures of one day and what belongs to them."""

    day: int
    exposures: pa.Table
    """Rows of the exposures' partial, by user and time."""
    crossed: Mapping[str, pa.Array]
    """Cross feature -> its value per exposure."""
    timelines: Mapping[str, Timeline]
    """Sequence -> rows of the bucket's users."""
    labels: Mapping[str, Labels]
    kept: Bool
    """Exposures that down-sampling keeps."""
    correction: NDArray[np.float32]
    """Weight per exposure that makes up for those it doesn't."""


def sample_table(schema: Schema, of: DayOfBucket, cuts: Cuts, profiles: Profiles) -> pa.Table:
    """A row per sample that keeps a candidate."""
    return _SampleTable(schema, of, cuts, profiles).build()


class _SampleTable:
    def __init__(self, schema: Schema, of: DayOfBucket, cuts: Cuts, profiles: Profiles) -> None:
        self.schema, self.of, self.profiles = schema, of, profiles
        self.target = arrow_schema(schema)
        before = np.concatenate([[0], np.cumsum(of.kept)])
        counts = before[cuts.end] - before[cuts.begin]
        self.cuts = cuts.keep(counts > 0)
        self.counts: Int = counts[counts > 0]
        """Candidates of each sample."""
        self.rows: Int = np.flatnonzero(of.kept)
        """Exposures that are candidates."""
        self.user, self.ts = int64s(of.exposures, "u"), int64s(of.exposures, "ts")
        self.sample_user = self.user[self.cuts.begin]
        self.start, self.end = (schema.local_days.start(day) for day in (of.day, of.day + 1))

    def build(self) -> pa.Table:
        columns = self._identity()
        if USER in self.target.names:
            columns[USER] = self.profiles.as_of(self.of.day, self.sample_user)
        lists = self._histories()
        if self.schema.realtime:
            tokens = ranges(self.cuts.r_begin, self._realtime_lengths)
            lists[self.schema.realtime.name] = self._realtime(tokens)
            columns[MASK] = self._mask(tokens)
        lists[CANDIDATES] = self._candidates()
        lists[LABELS] = self._labels()
        for name, (lengths, fields) in lists.items():
            columns[name] = _struct_of_lists(self.target.field(name), lengths, fields)
        return pa.Table.from_arrays([columns[name] for name in self.target.names], schema=self.target)

    def _identity(self) -> dict[str, pa.Array]:
        samples = len(self.counts)
        names = self.of.exposures.column("user").take(pa.array(self.cuts.begin))
        chunks = pa.array([str(chunk) for chunk in self.cuts.chunk.tolist()], pa.string())
        sample_id = pc.binary_join_element_wise(pc.cast(names, pa.string()), dt_of(self.of.day), chunks, ":")
        return {
            SAMPLE_ID: single_array(sample_id),
            USER_ID: single_array(names),
            WINDOW_START: pa.array(np.full(samples, self.start, np.int64)),
            WINDOW_END: pa.array(np.full(samples, self.end, np.int64)),
        }

    def _histories(self) -> dict[str, Leaves]:
        lists: dict[str, Leaves] = {}
        window = np.full(len(self.counts), self.start, np.int64)
        for sequence in self.schema.histories:
            timeline = self.of.timelines[sequence.name]
            code = timeline.codes(self.sample_user)
            until = timeline.before(code, window)
            oldest = timeline.before(code, window - parse_duration(sequence.lookback))
            since = np.maximum(oldest, until - sequence.max_length)
            lists[sequence.name] = (until - since, timeline.gather(ranges(since, until - since)))
        return lists

    @property
    def _realtime_lengths(self) -> Int:
        lengths: Int = self.cuts.r_end - self.cuts.r_begin
        return lengths

    @property
    def _realtime_timeline(self) -> Timeline:
        assert self.schema.realtime
        return self.of.timelines[self.schema.realtime.name]

    def _realtime(self, tokens: Int) -> Leaves:
        timeline = self._realtime_timeline
        leaves = timeline.gather(tokens) | {AVAILABLE: pa.array(timeline.available[tokens])}
        return self._realtime_lengths, leaves

    def _mask(self, tokens: Int) -> pa.Array:
        """How many realtime events of its sample each candidate, and each realtime event, sees."""
        timeline, lengths, counts, begin = (
            self._realtime_timeline,
            self._realtime_lengths,
            self.counts,
            self.cuts.r_begin,
        )
        sample = np.repeat(np.arange(len(counts)), counts)
        seen = timeline.before(timeline.codes(self.user[self.rows]), self.ts[self.rows])
        candidate_sees = np.clip(seen - begin[sample], 0, lengths[sample])
        tied_from = np.searchsorted(timeline.packed, timeline.packed[tokens], "left")
        realtime_sees = np.maximum(tied_from - np.repeat(begin, lengths), 0)
        field = self.target.field(MASK)
        children = [
            _list(field.type.field(CANDIDATE_SEES), counts, pa.array(candidate_sees.astype(np.int32))),
            _list(field.type.field(REALTIME_SEES), lengths, pa.array(realtime_sees.astype(np.int32))),
        ]
        return pa.StructArray.from_arrays(children, fields=list(field.type))

    def _candidates(self) -> Leaves:
        exposures = self.of.exposures
        leaves: dict[str, pa.Array] = {}
        for feature in self.schema.candidates.features:
            if feature.stored:
                column = feature_column(feature)
                values = single_array(exposures.column(column.name)) if column else self.of.crossed[feature.name]
                leaves[feature.name] = self._kept(values)
        leaves[TS] = self._kept(single_array(exposures.column("ts")))
        leaves[ITEM] = self._kept(single_array(exposures.column(Column("id", self.schema.candidates.item).name)))
        leaves[REQUEST] = self._kept(self._requests())
        return self.counts, leaves

    def _kept(self, values: pa.Array) -> pa.Array:
        """Those of the candidates, of values of all exposures."""
        return values if len(self.rows) == len(values) else taken(values, self.rows)

    def _requests(self) -> pa.Array:
        """The request each exposure belongs to; a user's day is one where the exposures name none."""
        if self.schema.candidates.request:
            return single_array(self.of.exposures.column(Column("id", self.schema.candidates.request).name))
        return pa.array(mix(self.user, np.full(len(self.user), self.start, np.int64)))

    def _labels(self) -> Leaves:
        leaves: dict[str, pa.Array] = {}
        for label in self.schema.labels:
            found = self.of.labels[label.name]
            value = found.value.astype(np.int32) if label.kind == "binary" else found.value
            leaves[label.name] = pa.array(value[self.rows])
            leaves[weight_of(label.name)] = pa.array((found.weight * self.of.correction)[self.rows])
            if found.oracle is not None:
                leaves[oracle_of(label.name)] = pa.array(found.oracle[self.rows])
        return self.counts, leaves


def _list(field: pa.Field, lengths: Int, values: pa.Array) -> pa.Array:
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, values.cast(field.type.value_type), type=field.type)


def _struct_of_lists(field: pa.Field, lengths: Int, values: Mapping[str, pa.Array]) -> pa.Array:
    children = [_list(child, lengths, values[child.name]) for child in field.type]
    return pa.StructArray.from_arrays(children, fields=list(field.type))

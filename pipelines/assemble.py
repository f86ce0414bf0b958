"""A bucket of users becomes samples: a row per user and day, by the contract of `schemas.derive.sample_schema`."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrank.pipelines import sequences
from genrank.pipelines.arrays import int64s, taken
from genrank.pipelines.column_roles import Column
from genrank.pipelines.compaction.plan import ReadPlan
from genrank.pipelines.compaction.uses import SequenceUse
from genrank.pipelines.cross_feature_routing import CrossFeatureRouter
from genrank.pipelines.days import dt_of
from genrank.pipelines.engine import Piece
from genrank.pipelines.labels import Labels, label_exposures
from genrank.pipelines.leaf_summaries import join_summaries
from genrank.pipelines.merge_scan import Bool, Int, mix
from genrank.pipelines.messages import LeafSummary, SampleReport
from genrank.pipelines.sample_cuts import cut
from genrank.pipelines.sample_files import write_samples
from genrank.pipelines.sample_table import DayOfBucket, sample_table
from genrank.pipelines.sequences import Timeline
from genrank.pipelines.user_profile import Profiles
from genrank.schemas import EventSequence, Schema
from genrank.schemas.base import parse_duration
from genrank.schemas.files import file_sha256


@dataclass(frozen=True)
class Assembler:
    """Everything a task needs to make samples of some days; travels to tasks by pickle."""

    router: CrossFeatureRouter
    sequences: Mapping[SequenceUse, ReadPlan]
    """What is read of past days."""
    profiles: Profiles
    as_of: int
    """Labels as known at this moment, epoch ms."""
    landed: Mapping[str, frozenset[int]]
    """Event log -> its days that have landed; a label is mature only where its own log's have."""
    build_id: str
    staging: str

    @property
    def schema(self) -> Schema:
        """What the samples are declared by."""
        return self.router.schema

    def assemble(self, bucket: int, tables: dict[str, pa.Table]) -> Iterator[Piece]:
        """Exchange step: samples of every day of a bucket, one file a day; reports what was written."""
        with self.router.reader.several_times(bucket):
            yield from self._assemble(bucket, tables)

    def _assemble(self, bucket: int, tables: dict[str, pa.Table]) -> Iterator[Piece]:
        own, reader = self.schema.candidates.source, self.router.reader
        last = any(label.attribution == "last" for label in self.schema.labels)
        names = [name for name in reader.schemas[own].names if name != "id" or last]
        exposures = reader.load(own, self.router.days, bucket, names)
        if not exposures.num_rows:
            return
        users = np.unique(int64s(exposures, "u"))
        crossed = self.router.features(exposures, bucket, tables, users)
        timelines = {s.name: self._timeline(s, users, bucket) for s in self.schema.sequences}
        day = exposures.column("_day").to_numpy()
        for of_day in self.router.days:
            rows = np.flatnonzero(day == of_day)
            if len(rows) == len(day):
                yield from self._day(of_day, bucket, exposures, crossed, timelines)
            elif len(rows):
                of = {name: taken(column, rows) for name, column in crossed.items()}
                yield from self._day(of_day, bucket, taken(exposures, rows), of, timelines)

    def _timeline(self, sequence: EventSequence, users: Int, bucket: int) -> Timeline:
        uses = [SequenceUse(entry.source, sequence, kind) for kind, entry in enumerate(sequence.events)]
        # Beside histories that were merged before, rows are ordered by their ids again.
        lean = not any(self.sequences[use].compacted for use in uses)
        parts = [self.router.reader.rows(use, self.sequences[use], bucket, pa.array(users), lean) for use in uses]
        return sequences.merge(self.schema, sequence, users, parts)

    def _day(
        self,
        day: int,
        bucket: int,
        exposures: pa.Table,
        crossed: Mapping[str, pa.Array],
        timelines: Mapping[str, Timeline],
    ) -> Iterator[Piece]:
        start, end = self.schema.local_days.start(day), self.schema.local_days.start(day + 1)
        user = int64s(exposures, "u")
        begins = np.flatnonzero(np.concatenate([[True], user[1:] != user[:-1]]))
        active = pa.array(user[begins])

        def near(source: str, columns: list[str]) -> pa.Table:
            """Rows of a log that a label of this day may concern."""
            reach = max(parse_duration(label.window) for label in self.schema.labels)
            days = range(day, day + self.schema.local_days.covering(reach) + 2)
            names = [*dict.fromkeys(["u", "ts", "arrived", *columns])]
            return self.router.reader.load(source, days, bucket, names, active)

        labels = label_exposures(self.schema, exposures, self.as_of, near, self.landed)
        cuts = cut(self.schema, user, begins, int64s(exposures, "ts"), start, end, timelines)
        kept, correction = down_sample(self.schema, exposures, labels)
        of = DayOfBucket(day, exposures, crossed, timelines, labels, kept, correction)
        table = sample_table(self.schema, of, cuts, self.profiles)
        path = Path(self.staging) / f"dt={dt_of(day)}" / f"part-{bucket:05d}-{uuid.uuid4().hex[:8]}.parquet"
        rows = table.num_rows
        if rows:
            write_samples(table, path, self.schema, self.build_id)
        yield SampleReport(
            day,
            bucket,
            path=str(path) if rows else "",
            rows=rows,
            bytes=path.stat().st_size if rows else 0,
            sha256=file_sha256(path) if rows else "",
            candidates=int(kept.sum()),
            down_sampled=int((~kept).sum()),
        ).piece()
        yield LeafSummary.pieces(join_summaries(day, self.profiles.known_users(day, bucket, active)))


def down_sample(schema: Schema, exposures: pa.Table, labels: Mapping[str, Labels]) -> tuple[Bool, NDArray[np.float32]]:
    """(which exposures stay, the weight that corrects for those that don't)."""
    rate = schema.candidates.negative_keep_rate
    rows = exposures.num_rows
    correction = np.ones(rows, np.float32)
    if rate == 1.0:
        return np.ones(rows, np.bool_), correction
    positive = np.zeros(rows, np.bool_)
    for label in labels.values():
        positive |= label.value > 0
    item = int64s(exposures, Column("id", schema.candidates.item).name)
    draw = mix(int64s(exposures, "u"), int64s(exposures, "ts"), item).view(np.uint64) / np.float64(2**64)
    if schema.candidates.keep_correction:
        correction[~positive] = np.float32(1 / rate)
    return positive | (draw < rate), correction

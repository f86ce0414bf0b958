"""Raw rows of a source become rows of its partials: typed, checked, joined to snapshots, their columns computed once.

What can't be used is quarantined with its reason; the rest travels to its bucket, where `partial_writer` deduplicates, sorts and
writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from genrank.pipelines.arrays import frame_of
from genrank.pipelines.column_roles import Column
from genrank.pipelines.columns import compute, infinite_numbers, joined_columns, needed
from genrank.pipelines.engine import Piece
from genrank.pipelines.merge_scan import Bool, Int, mix, slot_of
from genrank.pipelines.messages import NormalizedRows
from genrank.pipelines.partials import Layout, PartialRef, layout_of, partial_schema
from genrank.pipelines.quarantine import Reasons, failed_conditions, quarantined
from genrank.pipelines.raw_rows import arrival, content_hash, declared, hashed_ids, is_null, null_as_zero
from genrank.pipelines.snapshot_join import join_snapshot
from genrank.pipelines.sources import home_days, read_rows, times_of
from genrank.schemas import EventLog, Schema, Snapshot
from genrank.schemas.base import DAY_MS, parse_duration
from genrank.schemas.conversion import epoch_ms


@dataclass(frozen=True)
class ReadUnit:
    """Row groups of one file of a partition."""

    source: str
    partition: int
    """The partition's day."""
    path: str
    row_groups: tuple[int, ...]
    rows: int


@dataclass(frozen=True)
class Normalizer:
    """Everything a task needs to turn raw rows into rows of partials; travels to tasks by pickle."""

    schema: Schema
    buckets: int
    days: Mapping[str, frozenset[int]]
    """Source -> the days wanted; rows of other days are left for theirs."""
    snapshots: Mapping[str, Mapping[int, PartialRef]] = field(default_factory=dict)
    """Snapshot -> row's day -> the partial joined to it."""

    @cached_property
    def columns(self) -> dict[str, tuple[Column, ...]]:
        """Source -> what its partials keep."""
        return needed(self.schema)

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """Source -> which of its partials' columns are sent."""
        return {s.name: layout_of(self.schema, s, self.columns[s.name]) for s in self.schema.sources}

    def read(self, units: Iterable[ReadUnit]) -> Iterator[Piece]:
        """Map step: raw rows of some units, normalized, to their buckets."""
        for unit in units:
            source = self.schema.source(unit.source)
            yield from self.normalize(source, unit.partition, read_rows(source, unit.path, unit.row_groups))

    def normalize(self, source: EventLog | Snapshot, partition: int, raw: pa.Table) -> Iterator[Piece]:
        """Rows of one partition to their buckets: good ones, and the others with the reason."""
        if isinstance(source, EventLog):
            yield from self._events(source, partition, raw)
        else:
            yield from self._snapshot(source, partition, raw)

    # ------------------------------------------------------------------ events

    def _events(self, source: EventLog, partition: int, raw: pa.Table) -> Iterator[Piece]:
        ms = times_of(source, raw.column(source.time)).values
        home, day = home_days(ms, partition, self.schema.local_days, parse_duration(source.lateness))
        days = self.days[source.name]
        if len(home) and not days.issuperset(range(int(home.min()), int(home.max()) + 1)):
            wanted = np.isin(home, np.fromiter(days, np.int64))
            raw, ms, home, day = raw.filter(pa.array(wanted)), ms.filter(pa.array(wanted)), home[wanted], day[wanted]
        rows, misfits = declared(source, raw)
        times = epoch_ms(rows.column(source.time), source.time_unit)
        ts, no_time = null_as_zero(ms), is_null(rows, source.time)
        arrived, no_arrival = arrival(source, rows, ts)
        misfits += [(f"{source.time} {misfit.what}", misfit.rows) for misfit in times.misfits]
        misfits += [(f"{source.arrival} {misfit.what}", misfit.rows) for misfit in no_arrival]
        checks = self._checks(source, partition, rows, arrived - ts, no_time, home, day)
        reasons = Reasons.first(raw.num_rows, [*misfits, *checks])
        frame, user = frame_of(rows), hashed_ids(rows, source.user)
        slots = slot_of(mix(user), self.buckets)
        yield from quarantined(source, rows, reasons, home, slots)
        good = reasons.good
        if not good.any():
            return
        if not good.all():
            keep = pa.array(good)
            rows, ts, arrived, home, user = rows.filter(keep), ts[good], arrived[good], home[good], user[good]
            frame, slots = frame.filter(pl.Series(good)), slots[good]
        columns = {"u": pa.array(user), "ts": pa.array(ts)}
        sent = self.layouts[source.name].stored
        if "id" in sent:
            columns["id"] = pa.array(content_hash(rows, tuple(source.columns)))
        if "arrived" in sent:
            columns["arrived"] = pa.array(arrived)
        if "user" in sent:
            columns["user"] = rows.column(source.user)
        same = mix(user, home, content_hash(rows, source.dedup)) if source.dedup else None
        frame, found = self._joined(source, frame, home)
        own = tuple(column for column in self.columns[source.name] if column.name in sent)
        columns |= compute(frame, source, own)
        message = NormalizedRows(home, same, pa.table(columns), found)
        yield from self._finite(source, rows, message, slots)

    def _finite(
        self, source: EventLog | Snapshot, rows: pa.RecordBatch, message: NormalizedRows, slots: NDArray[np.int32]
    ) -> Iterator[Piece]:
        """Rows whose computed numbers are numbers to their buckets, the others to quarantine: SQL divides by 0, and a float64 may
        lie beyond float32."""
        reasons = Reasons.first(rows.num_rows, infinite_numbers(message.rows, self.columns[source.name]))
        yield from quarantined(source, rows, reasons, message.day, slots)
        good = reasons.good
        if not good.all():
            message, slots = message.only(good), slots[good]
        yield Piece(slots, message.tag(source.name), message.table())

    def _checks(
        self, source: EventLog, partition: int, rows: pa.RecordBatch, delay: Int, no_time: Bool, home: Int, day: Int
    ) -> Iterator[tuple[str, Bool]]:
        """(reason, rows it concerns), in the order in which they count; `delay`: ms from each event to its arrival."""
        lateness = parse_duration(source.lateness)
        yield f"{source.user} is null", is_null(rows, source.user)
        yield f"{source.time} is null", no_time
        yield f"{source.time} is after its partition's day", day > partition
        yield f"later than {source.lateness}", home != day
        yield f"arrives later than {source.lateness}", delay > lateness + DAY_MS + self.schema.local_days.spread
        if source.name == self.schema.candidates.source:
            item = self.schema.candidates.item
            yield f"{item} is null", is_null(rows, item)
        yield from failed_conditions(source, rows)

    def _joined(self, source: EventLog, frame: pl.DataFrame, home: Int) -> tuple[pl.DataFrame, dict[str, Bool]]:
        """The frame with the snapshots' columns that the source reads; and which rows each snapshot knows."""
        found: dict[str, Bool] = {}
        for name, columns in joined_columns(self.schema, source, self.columns[source.name]).items():
            snapshot = self.schema.source(name)
            assert isinstance(snapshot, Snapshot)
            stored = partial_schema(self.schema, snapshot, self.columns[name])
            frame, found[name] = join_snapshot(snapshot, self.snapshots.get(name, {}), columns, stored, frame, home)
        return frame, found

    # ------------------------------------------------------------------ snapshots

    def _snapshot(self, source: Snapshot, partition: int, raw: pa.Table) -> Iterator[Piece]:
        rows, misfits = declared(source, raw)
        no_key = (f"{source.key} is null", is_null(rows, source.key))
        reasons = Reasons.first(raw.num_rows, [*misfits, no_key, *failed_conditions(source, rows)])
        home = np.full(raw.num_rows, partition, np.int64)
        key = hashed_ids(rows, source.key)
        slots = slot_of(mix(key), self.buckets)
        yield from quarantined(source, rows, reasons, home, slots)
        good = reasons.good
        if not good.all():
            rows, key, slots, home = rows.filter(pa.array(good)), key[good], slots[good], home[good]
        columns = {
            "u": pa.array(key),
            "ts": pa.array(home),
            "arrived": pa.array(home),
            "id": pa.array(content_hash(rows, tuple(source.columns))),
        }
        columns |= compute(frame_of(rows), source, self.columns[source.name])
        message = NormalizedRows(home, mix(key, home), pa.table(columns), {})
        yield from self._finite(source, rows, message, slots)

"""Which raw rows are read to recompute a few users of a day, and reading them: a bounded number, whatever the look-back.

A day's exposures and the days that its labels lie in are read always; then every log a day further back in turn, until `BUDGET` is spent.
What would need more isn't compared, and the gate says how much was.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from genrank.pipelines.engine import AnyEngine, gather, joined, together
from genrank.pipelines.gate.raw_log import (
    HOME,
    ID,
    MOST_ROWS,
    TASK_ROWS,
    TOO_MANY,
    TS,
    USER,
    Among,
    Filter,
    Lowest,
    RawReader,
    RawUnit,
    beyond_float32,
    once,
    stored_id,
    units_of,
)
from genrank.pipelines.gate.recompute import LogRows, Recomputation
from genrank.pipelines.gate.users import lowest
from genrank.pipelines.messages import tag_parts
from genrank.pipelines.plan import BuildPlan
from genrank.schemas import CrossFeature, EventLog, Events, Snapshot, expression

PER_EXPOSURE, AT_LEAST = 4, 1_000_000
"""Rows looked at are at most so many for each exposure of the day, and so many beside."""
WITH_USER, ELSEWHERE = 32, 8
"""Exposures of which cross features are compared: those keyed by the user, and the others."""
COMPARED = 500
"""Exposures compared in all that they state and are labelled with."""
BUSY = 2_000
"""Users with more exposures a day aren't recomputed: one of them may have half of the log."""
IN_PROCESS = 2_000_000
"""Fewer rows than these are read where the gate runs: tasks would take longer to start."""
SMALL = 300_000
"""A log of at most so many rows in a feature's window is read whole where no key picks its rows."""


@dataclass(frozen=True)
class RawRows:
    """What was read for the users of a day."""

    raw: Recomputation
    users: dict[int, int | str]
    """Stored id -> user, of those compared."""
    crossed: dict[int, list[CrossFeature]]
    """Exposure (row of `raw.exposures`) -> cross features to be compared of it."""
    exposures: frozenset[int]
    """Those compared in all that they state and are labelled with; of the others only which they are."""


class RawDay:
    """Reads the raw rows of a day."""

    def __init__(self, plan: BuildPlan, engine: AnyEngine, day: int) -> None:
        self.plan, self.engine, self.day, self.schema = plan, engine, day, plan.schema
        exposures = self._rows(self.schema.exposures.name, day)
        self.budget = PER_EXPOSURE * exposures + AT_LEAST

    def read(self, below: int, staged: pa.Array, wanted: int) -> RawRows:
        """Raw rows of up to `wanted` users: of those in the log and those in the staged files, the ones that draw lowest.

        Args:
            below: only users that draw less are looked for.
            staged: users of the staged samples that draw less.
        """
        shown = self._exposures(below)
        log, schema = self.schema.exposures, self.schema
        found = shown[log.user].to_arrow().cast(staged.type)
        users = lowest(_without_busiest(found, staged), self.day, wanted)
        shown = shown.filter(pl.Series(np.isin(shown[USER].to_numpy(), [stored_id(user) for user in users])))
        own = LogRows(log, self._joined(log, shown, self._references(log)), self.day)
        features = [feature for feature in schema.candidates.features if isinstance(feature, CrossFeature)]
        shuffled = np.random.default_rng(self.day).permutation(own.frame.height)
        rows = shuffled[:WITH_USER]
        since = self._since()
        filters, answered = self._filters(own, features, users, rows, since)
        logs, cut = self._logs(since, filters, own)
        answered = [f for f in answered if log.user in f.keys or not cut & {f.source, f.per or f.source}]
        crossed = {
            int(row): [f for f in answered if place < ELSEWHERE or log.user in f.keys] for place, row in enumerate(rows)
        }
        named = {stored_id(user): user for user in users}
        profiles = self._profiles(users)
        landed, as_of = self.plan.landed, self.plan.as_of
        raw = Recomputation(schema, self.day, as_of, landed, own, logs, tuple(named), profiles)
        return RawRows(raw, named, crossed, frozenset(shuffled[:COMPARED].tolist()))

    # ------------------------------------------------------------------ which days

    def _rows(self, source: str, day: int) -> int:
        return sum(partition.rows for partition in self.plan.contents[source].get(day, ()))

    def _since(self) -> dict[str, int]:
        """Log -> the first day read of it."""
        since = {source.name: self.day for source in self.schema.sources if isinstance(source, EventLog)}
        left = self.budget - 2 * self._rows(self.schema.exposures.name, self.day)
        going = {name: self.plan.reach[name][0] for name in since}
        for back in range(1, max(going.values(), default=0) + 1):
            for name in sorted(name for name, most in going.items() if most >= back):
                cost = self._rows(name, self.day - back)
                if cost > left:
                    going[name] = 0
                    continue
                left -= cost
                since[name] = self.day - back
        return since

    # ------------------------------------------------------------------ which rows

    def _filters(
        self,
        shown: LogRows,
        features: Sequence[CrossFeature],
        users: Sequence[int | str],
        rows: np.ndarray[Any, Any],
        since: dict[str, int],
    ) -> tuple[dict[str, tuple[Filter, ...]], list[CrossFeature]]:
        """(log -> its rows that are needed, those of the users first; the cross features that they answer)."""
        filters: dict[str, dict[Filter, None]] = {}
        for name in since:
            log = self.schema.event_log(name)
            filters[name] = {Among(((log.user, tuple(users)),)): None}
        answered = []
        for feature in features:
            asked = rows if self.schema.exposures.user in feature.keys else rows[:ELSEWHERE]
            own = [key for key in sorted(feature.keys) if "." not in key and not shown.is_list(key)]
            logs = dict.fromkeys((feature.source, feature.per or feature.source))
            if not own and any(
                sum(self._rows(source, d) for d in range(since[source], self.day + 1)) > SMALL for source in logs
            ):
                continue
            for source in logs:
                values = tuple(
                    (key, tuple(shown.column(key).gather(asked).drop_nulls().unique(maintain_order=True).to_list()))
                    for key in own
                )
                if self.schema.event_log(source).user not in own:  # Those of the users are wanted anyway.
                    filters[source][Among(values)] = None
            answered.append(feature)
        return {name: tuple(of) for name, of in filters.items()}, answered

    # ------------------------------------------------------------------ reading

    def _exposures(self, below: int) -> pl.DataFrame:
        """The day's exposures of users that draw less than a number."""
        log = self.schema.exposures
        reader = RawReader(
            self.schema, {log.name: frozenset({self.day})}, {log.name: (Lowest(log.user, self.day, below),)}
        )
        frame = self._read("recompute users", reader, self._units(log.name, [self.day]))[log.name]
        return frame.sort([TS, ID], maintain_order=True)

    def _logs(
        self, since: dict[str, int], filters: dict[str, tuple[Filter, ...]], shown: LogRows
    ) -> tuple[dict[str, LogRows], set[str]]:
        """(every log's rows, the logs of which only the users' are there: the others were too many)."""
        days, units = {}, []
        for name, first in since.items():
            if name == shown.log.name and self.plan.reach[name] == (0, 0):
                continue  # Nothing asks for other exposures than those of the users' day.
            last = self.day + self.plan.reach[name][1]
            days[name] = frozenset(range(first, last + 1))
            units += self._units(name, sorted(days[name]))
        reader = RawReader(self.schema, days, filters, MOST_ROWS // max(1, len(units)))
        tables = self._tables("recompute events", reader, units)
        frames = self._once(reader, tables)
        logs = {shown.log.name: shown}
        for name, frame in frames.items():
            log = self.schema.event_log(name)
            logs[name] = LogRows(log, self._joined(log, frame, self._references(log)), since[name])
        return logs, {tag_parts(tag)[1] for tag in tables if tag_parts(tag)[0] == TOO_MANY}

    def _units(self, source: str, days: Iterable[int]) -> list[RawUnit]:
        contents = self.plan.contents[source]
        partitions = {partition.day: partition for day in days for partition in contents.get(day, ())}
        return [unit for _, partition in sorted(partitions.items()) for unit in units_of(partition)]

    def _read(self, title: str, reader: RawReader, units: Sequence[RawUnit]) -> dict[str, pl.DataFrame]:
        return self._once(reader, self._tables(title, reader, units))

    def _tables(self, title: str, reader: RawReader, units: Sequence[RawUnit]) -> dict[str, pa.Table]:
        if sum(unit.rows for unit in units) > IN_PROCESS:
            tasks = together(units, attrgetter("rows"), TASK_ROWS)
            return self.engine.collect(self.engine.map(title, tasks, reader.read_all))
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            read = pool.map(lambda unit: list(reader.read(unit)), units)
            return gather(joined(piece for pieces in read for piece in pieces))

    def _once(self, reader: RawReader, tables: dict[str, pa.Table]) -> dict[str, pl.DataFrame]:
        frames = {}
        for name in reader.days:
            source = self.schema.source(name)
            frames[name] = once(source, tables.get(name, reader.nothing(source)))
        return frames

    # ------------------------------------------------------------------ snapshots

    def _profiles(self, users: Sequence[int | str]) -> dict[str, dict[int, dict[str, Any]]]:
        """Snapshot of users -> stored id -> its row as of the day."""
        found: dict[str, dict[int, dict[str, Any]]] = {}
        for source in self.schema.sources:
            if isinstance(source, Snapshot) and source.key == self.schema.exposures.user and self.schema.user.features:
                at = self.plan.snapshot_at(source, self.day)
                if at is None or at not in self.plan.contents[source.name]:
                    found[source.name] = {}
                    continue
                wanted: tuple[Filter, ...] = (Among(((source.key, tuple(users)),)),)
                reader = RawReader(self.schema, {source.name: frozenset({at})}, {source.name: wanted})
                rows = self._read(f"recompute {source.name}", reader, self._units(source.name, [at]))[source.name]
                found[source.name] = {row[USER]: row for row in rows.to_dicts()}
        return found

    def _references(self, log: EventLog) -> set[str]:
        """`snapshot.column` that features, labels and sequences read from the log's rows."""
        schema, read = self.schema, set[str]()
        exposures = log.name == schema.candidates.source
        for feature in schema.candidates.features:
            if isinstance(feature, CrossFeature):
                read |= set(feature.keys) if exposures or log.name in feature.past_logs else set()
                read |= set(feature.past_references(log.name))
            elif exposures:
                read |= set(feature.references())
        for sequence in schema.sequences:
            if any(isinstance(entry, Events) and entry.source == log.name for entry in sequence.events):
                read |= {reference for feature in sequence.features for reference in feature.references()}
                for entry in sequence.events:
                    if isinstance(entry, Events) and entry.source == log.name and entry.where:
                        read |= set(expression.columns(entry.where))
        for label in schema.labels:
            if label.source == log.name:
                read |= {label.value} if label.value else set()
                read |= set(expression.columns(label.where)) if label.where else set()
        return {reference for reference in read if "." in reference}

    def _joined(self, log: EventLog, frame: pl.DataFrame, references: set[str]) -> pl.DataFrame:
        """The frame with the columns of snapshots whose days could all be read, each as of its row's day."""
        by_snapshot: dict[str, list[str]] = {}
        for reference in sorted(references):
            by_snapshot.setdefault(reference.split(".")[0], []).append(reference)
        for name, wanted in by_snapshot.items():
            snapshot = self.schema.source(name)
            if not isinstance(snapshot, Snapshot) or snapshot.key not in log.columns:
                continue
            homes = frame[HOME].unique().to_list()
            days = {home: self.plan.snapshot_at(snapshot, home) for home in homes}
            there = {day for day in days.values() if day is not None and day in self.plan.contents[name]}
            if len(there) < len({day for day in days.values() if day is not None}):
                continue
            if sum(self._rows(name, day) for day in there) > self.budget:
                continue
            keys = tuple(frame[snapshot.key].drop_nulls().unique().to_list())
            reader = RawReader(self.schema, {name: frozenset(there)}, {name: (Among(((snapshot.key, keys),)),)})
            rows = self._read(f"recompute {name}", reader, self._units(name, sorted(there)))[name]
            frame = _with_snapshot(snapshot, frame, rows, days, wanted)
        return frame.filter(pl.Series(~beyond_float32(self.schema, log, frame)))


def _without_busiest(found: pa.Array, staged: pa.Array) -> pa.Array:
    """Users of exposures and of staged samples, those with more than `BUSY` exposures left out."""
    counts = pc.value_counts(found)
    busy = counts.field("values").filter(pc.greater(counts.field("counts"), BUSY))
    users = pa.concat_arrays([found, staged])
    return users.filter(pc.invert(pc.is_in(users, value_set=busy)))


def _with_snapshot(
    snapshot: Snapshot, frame: pl.DataFrame, rows: pl.DataFrame, days: dict[int, int | None], wanted: Sequence[str]
) -> pl.DataFrame:
    """Columns of a snapshot beside the rows of a log, looked up row by row."""
    known = {key: at for at, key in enumerate(zip(rows[HOME].to_list(), rows[snapshot.key].to_list(), strict=True))}
    asked = zip(frame[HOME].to_list(), frame[snapshot.key].to_list(), strict=True)
    found = pl.Series([known.get((days[home], key)) for home, key in asked], dtype=pl.UInt32)
    # A missing row is a null index, which gathers null.
    return frame.with_columns(rows[reference.split(".", 1)[1]].gather(found).alias(reference) for reference in wanted)

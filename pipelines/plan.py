"""What a day of samples is made of, known without making it: which partials it reads, and under which keys.

The key of a partial is a hash of its inputs and declaration, so two plans compare by their keys: a day is stale exactly where a
key differs from the manifest's. `status` and `build` share this one plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from genrank.pipelines.columns import joined_columns, needed
from genrank.pipelines.days import dt_of, moment, whole_days
from genrank.pipelines.documents import Census, Footers, Layout
from genrank.pipelines.labels import logs_of
from genrank.pipelines.reach import reach_of
from genrank.pipelines.sources import LANDED, Partition, census, columns_of, days_present, no_column, read_partition
from genrank.schemas import EventLog, Schema, Snapshot, UserError
from genrank.schemas.base import DAY_MS, parse_duration
from genrank.schemas.digest import digest

BUCKET_ROWS = 200_000
"""Exposures of a day that a bucket is sized for."""
FEWEST_ROWS = 50_000
"""Exposures of a day that a bucket has at least, however many were asked for: what a bucket costs by itself would count below."""
FEWEST_BUCKETS = 4
EVENTS_AN_EXPOSURE = 5
"""Events of histories that take as much of a task's memory as one exposure."""
MANY_BUCKETS = 512
"""Beyond, buckets grow as well as their number: files, tasks and messages between them then grow by the square root of a day."""
LAYOUT, CENSUS, FOOTERS = "layout.json", "census.json", "footers.json"


def bucket_count(rows: int, asked: int | None = None) -> int:
    """Buckets of a day of so many exposures: a power of 2, or at most as many as are asked for."""
    if asked is None:
        buckets = -(-rows // BUCKET_ROWS)
        if buckets > MANY_BUCKETS:
            return 1 << round(math.log2(buckets * MANY_BUCKETS) / 2)
        return max(FEWEST_BUCKETS, 1 << max(0, buckets - 1).bit_length())
    while asked > FEWEST_BUCKETS and rows < asked * FEWEST_ROWS:
        asked = max(FEWEST_BUCKETS, -(-asked // 2))
    return asked


class BuildPlan:
    """Days `first` .. `last` (numbers) of a schema over a data root, as of a moment.

    Raises:
        UserError: the data root lacks a source's folder, or a file doesn't hold what the schema declares.
    """

    def __init__(
        self,
        schema: Schema,
        data: Path | str,
        out: Path,
        first: int,
        last: int,
        as_of: str | None,
        buckets: int | None = None,
    ) -> None:
        self.schema, self.data, self.out, self.first, self.last = schema, data, out, first, last
        self.columns = needed(schema)
        self.present = {source.name: days_present(source, data, out / LANDED) for source in schema.sources}
        newest = max((day for days in self.present.values() for day in days), default=None)
        if newest is None:
            raise UserError(f"--data {data}: no source of schema {schema.name!r} has any day there")
        self.as_of = moment(as_of) if as_of else schema.local_days.start(newest + 1)
        self.horizon = schema.local_days.day(self.as_of - 1) + 1
        """First day not read: partitions are read up to as_of."""
        self._asked_buckets = buckets
        self._partitions: dict[tuple[str, int], Partition] = {}
        self.added_later: dict[tuple[str, str], set[int]] = {}
        """(source, column) -> days read before the column was added; it is missing (null) there."""
        self._notes = out / "partials"

    # ------------------------------------------------------------------ which days matter

    @cached_property
    def reach(self) -> dict[str, tuple[int, int]]:
        """Source -> how many days before and after a day built its rows matter to it."""
        return reach_of(self.schema)

    def window(self, log: str, first: int, last: int) -> range:
        """Days of an event log that samples of first .. last may read."""
        back, ahead = self.reach[log]
        return range(first - back, min(last + ahead + 1, self.horizon))

    def snapshot_at(self, snapshot: Snapshot, day: int) -> int | None:
        """The newest snapshot day at or before `day` that is not too old."""
        oldest = day - parse_duration(snapshot.max_age) // DAY_MS
        return max((d for d in self.present[snapshot.name] if oldest <= d <= day), default=None)

    def snapshots_of(self, snapshot: Snapshot, day: int) -> set[int]:
        """Days of a user snapshot that samples of a day read: the profile's, and those between which attributes change."""
        used: set[int] = set()
        if snapshot.key != self.schema.exposures.user or not self.columns[snapshot.name]:
            return used
        if (at := self.snapshot_at(snapshot, day)) is not None:
            used.add(at)
        if (back := self.reach[snapshot.name][0]) > 0:
            present = self.present[snapshot.name]
            used |= {d for d in present if day - back <= d <= day}
            used |= {max((d for d in present if d < day - back), default=day)} & set(present)
        return used

    @cached_property
    def _joins(self) -> dict[str, list[str]]:
        """Log -> snapshots joined to its rows."""
        logs = [source for source in self.schema.sources if isinstance(source, EventLog)]
        return {log.name: sorted(joined_columns(self.schema, log, self.columns[log.name])) for log in logs}

    @cached_property
    def _joined(self) -> dict[str, dict[int, int]]:
        """Snapshot -> row's day -> the snapshot's day joined to it."""
        since = min(window.start for window in self._windows.values())
        days = range(since, self.horizon)
        return {
            source.name: {day: at for day in days if (at := self.snapshot_at(source, day)) is not None}
            for source in self.schema.sources
            if isinstance(source, Snapshot)
        }

    @cached_property
    def _windows(self) -> dict[str, range]:
        return {
            s.name: self.window(s.name, self.first, self.last) for s in self.schema.sources if isinstance(s, EventLog)
        }

    # ------------------------------------------------------------------ what lies there

    @cached_property
    def landed(self) -> dict[str, frozenset[int]]:
        """Event log -> its days that labels of the days built may lie in and that are there."""
        logs = (source.name for source in self.schema.sources if isinstance(source, EventLog))
        return {log: frozenset(day for day in self.present[log] if day >= self.first) for log in logs}

    def absent_label_days(self, day: int) -> dict[str, list[int]]:
        """Log -> days, over by `as_of`, that labels of a day built should find there and don't.

        Its own day, and later ones up to the log's newest: what follows the newest is yet to come, and labels that reach into it are
        immature.
        """
        absent: dict[str, set[int]] = {}
        local_days = self.schema.local_days
        end = local_days.start(day + 1)
        for label in self.schema.labels:
            for log in logs_of(self.schema, label):
                reached = local_days.day(end + parse_duration(label.window))
                newest = max((d for d in self.present[log] if d < self.horizon), default=day)
                for d in range(day, min(reached, max(day, newest)) + 1):
                    if d not in self.present[log] and local_days.start(d + 1) <= self.as_of:
                        absent.setdefault(log, set()).add(d)
        return {log: sorted(days) for log, days in absent.items()}

    def partition(self, source: EventLog | Snapshot, day: int) -> Partition:
        """One day of a source, its files checked."""
        if (source.name, day) not in self._partitions:
            partition = self._partitions[source.name, day] = self._read(source, day)
            self._require_later(source, partition)
        return self._partitions[source.name, day]

    def _read(self, source: EventLog | Snapshot, day: int) -> Partition:
        return read_partition(source, day, self.present[source.name][day], self._footers.root)

    def _require_later(self, source: EventLog | Snapshot, partition: Partition) -> None:
        """Whether a column that files of a day lack was added later: all files of the newest day have it, none of this day's, of the
        day before or of the oldest.

        Raises:
            UserError: it was not, so nobody knows what it is there.
        """
        for column in sorted({column for file in partition.files for column in file.absent}):
            days = self.present[source.name]
            before = max((day for day in days if day < partition.day), default=partition.day)
            earlier = [partition, *(self._read(source, day) for day in {before, min(days)} - {partition.day})]
            lacking = all(column in file.absent for part in earlier for file in part.files)
            if not lacking or any(column in file.absent for file in self._read(source, max(days)).files):
                file = next(file for file in partition.files if column in file.absent)
                raise no_column(source, column, file.path, columns_of(file.path))
            self.added_later.setdefault((source.name, column), set()).add(partition.day)

    @property
    def partitions(self) -> list[Partition]:
        """Every partition that was looked at for rows of the days."""
        return list(self._partitions.values()) if self.contents else []

    @cached_property
    def _footers(self) -> Footers:
        """What the footers of input files say, kept beside the partials."""
        return Footers.read(self._notes / FOOTERS) or Footers({})

    @cached_property
    def _census(self) -> Census:
        """Days that partitions hold rows of, kept beside the partials where it took a read to learn them."""
        return Census.read(self._notes / CENSUS) or Census({})

    @cached_property
    def contents(self) -> dict[str, dict[int, list[Partition]]]:
        """Source -> day -> the partitions that hold its rows: its own, and later ones with late rows."""
        found: dict[str, dict[int, list[Partition]]] = {}
        for source in self.schema.sources:
            if isinstance(source, EventLog):
                found[source.name] = self._log_contents(source)
            else:
                days = self._snapshot_days(source, self.first, self.last)
                found[source.name] = {day: [self.partition(source, day)] for day in sorted(days)}
        self._keep_census()
        return found

    def _snapshot_days(self, snapshot: Snapshot, first: int, last: int) -> set[int]:
        """Days of a snapshot that samples of first .. last read, themselves or joined to rows of theirs."""
        days = {at for day in range(first, last + 1) for at in self.snapshots_of(snapshot, day)}
        for log in self._windows:
            if snapshot.name in self._joins[log]:
                window = self.window(log, first, last)
                days |= {at for day in window if (at := self.snapshot_at(snapshot, day)) is not None}
        return days

    def _log_contents(self, log: EventLog) -> dict[int, list[Partition]]:
        window = self._windows[log.name]
        late = whole_days(parse_duration(log.lateness))
        found: dict[int, list[Partition]] = {}
        for at in self.present[log.name]:
            if window.start <= at < min(window.stop + late, self.horizon):
                partition = self.partition(log, at)
                for day in sorted({at, *self.days_of(log, partition)}):
                    if day in window:
                        found.setdefault(day, []).append(partition)
        return found

    def days_of(self, log: EventLog, partition: Partition) -> dict[int, int]:
        """Day -> rows of it that a partition holds; together as many as its files' footers count."""
        key = digest(
            [partition.input.hash, log.time, log.time_unit, log.lateness, self.schema.utc_offset, partition.day]
        )
        counted = self._census.root
        if key not in counted or sum(counted[key].values()) != partition.rows:
            counted[key] = census(log, partition, self.schema.local_days)
        return counted[key]

    def rows_of(self, source: str, day: int) -> int:
        """Rows of a day: those that the footers count of its files, and those of its day in other partitions."""
        log = self.schema.source(source)
        partitions = self.contents[source][day]
        if isinstance(log, Snapshot):
            return sum(partition.rows for partition in partitions)
        return sum(self.days_of(log, partition).get(day, 0) for partition in partitions)

    def _keep_census(self) -> None:
        if self._census.root and self.out.is_dir():
            self._census.write(self._notes / CENSUS)
            here = {file.path for partition in self._partitions.values() for file in partition.files}
            Footers({path: footer for path, footer in self._footers.root.items() if path in here}).write(
                self._notes / FOOTERS
            )

    @cached_property
    def buckets(self) -> int:
        """Shares of the users that the days are built by, a task and a file each: by the largest day's exposures, or its histories' events."""
        return bucket_count(self._rows, self._asked_buckets)

    @property
    def divisible(self) -> bool:
        """Whether a build that is asked for more buckets has more."""
        return bucket_count(self._rows, 2 * self.buckets) > self.buckets

    @cached_property
    def _rows(self) -> int:
        return max(map(self._rows_of_day, range(self.first, self.last + 1)))

    def _rows_of_day(self, day: int) -> int:
        """Exposures of a day; where its histories' events take more than these do, so many exposures as they take."""
        own = self.schema.candidates.source
        exposures = self.rows_of(own, day) if day in self.contents[own] else 0
        events = 0
        for log in {entry.source for sequence in self.schema.sequences for entry in sequence.events} & set(
            self._windows
        ):
            events += sum(self.rows_of(log, d) for d in self.window(log, day, day) if d in self.contents[log])
        return max(exposures, events // EVENTS_AN_EXPOSURE)

    # ------------------------------------------------------------------ keys

    @cached_property
    def begun(self) -> int | None:
        """The number of buckets that an earlier release begun the output folder with, by which its partials' keys are made; None in others.

        Raises:
            UserError: the note of it is damaged.
        """
        path = self._notes / LAYOUT
        if not path.is_file():
            return None
        layout = Layout.read(path)
        if layout is None:
            raise UserError(f"{path} is damaged: it should hold the number of buckets; remove {path.parent}")
        return layout.root

    @cached_property
    def keys(self) -> dict[str, dict[int, str]]:
        """Source -> day -> key of its partial; snapshots first, because rows that join them depend on theirs."""
        found: dict[str, dict[int, str]] = {}
        for source in sorted(self.schema.sources, key=lambda source: isinstance(source, EventLog)):
            found[source.name] = {
                day: self._key(source, day, partitions, found) for day, partitions in self.contents[source.name].items()
            }
        return found

    def _key(
        self, source: EventLog | Snapshot, day: int, partitions: Sequence[Partition], known: dict[str, dict[int, str]]
    ) -> str:
        declared = source.model_dump(
            mode="json",
            exclude={"path", "ignore", "description", "max_quarantine_rate", "delay", "max_age", "post_exposure"},
        )
        attributes = []
        if isinstance(source, EventLog):
            for name in self._joins[source.name]:
                at = self._joined[name].get(day)
                attributes.append([name, None if at is None else known[name][at]])
        asked = [column.name for column in self.columns[source.name]]
        candidates = self.schema.candidates.item if source.name == self.schema.candidates.source else None
        inputs = [partition.input.hash for partition in partitions]
        return digest([inputs, declared, asked, attributes, self.begun, self.schema.utc_offset, candidates])

    def joined_to(self, day: int) -> dict[str, int]:
        """Snapshot -> its day that is joined to rows of a day."""
        return {name: at[day] for name, at in self._joined.items() if day in at}

    def inputs_of(self, day: int) -> dict[str, dict[str, str]]:
        """Source -> day -> key of every partial that samples of `day` read."""
        found: dict[str, dict[str, str]] = {}
        for source in self.schema.sources:
            keys = self.keys[source.name]
            days = (
                self._snapshot_days(source, day, day)
                if isinstance(source, Snapshot)
                else self.window(source.name, day, day)
            )
            found[source.name] = {dt_of(d): keys[d] for d in sorted(days) if d in keys}
        return found

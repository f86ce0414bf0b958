"""The day's story: logs become partials, partials become samples, samples pass the gate and are published.

    sources --read--> partials (normalised, deduplicated, bucketed by user)
            --route--> cross features meet their events at the key
            --assemble--> samples of a bucket, day by day
            --gate--> publish

Every step is a pure function of what lies under the data root, the schema and `as_of`; the clock is never asked.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines import cross_features, events, sequences
from pipelines.columns import joined_columns, needed
from pipelines.days import day_number, dt_of, moment, moment_text, start_of, whole_days
from pipelines.engine import Engine, Piece, open_engine
from pipelines.events import Normaliser, ReadUnit
from pipelines.partials import Partial, PartialRef, PartialStore
from pipelines.publish import locked, publish, write_atomically
from pipelines.quality import gate
from pipelines.samples import Assembler
from pipelines.sources import Partition, census, days_present, digest, read_partition
from schemas import EventLog, Schema, Snapshot, UserError
from schemas.base import DAY_MS, parse_duration
from schemas.manifest import Counts, DataFile, SampleManifest

READ_ROWS = 500_000
"""Rows a reading task takes at most (a row group is never split)."""
BUCKET_ROWS = 200_000
"""Exposures of a day a bucket is sized for."""


@dataclass(frozen=True)
class BuildConfig:
    """What `genrank build` is asked."""

    schema: Schema
    data: Path
    out: Path
    first: str
    """First day, YYYY-MM-DD."""
    last: str
    """Last day, included."""
    engine: str = "local"
    """`spark` or `local`."""
    as_of: str | None = None
    """Labels as known at this moment (ISO 8601); default: the end of the newest day any source has."""
    buckets: int | None = None
    """Files a day is written in, and tasks it is built by; fixed by the first build of an output folder."""
    force: bool = False
    """Build again even what is up to date."""
    days_per_job: int = 10
    """Days built together at most; memory grows with it."""


@dataclass
class BuildResult:
    """What was done."""

    days: list[str] = field(default_factory=list)
    """Published now."""
    unchanged: list[str] = field(default_factory=list)
    """Were up to date."""
    samples: int = 0
    candidates: int = 0
    manifests: dict[str, SampleManifest] = field(default_factory=dict)


def build(config: BuildConfig, engine: Engine[Any] | None = None) -> BuildResult:
    """Build and publish samples of every day from `first` to `last`.

    Raises:
        UserError: bad input, a broken invariant, too many quarantined rows, another build at work; nothing of the days
            concerned is published then.
    """
    with locked(config.out):
        owned = engine is None
        runner = engine or open_engine(config.engine)
        try:
            return _Build(config, runner).run()
        finally:
            if owned:
                runner.stop()


class _Build:
    """One run: what it knows, and its steps in order."""

    def __init__(self, config: BuildConfig, engine: Engine[Any]) -> None:
        self.config, self.engine, self.schema = config, engine, config.schema
        self.first, self.last = day_number(config.first, "--from"), day_number(config.last, "--to")
        if self.last < self.first:
            raise UserError(f"--from {config.first} lies after --to {config.last}; swap them")
        self.store = PartialStore(config.out)
        self.columns = needed(self.schema)
        self.present = {source.name: days_present(source, config.data) for source in self.schema.sources}
        newest = max((day for days in self.present.values() for day in days), default=None)
        if newest is None:
            raise UserError(f"--data {config.data}: no source of schema {self.schema.name!r} has any day there")
        self.as_of = moment(config.as_of) if config.as_of else start_of(newest + 1, self.schema.offset_ms)
        self.horizon = -(-(self.as_of + self.schema.offset_ms) // DAY_MS)
        """First day not read: partitions are read up to as_of."""
        self.run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
        self.staging = config.out / "staging" / self.run_id
        self.reach = self._reach()
        self.partitions: dict[tuple[str, int], Partition] = {}
        self.partials: dict[str, dict[int, Partial]] = {source.name: {} for source in self.schema.sources}

    def run(self) -> BuildResult:
        self._check_days()
        shutil.rmtree(self.config.out / "staging", ignore_errors=True)
        try:
            self.buckets = self._bucket_count()
            self._make_partials()
            result = BuildResult()
            days = range(self.first, self.last + 1)
            todo = [day for day in days if self.config.force or not self._up_to_date(day)]
            result.unchanged = [dt_of(day) for day in days if day not in todo]
            for at in range(0, len(todo), self.config.days_per_job):
                self._make_samples(todo[at : at + self.config.days_per_job], result)
            return result
        except OSError as error:
            if error.errno in (28, 122):
                raise UserError(
                    f"--out {self.config.out}: no space left on the disk; free some, nothing was published"
                ) from error
            raise
        finally:
            shutil.rmtree(self.staging, ignore_errors=True)

    # ------------------------------------------------------------------ what is there

    def _check_days(self) -> None:
        exposures = self.present[self.schema.candidates.source]
        for day in range(self.first, self.last + 1):
            if day not in exposures:
                have = f"it has {dt_of(min(exposures))} .. {dt_of(max(exposures))}" if exposures else "it has none"
                raise UserError(
                    f"source {self.schema.candidates.source!r} has no day {dt_of(day)} under {self.config.data}; {have}."
                    " Choose --from and --to among them"
                )
        if self.as_of < start_of(self.last + 1, self.schema.offset_ms):
            raise UserError(
                f"--as-of {moment_text(self.as_of)} lies before the end of --to {self.config.last}; choose a later one"
            )

    def _partition(self, source: EventLog | Snapshot, day: int) -> Partition:
        if (source.name, day) not in self.partitions:
            self.partitions[source.name, day] = read_partition(source, day, self.present[source.name][day])
        return self.partitions[source.name, day]

    def _bucket_count(self) -> int:
        path = self.config.out / "partials" / "layout.json"
        if path.is_file():
            fixed = int(path.read_text())
            if self.config.buckets not in (None, fixed):
                raise UserError(
                    f"--buckets {self.config.buckets}: {self.config.out} was begun with {fixed}; leave it out, or use another --out"
                )
            return fixed
        rows = sum(file.rows for file in self._partition(self.schema.exposures, self.first).files)
        count = self.config.buckets or max(4, 1 << max(0, -(-rows // BUCKET_ROWS) - 1).bit_length())
        write_atomically(path, str(count))
        return count

    def _reach(self) -> dict[str, tuple[int, int]]:
        """Source -> how many days before and after a day built its rows matter to it."""
        schema = self.schema
        back = {source.name: 0 for source in schema.sources}
        ahead = dict(back)
        for found in (sequences.days_back(schema), cross_features.days_back(schema)):
            for name, days in found.items():
                back[name] = max(back[name], days)
        for label in schema.labels:
            if label.source:
                reach = whole_days(parse_duration(label.window)) + 1
                ahead[label.source] = max(ahead[label.source], reach)
                if label.attribution == "last":
                    ahead[schema.candidates.source] = max(ahead[schema.candidates.source], reach)
        return {name: (back[name], ahead[name]) for name in back}

    def _window(self, log: str, first: int, last: int) -> range:
        """Days of an event log that samples of first .. last may read."""
        back, ahead = self.reach[log]
        return range(first - back, min(last + ahead + 1, self.horizon))

    # ------------------------------------------------------------------ partials

    def _make_partials(self) -> None:
        logs = [source for source in self.schema.sources if isinstance(source, EventLog)]
        snapshots = [source for source in self.schema.sources if isinstance(source, Snapshot)]
        windows = {log.name: self._window(log.name, self.first, self.last) for log in logs}
        used = {snapshot.name: self._snapshot_days(snapshot, windows) for snapshot in snapshots}
        self._partials_of(
            {s.name: {day: [self._partition(s, day)] for day in sorted(used[s.name])} for s in snapshots}, {}
        )
        days = range(min(window.start for window in windows.values()), self.horizon)
        joined = {s.name: {day: at for day in days if (at := self._snapshot_at(s, day)) is not None} for s in snapshots}
        contents = {
            log.name: self._content(
                log, [day for day in windows[log.name] if day in self.present[log.name] or self._late_reach(log, day)]
            )
            for log in logs
        }
        self._partials_of(contents, joined)

    def _late_reach(self, log: EventLog, day: int) -> bool:
        late = whole_days(parse_duration(log.lateness))
        return any(later in self.present[log.name] for later in range(day, min(day + late + 1, self.horizon)))

    def _snapshot_at(self, snapshot: Snapshot, day: int) -> int | None:
        """The newest snapshot day at or before `day` that is not too old."""
        oldest = day - parse_duration(snapshot.max_age) // DAY_MS
        return max((d for d in self.present[snapshot.name] if oldest <= d <= day), default=None)

    def _snapshot_days(self, snapshot: Snapshot, windows: dict[str, range]) -> set[int]:
        """Days of a snapshot that are read: joined to rows, or by the samples themselves."""
        used: set[int] = set()
        for log in self.schema.sources:
            if isinstance(log, EventLog) and snapshot.name in joined_columns(self.schema, log, self.columns[log.name]):
                used |= {at for day in windows[log.name] if (at := self._snapshot_at(snapshot, day)) is not None}
        for day in range(self.first, self.last + 1):
            used |= self._sample_snapshots(snapshot, day)
        return used

    def _sample_snapshots(self, snapshot: Snapshot, day: int) -> set[int]:
        """Days of a user snapshot that samples of a day read: the profile's, and those between which attributes change."""
        used: set[int] = set()
        if snapshot.key != self.schema.exposures.user or not self.columns[snapshot.name]:
            return used
        if (at := self._snapshot_at(snapshot, day)) is not None:
            used.add(at)
        if (back := self.reach[snapshot.name][0]) > 0:
            used |= {d for d in self.present[snapshot.name] if day - back <= d <= day}
            used |= {
                d for d in self.present[snapshot.name] if d < day - back and d == self._before(snapshot, day - back)
            }
        return used

    def _before(self, snapshot: Snapshot, day: int) -> int | None:
        return max((d for d in self.present[snapshot.name] if d < day), default=None)

    def _content(self, log: EventLog, days: Sequence[int]) -> dict[int, list[Partition]]:
        """Day -> the partitions that hold rows of it: its own, and later ones with late rows."""
        found: dict[int, list[Partition]] = {day: [] for day in days}
        late = whole_days(parse_duration(log.lateness))
        read = sorted(
            {p for day in days for p in range(day, min(day + late + 1, self.horizon)) if p in self.present[log.name]}
        )
        for at in read:
            partition = self._partition(log, at)
            rows = census(log, partition, self.schema.offset_ms)
            for day in {at, *rows}:
                if day in found:
                    found[day].append(partition)
        return {day: partitions for day, partitions in found.items() if partitions}

    def _partials_of(self, contents: dict[str, dict[int, list[Partition]]], joined: dict[str, dict[int, int]]) -> None:
        """Find or make the partial of every source and day."""
        missing: dict[str, dict[int, str]] = {}
        for name, days in contents.items():
            source = self.schema.source(name)
            for day, partitions in days.items():
                key = self._partial_key(source, day, partitions, joined)
                have = self.store.find(name, day, key)
                if have:
                    self.partials[name][day] = have
                else:
                    missing.setdefault(name, {})[day] = key
        if not missing:
            return
        snapshots = {
            name: {
                day: self.store.ref(self.partials[name][at], at)
                for day, at in at_day.items()
                if at in self.partials[name]
            }
            for name, at_day in joined.items()
        }
        normaliser = Normaliser(
            self.schema,
            self.buckets,
            {name: frozenset(days) for name, days in missing.items()},
            snapshots,
            str(self.staging / "partials"),
        )
        units = []
        for name, days in missing.items():
            partitions = {p.day: p for day in days for p in contents[name][day]}
            units += [unit for p in partitions.values() for unit in _read_units(p)]
        what = ", ".join(missing)
        read = self.engine.map(f"read {what}", units, normaliser.read)
        written = self.engine.collect(
            self.engine.exchange(f"partials of {what}", [read], self.buckets, normaliser.write)
        )
        self._commit_partials(written.get(events.WRITTEN, events.WRITTEN_SCHEMA.empty_table()), missing, contents)

    def _partial_key(
        self, source: EventLog | Snapshot, day: int, partitions: Sequence[Partition], joined: dict[str, dict[int, int]]
    ) -> str:
        inputs = [p.input.hash for p in partitions]
        declared = source.model_dump(mode="json", exclude={"description", "max_quarantine_rate", "delay", "max_age"})
        attributes = []
        if isinstance(source, EventLog):
            for name in sorted(joined_columns(self.schema, source, self.columns[source.name])):
                at = joined.get(name, {}).get(day)
                attributes.append([name, self.partials[name][at].key if at is not None else None])
        asked = [column.name for column in self.columns[source.name]]
        candidates = source.name == self.schema.candidates.source
        return digest([inputs, declared, asked, attributes, self.buckets, self.schema.utc_offset, candidates])

    def _commit_partials(
        self, written: pa.Table, missing: dict[str, dict[int, str]], contents: dict[str, dict[int, list[Partition]]]
    ) -> None:
        rows = written.to_pylist()
        for name, days in missing.items():
            for day, key in days.items():
                own = [row for row in rows if row["source"] == name and row["day"] == day]
                staged = {row["bucket"]: Path(row["path"]) for row in own if not row["reason"] and row["path"]}
                quarantined: dict[str, int] = {}
                for row in own:
                    if row["reason"]:
                        quarantined[row["reason"]] = quarantined.get(row["reason"], 0) + row["rows"]
                partial = Partial(
                    source=name,
                    dt=dt_of(day),
                    key=key,
                    buckets=self.buckets,
                    inputs=tuple(p.input for p in contents[name][day]),
                    files={bucket: f"bucket-{bucket:05d}.parquet" for bucket in sorted(staged)},
                    rows=sum(row["rows"] for row in own if not row["reason"]),
                    duplicates=sum(row["duplicates"] for row in own),
                    quarantined=dict(sorted(quarantined.items())),
                )
                self._keep_quarantine(name, day, key, {row["path"] for row in own if row["reason"]})
                self.store.commit(partial, day, staged)
                self.partials[name][day] = partial

    def _keep_quarantine(self, source: str, day: int, key: str, paths: Iterable[str]) -> None:
        folder = self.config.out / "quarantine" / f"dt={dt_of(day)}" / source
        shutil.rmtree(folder, ignore_errors=True)
        for i, path in enumerate(sorted(paths)):
            folder.mkdir(parents=True, exist_ok=True)
            os.rename(path, folder / f"{key}-{i:05d}.parquet")

    # ------------------------------------------------------------------ samples

    def _inputs_of(self, day: int) -> dict[str, dict[str, str]]:
        """Source -> day -> key of every partial that samples of `day` may read."""
        found: dict[str, dict[str, str]] = {}
        for name, partials in self.partials.items():
            source = self.schema.source(name)
            days = self._window(name, day, day) if isinstance(source, EventLog) else self._sample_snapshots(source, day)
            found[name] = {dt_of(d): partials[d].key for d in sorted(days) if d in partials}
        return found

    def _up_to_date(self, day: int) -> bool:
        folder = self.config.out / "samples" / f"dt={dt_of(day)}"
        try:
            manifest = SampleManifest.read(folder)
        except UserError:
            return False
        return (
            manifest.samples_fingerprint == self.schema.samples_fingerprint
            and self._same_labels(day, moment(manifest.as_of))
            and manifest.partials == self._inputs_of(day)
            and all((folder / file.path).is_file() for file in manifest.files)
        )

    def _same_labels(self, day: int, as_of: int) -> bool:
        """Whether labels as of then are labels as of now: the same moment, or both after the last event that could count."""
        settled = start_of(day + 1, self.schema.offset_ms)
        settled += max(parse_duration(label.window) for label in self.schema.labels)
        settled += max(parse_duration(s.lateness) for s in self.schema.sources if isinstance(s, EventLog)) + DAY_MS
        return as_of == self.as_of or min(as_of, self.as_of) > settled

    def _make_samples(self, days: Sequence[int], result: BuildResult) -> None:
        refs: dict[str, tuple[PartialRef, ...]] = {
            name: tuple(self.store.ref(partial, day) for day, partial in sorted(partials.items()))
            for name, partials in self.partials.items()
        }
        profiles: dict[str, dict[int, PartialRef]] = {}
        for source in self.schema.sources:
            if isinstance(source, Snapshot) and source.key == self.schema.exposures.user:
                for day in days:
                    at = self._snapshot_at(source, day)
                    if at in self.partials[source.name]:
                        profiles.setdefault(source.name, {})[day] = self.store.ref(self.partials[source.name][at], at)
        assembler = Assembler(
            self.schema,
            self.buckets,
            tuple(days),
            refs,
            profiles,
            self.as_of,
            self.run_id,
            str(self.staging / "samples"),
        )
        title = dt_of(days[0]) if len(days) == 1 else f"{dt_of(days[0])} .. {dt_of(days[-1])}"
        routed = self.engine.map(f"route {title}", range(self.buckets), assembler.route)
        answered = self.engine.exchange(f"cross features {title}", [routed], 2 * self.buckets, assembler.meet)
        written = self.engine.collect(
            self.engine.exchange(f"samples {title}", [answered], self.buckets, assembler.assemble)
        )
        if "checks" in written:
            gate(written["checks"], self._quarantine_rates(days))
        rows = written["samples"].to_pylist() if "samples" in written else []
        for day in days:
            manifest = self._publish(day, [row for row in rows if row["day"] == day])
            result.days.append(manifest.dt)
            result.manifests[manifest.dt] = manifest
            result.samples += manifest.samples
            result.candidates += manifest.candidates

    def _quarantine_rates(self, days: Sequence[int]) -> dict[tuple[str, str], tuple[float, float]]:
        rates = {}
        for name, partials in self.partials.items():
            for day in days:
                if day in partials:
                    partial = partials[day]
                    bad = sum(partial.quarantined.values())
                    total = partial.rows + partial.duplicates + bad
                    rates[name, dt_of(day)] = (
                        bad / total if total else 0.0,
                        self.schema.source(name).max_quarantine_rate,
                    )
        return rates

    def _publish(self, day: int, rows: list[dict[str, Any]]) -> SampleManifest:
        staged = self.staging / "publish" / f"dt={dt_of(day)}"
        staged.mkdir(parents=True)
        files = []
        for row in sorted(rows, key=lambda row: row["bucket"]):
            if row["path"]:
                name = f"part-{row['bucket']:05d}.parquet"
                os.rename(row["path"], staged / name)
                files.append(
                    DataFile(
                        path=f"build={self.run_id}/{name}", rows=row["rows"], bytes=row["bytes"], sha256=row["sha256"]
                    )
                )
        of_day = {name: partials[day] for name, partials in self.partials.items() if day in partials}
        counts = Counts(
            rows_in={n: p.rows + p.duplicates + sum(p.quarantined.values()) for n, p in of_day.items()},
            out={n: p.rows for n, p in of_day.items()},
            duplicates={n: p.duplicates for n, p in of_day.items()},
            quarantined={n: p.quarantined for n, p in of_day.items()},
            exposures_down_sampled=sum(row["down_sampled"] for row in rows),
        )
        candidates = sum(row["candidates"] for row in rows)
        expected = counts.out.get(self.schema.candidates.source, 0)
        if candidates + counts.exposures_down_sampled != expected:
            raise UserError(
                f"{dt_of(day)}: {expected} exposures went in and {candidates} candidates came out; nothing was published"
            )
        manifest = SampleManifest(
            schema_name=self.schema.name,
            fingerprint=self.schema.fingerprint,
            samples_fingerprint=self.schema.samples_fingerprint,
            build_id=self.run_id,
            dt=dt_of(day),
            engine=self.engine.name,
            as_of=moment_text(self.as_of),
            files=tuple(files),
            samples=sum(row["rows"] for row in rows),
            candidates=candidates,
            inputs=tuple(i for p in of_day.values() for i in p.inputs),
            counts=counts,
            partials=self._inputs_of(day),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        publish(self.config.out / "samples", manifest, staged)
        return manifest


def _read_units(partition: Partition) -> list[ReadUnit]:
    """Tasks' shares of a partition: whole row groups, about READ_ROWS rows each."""
    units = []
    for file in partition.files:
        groups: list[int] = []
        rows = 0
        for group, size in enumerate(file.row_groups):
            if groups and rows + size > READ_ROWS:
                units.append(ReadUnit(partition.source, partition.day, file.path, tuple(groups)))
                groups, rows = [], 0
            groups.append(group)
            rows += size
        if groups:
            units.append(ReadUnit(partition.source, partition.day, file.path, tuple(groups)))
    return units


__all__ = ["BuildConfig", "BuildResult", "Piece", "build"]

"""The day's story: logs become partials, partials become samples, samples pass the gate and are published.

    sources --read--> partials (normalised, deduplicated, bucketed by user)
            --compact--> blocks (what past days come to)
            --route--> cross features meet their events at the key
            --assemble--> samples of a bucket, day by day
            --gate--> publish

Every step is a pure function of what lies under the data root, the schema and `as_of`; the clock is never asked.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genrank.pipelines import events, samples
from genrank.pipelines.blocks import Reader, Shelf
from genrank.pipelines.config import BuildConfig
from genrank.pipelines.days import day_number, dt_of, moment_text, start_of
from genrank.pipelines.engine import Engine, open_engine
from genrank.pipelines.events import Normaliser, ReadUnit
from genrank.pipelines.partials import Partial, PartialRef, PartialStore
from genrank.pipelines.planner import LANDED, Plan, landed_days
from genrank.pipelines.publish import locked, publish
from genrank.pipelines.quality import gate
from genrank.pipelines.samples import Assembler
from genrank.pipelines.sources import Partition, uri_of
from genrank.pipelines.stats import join_rows, path_of
from genrank.schemas import EventLog, Snapshot, UserError
from genrank.schemas.files import move, write_atomically
from genrank.schemas.manifest import MANIFEST, Counts, DataFile, SampleManifest

READ_ROWS = 500_000
"""Rows a reading task takes at most (a row group is never split)."""


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
        runner = engine or open_engine(config.engine, config.out / "staging")
        try:
            return _Build(config, runner).run()
        finally:
            if owned:
                runner.stop()


class _Build:
    """One run: what it knows, and its steps in order."""

    def __init__(self, config: BuildConfig, engine: Engine[Any]) -> None:
        self.config, self.engine, self.schema = config, engine, config.schema
        self.first, self.last = day_number(config.first), day_number(config.last)
        for source in self.schema.sources:
            uri = uri_of(source, config.data)
            if source.catalog or uri:
                days = landed_days(self.schema, source, self.first, self.last)
                engine.land(source, uri, *days, config.out / LANDED / source.name)
        self.plan = Plan(self.schema, config.data, config.out, self.first, self.last, config.as_of, config.buckets)
        self.store = PartialStore(config.out)
        self.run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
        self.staging = config.out / "staging" / self.run_id
        self.partials: dict[str, dict[int, Partial]] = {source.name: {} for source in self.schema.sources}

    def run(self) -> BuildResult:
        self._check_days()
        shutil.rmtree(self.config.out / "staging", ignore_errors=True)
        try:
            result = BuildResult()
            days = range(self.first, self.last + 1)
            todo = [day for day in days if self.config.force or self.plan.why_stale(day)]
            if todo:
                self._make_partials()
            result.unchanged = [dt_of(day) for day in days if day not in todo]
            for at in range(0, len(todo), self.config.days_per_job):
                self._make_samples(todo[at : at + self.config.days_per_job], result)
            return result
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"--out {self.config.out}: no space left on the disk; free some, nothing was published"
                ) from error
            raise
        finally:
            shutil.rmtree(self.staging, ignore_errors=True)

    # ------------------------------------------------------------------ what is there

    def _check_days(self) -> None:
        exposures = self.plan.present[self.schema.candidates.source]
        for day in range(self.first, self.last + 1):
            if day not in exposures:
                where = f"source {self.schema.candidates.source!r} has no day {dt_of(day)} under {self.config.data}"
                if exposures and min(exposures) < day < max(exposures):
                    raise UserError(
                        f"{where}, though it has days before and after; let it land, or, if nobody was shown anything, write a "
                        "Parquet file without rows there"
                    )
                have = f"it has {dt_of(min(exposures))} .. {dt_of(max(exposures))}" if exposures else "it has none"
                raise UserError(f"{where}; {have}. Choose --from and --to among them")
        if self.plan.as_of < start_of(self.last + 1, self.schema.offset_ms):
            raise UserError(
                f"--as-of {moment_text(self.plan.as_of)} lies before the end of --to {self.config.last}; choose a later one"
            )

    # ------------------------------------------------------------------ partials

    def _make_partials(self) -> None:
        """Find or make the partial of every source and day; snapshots first, because rows join them."""
        plan = self.plan
        write_atomically(self.config.out / "partials" / "layout.json", str(plan.buckets))
        for kind in (Snapshot, EventLog):
            missing: dict[str, dict[int, str]] = {}
            for source in self.schema.sources:
                if isinstance(source, kind):
                    for day, key in plan.keys[source.name].items():
                        if have := self.store.find(source.name, day, key):
                            self.partials[source.name][day] = have
                        else:
                            missing.setdefault(source.name, {})[day] = key
            if missing:
                self._make_missing(missing)

    def _make_missing(self, missing: dict[str, dict[int, str]]) -> None:
        plan = self.plan
        snapshots: dict[str, dict[int, PartialRef]] = {}
        for day in {day for days in missing.values() for day in days}:
            for name, at in plan.joined_to(day).items():
                if at in self.partials[name]:
                    snapshots.setdefault(name, {})[day] = self.store.ref(self.partials[name][at], at)
        wanted = {name: frozenset(days) for name, days in missing.items()}
        normaliser = Normaliser(self.schema, plan.buckets, wanted, snapshots, str(self.staging / "partials"))
        units = []
        for name, days in missing.items():
            partitions = {p.day: p for day in days for p in plan.contents[name][day]}
            units += [unit for partition in partitions.values() for unit in _read_units(partition)]
        what = ", ".join(missing)
        read = self.engine.map(f"read {what}", units, normaliser.read)
        frame = self.engine.exchange(f"partials of {what}", [read], plan.buckets, normaliser.write)
        written = self.engine.collect(frame)
        self._commit_partials(written.get(events.WRITTEN, events.WRITTEN_SCHEMA.empty_table()), missing)

    def _commit_partials(self, written: pa.Table, missing: dict[str, dict[int, str]]) -> None:
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
                    buckets=self.plan.buckets,
                    inputs=tuple(p.input for p in self.plan.contents[name][day]),
                    files={bucket: f"bucket-{bucket:05d}.parquet" for bucket in sorted(staged)},
                    rows=sum(row["rows"] for row in own if not row["reason"]),
                    duplicates=sum(row["duplicates"] for row in own),
                    quarantined=dict(sorted(quarantined.items())),
                    joins=events.joins_of(own),
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

    def _make_samples(self, days: Sequence[int], result: BuildResult) -> None:
        refs: dict[str, tuple[PartialRef, ...]] = {
            name: tuple(self.store.ref(partial, day) for day, partial in sorted(partials.items()))
            for name, partials in self.partials.items()
        }
        profiles: dict[str, dict[int, PartialRef]] = {}
        for source in self.schema.sources:
            if isinstance(source, Snapshot) and source.key == self.schema.exposures.user:
                for day in days:
                    at = self.plan.snapshot_at(source, day)
                    if at in self.partials[source.name]:
                        profiles.setdefault(source.name, {})[day] = self.store.ref(self.partials[source.name][at], at)
        reader = Reader(self.schema, refs)
        # What this day compacts is for the next one, so it isn't worth making unless days follow each other.
        follows = (self.config.out / "samples" / f"dt={dt_of(days[0] - 1)}" / MANIFEST).is_file()
        shelf = Shelf(self.schema, self.config.out, days[0], days[-1], refs, self.plan.keys, make=follows)
        shelf.fill(self.engine, reader, self.plan.buckets, self.staging)
        assembler = Assembler(
            self.schema,
            self.plan.buckets,
            tuple(days),
            reader,
            shelf.readings,
            profiles,
            self.plan.as_of,
            self.run_id,
            str(self.staging / "samples"),
            hot={},
        )
        exposures = self.partials[self.schema.candidates.source]
        if sum(exposures[day].rows for day in days if day in exposures) > samples.HOT_ROWS:
            counted = self.engine.collect(self.engine.map("count keys", range(self.plan.buckets), assembler.count))
            if samples.COUNTED in counted:
                assembler = replace(assembler, hot=samples.hot_keys(counted[samples.COUNTED], self.plan.buckets))
        title = dt_of(days[0]) if len(days) == 1 else f"{dt_of(days[0])} .. {dt_of(days[-1])}"
        routed = self.engine.map(f"route {title}", range(self.plan.buckets), assembler.route)
        answered = self.engine.exchange(f"cross features {title}", [routed], 2 * self.plan.buckets, assembler.meet)
        written = self.engine.collect(
            self.engine.exchange(f"samples {title}", [answered], self.plan.buckets, assembler.assemble)
        )
        if "checks" in written:
            gate(written["checks"], self._quarantine_rates(days))
        rows = written["samples"].to_pylist() if "samples" in written else []
        for day in days:
            self._keep_statistics(day, written)
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

    def _keep_statistics(self, day: int, written: dict[str, pa.Table]) -> None:
        path = path_of(self.config.out, dt_of(day))
        path.parent.mkdir(parents=True, exist_ok=True)
        of_day = written["stats"].filter(pc.equal(written["stats"].column("day"), day)) if "stats" in written else None
        joins = {
            f"{name} → {snapshot}": (found, partials[day].rows)
            for name, partials in self.partials.items()
            if day in partials
            for snapshot, found in partials[day].joins.items()
        }
        table = pa.concat_tables([join_rows(day, joins), *([of_day] if of_day is not None else [])])
        temporary = self.staging / path.name
        self.staging.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, temporary, compression="zstd")
        move(temporary, path)

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
            as_of=moment_text(self.plan.as_of),
            files=tuple(files),
            samples=sum(row["rows"] for row in rows),
            candidates=candidates,
            inputs=tuple(i for p in of_day.values() for i in p.inputs),
            counts=counts,
            partials=self.plan.inputs_of(day),
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

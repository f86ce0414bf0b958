"""The partials that a build needs, found or made; snapshots first, because rows join them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path

from genrank.pipelines.days import dt_of
from genrank.pipelines.engine import AnyEngine, together
from genrank.pipelines.messages import PartialReport
from genrank.pipelines.moving import move_files
from genrank.pipelines.normalize import Normalizer, ReadUnit
from genrank.pipelines.partial_writer import PartialWriter
from genrank.pipelines.partials import Partial, PartialRef, PartialStore
from genrank.pipelines.plan import BuildPlan
from genrank.pipelines.sources import Partition
from genrank.schemas import EventLog, Snapshot, UserError

READ_ROWS = 500_000
"""Rows a reading task takes at most (a row group is never split)."""

Partials = dict[str, dict[int, Partial]]
"""Source -> day -> its partial."""


class PartialsJob:
    """Finds and makes partials; files that tasks write lie below `staging` until they are committed."""

    def __init__(self, plan: BuildPlan, engine: AnyEngine, store: PartialStore, staging: Path) -> None:
        self.plan, self.engine, self.store, self.staging = plan, engine, store, staging
        self.partials: Partials = {source.name: {} for source in plan.schema.sources}

    def run(self) -> Partials:
        """Every partial that the plan names."""
        for kind in (Snapshot, EventLog):
            missing: dict[str, dict[int, str]] = {}
            for source in self.plan.schema.sources:
                if isinstance(source, kind):
                    for day, key in self.plan.keys[source.name].items():
                        if have := self.store.find(source.name, day, key):
                            self.partials[source.name][day] = have
                        else:
                            missing.setdefault(source.name, {})[day] = key
            if missing:
                self._make(missing)
        return self.partials

    def _make(self, missing: dict[str, dict[int, str]]) -> None:
        plan = self.plan
        snapshots: dict[str, dict[int, PartialRef]] = {}
        for day in {day for days in missing.values() for day in days}:
            for name, at in plan.joined_to(day).items():
                if at in self.partials[name]:
                    snapshots.setdefault(name, {})[day] = self.store.ref(self.partials[name][at], at)
        wanted = {name: frozenset(days) for name, days in missing.items()}
        normalizer = Normalizer(plan.schema, plan.buckets, wanted, snapshots)
        layouts = {name: normalizer.layouts[name] for name in missing}
        writer = PartialWriter(str(self.staging / "partials"), layouts)
        units = []
        for name, days in missing.items():
            partitions = {p.day: p for day in days for p in plan.contents[name][day]}
            units += [unit for partition in partitions.values() for unit in read_units(partition)]
        what = ", ".join(missing)
        read = self.engine.map(f"read {what}", together(units, attrgetter("rows"), READ_ROWS), normalizer.read)
        written = self.engine.exchange(f"partials of {what}", [read], plan.buckets, writer.write)
        self._commit(PartialReport.collected(self.engine.collect(written)), missing)

    def _commit(self, reports: list[PartialReport], missing: dict[str, dict[int, str]]) -> None:
        for name, days in missing.items():
            for day, key in days.items():
                own = [report for report in reports if (report.source, report.day) == (name, day)]
                good = [report for report in own if not report.reason]
                bad = [report for report in own if report.reason]
                staged = {report.bucket: Path(report.path) for report in good if report.path}
                partial = Partial(
                    source=name,
                    dt=dt_of(day),
                    key=key,
                    buckets=self.plan.buckets,
                    inputs=tuple(partition.input for partition in self.plan.contents[name][day]),
                    files={bucket: f"bucket-{bucket:05d}.parquet" for bucket in sorted(staged)},
                    sha256={report.bucket: report.sha256 for report in good if report.path},
                    rows=sum(report.rows for report in good),
                    duplicates=sum(report.duplicates for report in own),
                    quarantined=_total((report.reason, report.rows) for report in bad),
                    joins=_total(join for report in own for join in report.joins.items()),
                )
                require_every_row(partial, self.plan.rows_of(name, day))
                self._keep_quarantine(name, day, key, {report.path for report in bad})
                self.store.commit(self.engine, partial, day, staged)
                self.partials[name][day] = partial

    def _keep_quarantine(self, source: str, day: int, key: str, paths: Iterable[str]) -> None:
        folder = self.plan.out / "quarantine" / f"dt={dt_of(day)}" / source
        shutil.rmtree(folder, ignore_errors=True)
        moves = [(Path(path), folder / f"{key}-{i:05d}.parquet") for i, path in enumerate(sorted(paths))]
        if moves:
            folder.mkdir(parents=True)
            move_files(self.engine, moves)


def require_every_row(partial: Partial, rows: int) -> None:
    """Whether each row of a day that its files' footers count is kept, a duplicate or quarantined.

    Raises:
        UserError: some are none of these.
    """
    if partial.rows_in != rows:
        raise UserError(
            f"source {partial.source!r}: {partial.dt} has {rows} rows by its files' footers; {partial.rows} kept, {partial.duplicates}"
            f" duplicates and {sum(partial.quarantined.values())} quarantined make {partial.rows_in}; nothing was published."
            " If its files changed meanwhile, build again; else report it as a bug, with the files"
        )


def _total(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for name, count in counts:
        total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))


def read_units(partition: Partition) -> list[ReadUnit]:
    """A partition in pieces: whole row groups of one file, about `READ_ROWS` rows each."""
    units = []
    for file in partition.files:
        groups: list[int] = []
        rows = 0
        for group, size in enumerate(file.row_groups):
            if groups and rows + size > READ_ROWS:
                units.append(ReadUnit(partition.source, partition.day, file.path, tuple(groups), rows))
                groups, rows = [], 0
            groups.append(group)
            rows += size
        if groups:
            units.append(ReadUnit(partition.source, partition.day, file.path, tuple(groups), rows))
    return units

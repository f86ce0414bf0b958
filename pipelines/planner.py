"""What a day of samples is made of, told without making it: which partials it reads, and under which keys.

The key of a partial is a hash of its inputs and declaration, so two plans compare by their keys: a day is stale exactly where a
key differs from the manifest's. `status` and `build` share this one plan.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from genrank.pipelines import cross_features, sequences
from genrank.pipelines.blocks import leftovers
from genrank.pipelines.columns import joined_columns, needed
from genrank.pipelines.days import day_number, dt_of, moment, moment_text, start_of, whole_days
from genrank.pipelines.publish import locked
from genrank.pipelines.sources import Partition, census, days_present, read_partition
from genrank.schemas import EventLog, Schema, Snapshot, UserError
from genrank.schemas.base import DAY_MS, parse_duration
from genrank.schemas.digest import digest
from genrank.schemas.files import write_atomically
from genrank.schemas.manifest import MANIFEST, SampleManifest, sample_days

BUCKET_ROWS = 200_000
"""Exposures of a day that a bucket is sized for."""


LANDED = "landed"
"""Where copies of catalog tables and of what lies at URIs are, below the output."""


def reach_of(schema: Schema) -> dict[str, tuple[int, int]]:
    """Source -> how many days before and after a day built its rows matter to it."""
    back = {source.name: 0 for source in schema.sources}
    ahead = dict(back)
    for name, days in cross_features.days_back(schema).items():
        back[name] = max(back[name], days)
    for sequence in schema.sequences:
        for entry in sequence.events:
            days = sequences.days_back(schema, sequence, schema.source(entry.source))
            back[entry.source] = max(back[entry.source], days)
    for label in schema.labels:
        if label.source:
            reach = whole_days(parse_duration(label.window)) + 1
            ahead[label.source] = max(ahead[label.source], reach)
            if label.attribution == "last":
                exposures = schema.candidates.source
                ahead[exposures] = max(ahead[exposures], reach)
    return {name: (back[name], ahead[name]) for name in back}


def landed_days(schema: Schema, source: EventLog | Snapshot, first: int, last: int) -> tuple[str, str]:
    """The days of a source read through Spark that samples of first .. last may read, late rows and older snapshots included."""
    if isinstance(source, EventLog):
        back, ahead = reach_of(schema)[source.name]
        return dt_of(first - back), dt_of(last + ahead + whole_days(parse_duration(source.lateness)))
    back = max(back for back, _ in reach_of(schema).values())
    return dt_of(first - back - whole_days(parse_duration(source.max_age)) - 1), dt_of(last)


class Plan:
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
        self.as_of = moment(as_of) if as_of else start_of(newest + 1, schema.offset_ms)
        self.horizon = -(-(self.as_of + schema.offset_ms) // DAY_MS)
        """First day not read: partitions are read up to as_of."""
        self._asked_buckets = buckets
        self._partitions: dict[tuple[str, int], Partition] = {}
        self._census: dict[str, dict[str, int]] | None = None

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

    def partition(self, source: EventLog | Snapshot, day: int) -> Partition:
        """One day of a source, its files checked."""
        if (source.name, day) not in self._partitions:
            path = self.present[source.name][day]
            self._partitions[source.name, day] = read_partition(source, day, path, self._footers)
        return self._partitions[source.name, day]

    @cached_property
    def _footers(self) -> dict[str, Any]:
        """What the footers of input files told, kept beside the partials."""
        return _remembered(self.out / "partials" / "footers.json")

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
                for day in sorted({at, *self._rows_by_day(log, partition)}):
                    if day in window:
                        found.setdefault(day, []).append(partition)
        return found

    def _rows_by_day(self, log: EventLog, partition: Partition) -> set[int]:
        """Days a partition holds rows of; what it took a read to learn is kept beside the partials."""
        if self._census is None:
            self._census = _remembered(self.out / "partials" / "census.json")
        key = digest(
            [partition.input.hash, log.time, log.time_unit, log.lateness, self.schema.utc_offset, partition.day]
        )
        if key not in self._census:
            rows = census(log, partition, self.schema.offset_ms)
            self._census[key] = {str(day): count for day, count in rows.items()}
        return {int(day) for day in self._census[key]}

    def _keep_census(self) -> None:
        if self._census and self.out.is_dir():
            write_atomically(self.out / "partials" / "census.json", json.dumps(self._census))
            here = {file.path for partition in self._partitions.values() for file in partition.files}
            footers = {path: told for path, told in self._footers.items() if path in here}
            write_atomically(self.out / "partials" / "footers.json", json.dumps(footers))

    @cached_property
    def buckets(self) -> int:
        """Files of a partial: fixed by the first build of an output folder."""
        path = self.out / "partials" / "layout.json"
        if path.is_file():
            try:
                fixed = int(path.read_text())
            except ValueError:
                raise UserError(
                    f"{path} is damaged: it should hold the number of buckets; remove {path.parent}"
                ) from None
            if self._asked_buckets not in (None, fixed):
                raise UserError(
                    f"--buckets {self._asked_buckets}: {self.out} was begun with {fixed}; leave it out, or use another --out"
                )
            return fixed
        days = self.present[self.schema.candidates.source]
        rows = sum(f.rows for f in self.partition(self.schema.exposures, self.first).files) if self.first in days else 0
        return self._asked_buckets or max(4, 1 << max(0, -(-rows // BUCKET_ROWS) - 1).bit_length())

    # ------------------------------------------------------------------ keys

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
            mode="json", exclude={"path", "description", "max_quarantine_rate", "delay", "max_age", "post_exposure"}
        )
        attributes = []
        if isinstance(source, EventLog):
            for name in self._joins[source.name]:
                at = self._joined[name].get(day)
                attributes.append([name, None if at is None else known[name][at]])
        asked = [column.name for column in self.columns[source.name]]
        candidates = self.schema.candidates.item if source.name == self.schema.candidates.source else None
        inputs = [partition.input.hash for partition in partitions]
        return digest([inputs, declared, asked, attributes, self.buckets, self.schema.utc_offset, candidates])

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

    def why_stale(self, day: int) -> str | None:
        """Why the published samples of a day are not what a build would publish; None where they are."""
        folder = self.out / "samples" / f"dt={dt_of(day)}"
        try:
            manifest = SampleManifest.read(folder)
        except UserError:
            return "its manifest is missing or damaged"
        if manifest.samples_fingerprint != self.schema.samples_fingerprint:
            return "the schema's samples changed (see genrank schema diff)"
        gone = [file.path for file in manifest.files if not (folder / file.path).is_file()]
        if gone:
            return f"{gone[0]} is missing"
        now = self.inputs_of(day)
        changed = [
            f"{source} {dt}"
            for source in sorted(now)
            for dt in sorted(now[source].keys() | manifest.partials.get(source, {}).keys())
            if now[source].get(dt) != manifest.partials.get(source, {}).get(dt)
        ]
        if changed:
            return f"changed since: {', '.join(changed[:4])}{' ...' if len(changed) > 4 else ''}"
        if not self._same_labels(day, moment(manifest.as_of)):
            return f"labels are as of {manifest.as_of}, now {moment_text(self.as_of)}"
        return None

    def _same_labels(self, day: int, as_of: int) -> bool:
        """Whether labels as of then are labels as of now: the same moment, or both after the last event that could count."""
        settled = start_of(day + 1, self.schema.offset_ms)
        settled += max(parse_duration(label.window) for label in self.schema.labels)
        settled += max(parse_duration(s.lateness) for s in self.schema.sources if isinstance(s, EventLog)) + DAY_MS
        return as_of == self.as_of or min(as_of, self.as_of) > settled


def _remembered(path: Path) -> dict[str, Any]:
    """What a file beside the partials spares reading again; empty where it is missing or damaged."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found


# ---------------------------------------------------------------------- genrank status


@dataclass(frozen=True)
class DayStatus:
    """One day: what is published, and whether it is what a build would publish."""

    dt: str
    state: str
    """`up to date`, `stale`, `missing` (inputs are there, samples are not) or `no inputs` (published, its exposures are gone)."""
    reason: str = ""
    samples: int = 0
    candidates: int = 0
    fingerprint: str = ""
    as_of: str = ""
    quarantined: int = 0


def status(schema: Schema, data: Path | str, out: Path, as_of: str | None = None) -> list[DayStatus]:
    """Every day that has exposures under `data` or samples under `out`.

    Raises:
        UserError: as `Plan`.
    """
    out = Path(out)
    published = {day_number(dt) for dt in sample_days(out / "samples")}
    present = days_present(schema.exposures, data, out / LANDED)
    days = sorted(published | set(present))
    if not days:
        return []
    plan = Plan(schema, data, out, days[0], days[-1], as_of)
    found = []
    for day in days:
        if day not in published:
            found.append(DayStatus(dt_of(day), "missing"))
            continue
        reason = plan.why_stale(day) if day in present else "its exposures are gone"
        try:
            manifest = SampleManifest.read(out / "samples" / f"dt={dt_of(day)}")
        except UserError:
            found.append(DayStatus(dt_of(day), "stale", reason or ""))
            continue
        state = "no inputs" if day not in present else "stale" if reason else "up to date"
        quarantined = sum(n for reasons in manifest.counts.quarantined.values() for n in reasons.values())
        found.append(
            DayStatus(
                manifest.dt,
                state,
                reason or "",
                manifest.samples,
                manifest.candidates,
                manifest.fingerprint,
                manifest.as_of,
                quarantined,
            )
        )
    return found


def print_status(days: Sequence[DayStatus]) -> None:
    """A table in the terminal, then each reason with the days it holds for."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from genrank.schemas.console import print_whole

    colours = {"up to date": "green", "stale": "yellow", "missing": "red", "no inputs": "magenta"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("day", "state", "samples", "candidates", "quarantined", "schema"):
        right = heading in ("samples", "candidates", "quarantined")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    reasons: dict[str, list[str]] = {}
    for day in days:
        state = f"[{colours[day.state]}]{day.state}[/]"
        numbers = [f"{n:,}" if day.fingerprint else "" for n in (day.samples, day.candidates, day.quarantined)]
        table.add_row(day.dt, state, *numbers, day.fingerprint)
        if day.reason:
            reasons.setdefault(day.reason, []).append(day.dt)
    console = Console(highlight=False)
    print_whole(table, console)
    for reason, dts in reasons.items():
        console.print(f"{_spans(dts)}: {reason}", soft_wrap=True)
    if todo := [day.dt for day in days if day.state in ("stale", "missing")]:
        told = f"{len(todo)} of {len(days)} days to build: genrank build --from {todo[0]} --to {todo[-1]}"
        console.print(f"{told} (it leaves what is up to date)", soft_wrap=True)


def _spans(dts: Sequence[str]) -> str:
    """`2026-01-01 to 2026-01-04, 2026-01-06`."""
    spans: list[list[str]] = []
    for dt in dts:
        if spans and day_number(dt) == day_number(spans[-1][-1]) + 1:
            spans[-1][1:] = [dt]
        else:
            spans.append([dt])
    return ", ".join(" to ".join(span) for span in spans)


# ---------------------------------------------------------------------- genrank clean


@dataclass
class Cleaned:
    """What `clean` removed (or would)."""

    paths: list[Path] = field(default_factory=list)
    bytes: int = 0
    dry_run: bool = False


def clean(out: Path, dry_run: bool = False) -> Cleaned:
    """Remove what no manifest points to: replaced builds, partials of no published day and blocks of such, leftovers of killed builds.

    Raises:
        UserError: there is no such folder, or a build is writing to it.
    """
    out = Path(out)
    if not out.is_dir():
        raise UserError(f"--out {out}: there is no such folder; give the --out folder of `genrank build`")
    with locked(out):
        removed = Cleaned(dry_run=dry_run)
        used: set[tuple[str, str, str]] = set()
        for dt in sample_days(out / "samples"):
            day = out / "samples" / f"dt={dt}"
            manifest = SampleManifest.read(day)
            used |= {(s, d, key) for s, keys in manifest.partials.items() for d, key in keys.items()}
            removed.paths += [build for build in day.glob("build=*") if build.name != f"build={manifest.build_id}"]
        removed.paths += [day for day in (out / "samples").glob("dt=*") if not (day / MANIFEST).is_file()]
        for folder in (out / "partials").glob("*/dt=*/*"):
            if (folder.parts[-3], folder.parent.name.removeprefix("dt="), folder.name) not in used:
                removed.paths.append(folder)
        removed.paths += leftovers(out / "blocks", used)
        removed.paths += list((out / "staging").glob("*"))
        for path in removed.paths:
            removed.bytes += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            if not dry_run:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return removed


def print_cleaned(cleaned: Cleaned) -> None:
    """What was removed, in the terminal."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    verb = "would remove" if cleaned.dry_run else "removed"
    for path in cleaned.paths:
        console.print(f"{verb} {path}")
    console.print(
        f"{len(cleaned.paths)} folders, {cleaned.bytes / 1e6:,.1f} MB" if cleaned.paths else "nothing to clean"
    )

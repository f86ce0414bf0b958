"""A build from beginning to end: logs become partials, partials become samples, samples pass the gate and are published.

    sources --normalize--> partials (normalized, deduplicated, bucketed by user)
            --compact--> what past days come to
            --route--> cross features meet their events at the key
            --assemble--> samples of a bucket, day by day
            --gate--> publish

Every step is a pure function of what lies under the data root, the schema and `as_of`; the clock is never asked.
"""

from __future__ import annotations

import errno
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from genrank.pipelines.config import BuildConfig
from genrank.pipelines.days import day_number, dt_of, moment_text
from genrank.pipelines.engine import AnyEngine
from genrank.pipelines.engine_factory import BuildEngine
from genrank.pipelines.gate.judge import Gate
from genrank.pipelines.labels import logs_of
from genrank.pipelines.memory import freed_memory_kept
from genrank.pipelines.partials import PartialStore
from genrank.pipelines.partials_job import PartialsJob
from genrank.pipelines.plan import BuildPlan
from genrank.pipelines.publish import settle
from genrank.pipelines.reach import landed_days
from genrank.pipelines.samples_job import SamplesJob
from genrank.pipelines.sources import LANDED, require_all_read, uri_of
from genrank.pipelines.staleness import why_stale
from genrank.schemas import UserError
from genrank.schemas.console import logger
from genrank.schemas.lock import locked
from genrank.schemas.manifest import SampleManifest


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

    def add(self, manifest: SampleManifest) -> None:
        """Count a day that was published."""
        self.days.append(manifest.dt)
        self.manifests[manifest.dt] = manifest
        self.samples += manifest.samples
        self.candidates += manifest.candidates


def build(config: BuildConfig, engine: AnyEngine | None = None) -> BuildResult:
    """Build and publish samples of every day from `first` to `last`.

    Raises:
        UserError: bad input, a broken invariant, too many quarantined rows, another build at work that isn't waited for; nothing of the days
            concerned is published then.
    """
    with (
        locked(config.out, wait=config.wait),
        freed_memory_kept(),
        BuildEngine(config.engine, config.out / "staging", engine) as opened,
    ):
        return _run(config, opened)


def _run(config: BuildConfig, engine: BuildEngine) -> BuildResult:
    first, last = day_number(config.first), day_number(config.last)
    _ingest(config, engine, first, last)
    plan = BuildPlan(config.schema, config.data, config.out, first, last, config.as_of, config.buckets)
    _check_days(config, plan)
    require_all_read(config.schema, config.data, plan.partitions)
    for (source, column), lacking in sorted(plan.added_later.items()):
        logger.warning(
            'source %r: column %r was added after %s; it is missing (null) there, unless defaults={"%s": ...} says what it was',
            source,
            column,
            dt_of(max(lacking)),
            column,
        )
    shutil.rmtree(config.out / "staging", ignore_errors=True)
    settle(config.out / "samples")
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    staging = config.out / "staging" / run_id
    result = BuildResult()
    try:
        _build_days(config, engine, plan, staging, run_id, result)
        return result
    except UserError as error:
        if not result.days:
            raise
        raise UserError(f"{error} ({_published(result)})") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"--out {config.out}: no space left on the disk; free some and give the command again ({_published(result)})"
            ) from error
        raise
    except MemoryError as error:
        raise UserError(_out_of_memory(config, plan, result)) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _published(result: BuildResult) -> str:
    """Which days are there although the build failed."""
    if not result.days:
        return "nothing was published"
    return f"published before: {', '.join(result.days)}"


def _out_of_memory(config: BuildConfig, plan: BuildPlan, result: BuildResult) -> str:
    remedies = [f"more --buckets than {plan.buckets}"] if plan.divisible else []
    remedies += [f"fewer --days-per-job than {config.days_per_job}"] if config.days_per_job > 1 else []
    return (
        f"--out {config.out}: out of memory; a task's memory follows the rows of a bucket of users: use"
        f" {' or '.join(remedies) or 'more memory'} ({_published(result)})"
    )


def _build_days(
    config: BuildConfig, engine: BuildEngine, plan: BuildPlan, staging: Path, run_id: str, result: BuildResult
) -> None:
    days = range(plan.first, plan.last + 1)
    todo = [day for day in days if config.force or why_stale(plan, day)]
    _check_labels(config, plan, todo)
    _warn_of_copies(config, plan, todo)
    result.unchanged = [dt_of(day) for day in days if day not in todo]
    if todo:
        runner = engine.to_build(sum(plan.rows_of(config.schema.candidates.source, day) for day in todo))
        gate = Gate(plan, runner, config.recompute_users, config.allow_drift)
        store = PartialStore(config.out)
        partials = PartialsJob(plan, runner, store, staging).run()
        job = SamplesJob(plan, runner, store, partials, staging, run_id, gate)
        for at in range(0, len(todo), config.days_per_job):
            for manifest in job.run(todo[at : at + config.days_per_job]):
                result.add(manifest)


def _ingest(config: BuildConfig, engine: BuildEngine, first: int, last: int) -> None:
    """Copy what only Spark reads to where the build reads files."""
    for source in config.schema.sources:
        uri = uri_of(source, config.data)
        if source.catalog or uri:
            days = landed_days(config.schema, source, first, last)
            engine.to_ingest(source.name).ingest(source, uri, *days, config.out / LANDED / source.name)


def _check_days(config: BuildConfig, plan: BuildPlan) -> None:
    exposures = plan.present[config.schema.candidates.source]
    for day in range(plan.first, plan.last + 1):
        if day not in exposures:
            where = f"source {config.schema.candidates.source!r} has no day {dt_of(day)} under {config.data}"
            if exposures and min(exposures) < day < max(exposures):
                raise UserError(
                    f"{where}, though it has days before and after; let it land, or, if nobody was shown anything, write a "
                    "Parquet file without rows there"
                )
            have = f"it has {dt_of(min(exposures))} .. {dt_of(max(exposures))}" if exposures else "it has none"
            raise UserError(f"{where}; {have}. Choose --from and --to among them")
    if plan.as_of < config.schema.local_days.start(plan.last + 1):
        raise UserError(
            f"--as-of {moment_text(plan.as_of)} lies before the end of --to {config.last}; choose a later one"
        )


def _check_labels(config: BuildConfig, plan: BuildPlan, days: Sequence[int]) -> None:
    """Whether the labels' logs have the days that labels of the days built are matched in."""
    absent: dict[str, set[int]] = {}
    for day in days:
        for log, days_of_log in plan.absent_label_days(day).items():
            absent.setdefault(log, set()).update(days_of_log)
    for log, lacking in absent.items():
        shown = ", ".join(dt_of(day) for day in sorted(lacking)[:5]) + (" ..." if len(lacking) > 5 else "")
        labels = ", ".join(label.name for label in config.schema.labels if log in logs_of(config.schema, label))
        missing = f"source {log!r} has no day {shown} under {config.data}, which labels {labels} are read from"
        if not config.allow_missing:
            raise UserError(
                f"{missing}; let it land, or, if nothing happened, write a Parquet file without rows there, or give"
                " --allow-missing: labels that reach into it get weight 0"
            )
        logger.warning("%s: they get weight 0 where they reach into it (--allow-missing)", missing)


def _warn_of_copies(config: BuildConfig, plan: BuildPlan, days: Sequence[int]) -> None:
    """Say which days' exposures are all of another day, as where one day's files landed twice."""
    log = config.schema.exposures
    for day in days:
        partition = plan.partition(log, day)
        rows = sum(file.rows for file in partition.files)
        of = sorted(plan.days_of(log, partition))
        if rows and day not in of:
            logger.warning(
                "source %r: none of the %d rows in %s is of that day; all are of %s: did another day's files land there?",
                log.name,
                rows,
                dt_of(day),
                ", ".join(map(dt_of, of)),
            )

"""A job's staged days before the gate: counted from their files, recomputed for a few users, compared with the days before, judged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from genrank.pipelines.days import day_number, dt_of
from genrank.pipelines.engine import AnyEngine
from genrank.pipelines.gate import data_docs
from genrank.pipelines.gate.compare import Comparison, Leaf
from genrank.pipelines.gate.data_docs import FOLDER, PAGE, PUBLISHED, REFUSED
from genrank.pipelines.gate.drift import Drift, drifts
from genrank.pipelines.gate.expectations import Between, Count, Suite, Verdict
from genrank.pipelines.gate.invariants import INVARIANTS
from genrank.pipelines.gate.raw_log import stored_id
from genrank.pipelines.gate.reading import RawDay
from genrank.pipelines.gate.staged import StagedReader
from genrank.pipelines.gate.users import below
from genrank.pipelines.messages import LeafSummary, SampleReport, StagedReport
from genrank.pipelines.plan import BuildPlan
from genrank.pipelines.sample_columns import USER_ID
from genrank.pipelines.sample_statistics import Summary, merge, path_of, read
from genrank.schemas import UserError
from genrank.schemas.console import logger
from genrank.schemas.files import write_atomically
from genrank.schemas.manifest import sample_days

COUNTS, RECOMPUTED, QUARANTINE, DRIFT = "counts", "recomputed", "quarantine_excess", "drift"
NOTES = INVARIANTS | {
    COUNTS: "files hold what was written to them, and each exposure is a candidate or was down-sampled",
    RECOMPUTED: "samples of a few users are what the raw log gives, worked out by other code",
    QUARANTINE: "no source has a larger share of quarantined rows than its max_quarantine_rate",
    DRIFT: "rows, label rates and features lie within the schema's stop limits of the days before",
}
REPORTED = 5
"""Findings that a message names at most."""


class QuarantineRate(NamedTuple):
    """Share of a source's rows of one day that were quarantined, and the schema's limit."""

    source: str
    dt: str
    rate: float
    limit: float
    reasons: Mapping[str, int]
    """Reason -> rows."""

    @property
    def why(self) -> str:
        """The most frequent reasons, with their rows."""
        worst = sorted(self.reasons.items(), key=lambda reason: (-reason[1], reason[0]))
        more = f" and {len(worst) - 3} more reasons" if len(worst) > 3 else ""
        return ", ".join(f"{rows:,} {reason}" for reason, rows in worst[:3]) + more

    @property
    def excess(self) -> float:
        """By how much the limit is passed."""
        return max(0.0, self.rate - self.limit)


class Expected(NamedTuple):
    """What a day must hold, by the partials it is made of."""

    exposures: int
    rates: tuple[QuarantineRate, ...]


@dataclass
class DayFindings:
    """What was found of one day."""

    files: list[StagedReport] = field(default_factory=list)
    summaries: list[LeafSummary] = field(default_factory=list)
    miscounts: list[str] = field(default_factory=list)
    recomputed: dict[str, Leaf] = field(default_factory=dict)
    users: int = 0
    drifts: list[Drift] = field(default_factory=list)


@dataclass(frozen=True)
class Gate:
    """Judges the days of one job."""

    plan: BuildPlan
    engine: AnyEngine
    users: int
    """How many users of a day are recomputed."""
    allow_drift: bool = False

    def judge(
        self,
        days: Sequence[int],
        files: Sequence[SampleReport],
        expected: Mapping[int, Expected],
        joins: Sequence[LeafSummary],
    ) -> dict[int, DayFindings]:
        """What was found of each day, all of them fit to be published.

        Args:
            files: what tasks say they wrote; what they hold is read back.
            joins: summaries that aren't of a file.

        Raises:
            UserError: a day isn't; the message names what, where, and what to do.
        """
        found = self._staged(days, files)
        for day in days:
            found[day].summaries += [summary for summary in joins if summary.day == day]
            found[day].miscounts += _miscounts(day, files, found[day], expected[day])
            self._drift(day, found)
        self._decide(days, found, expected)
        return found

    # ------------------------------------------------------------------ counting

    def _staged(self, days: Sequence[int], files: Sequence[SampleReport]) -> dict[int, DayFindings]:
        """Every staged file read back; the samples of the users drawn are compared at once."""
        rows = {day: sum(file.rows for file in files if file.day == day) for day in days}
        drawn = {day: below(rows[day], self.users) for day in days if self.users and rows[day]}
        plan = self.plan
        reader = StagedReader(plan.schema, plan.as_of, plan.landed, plan.buckets, drawn)
        there = [file for file in files if file.path]
        tables = self.engine.collect(self.engine.map("check samples", there, reader.read)) if there else {}
        reports, summaries = StagedReport.collected(tables), LeafSummary.collected(tables)
        found = {}
        for day in days:
            found[day] = DayFindings(
                [report for report in reports if report.day == day],
                [summary for summary in summaries if summary.day == day],
            )
            if day in drawn:
                self._recompute(day, drawn[day], tables.get(StagedReader.tag(day)), found[day])
        return found

    def _recompute(self, day: int, drawn: int, samples: pa.Table | None, found: DayFindings) -> None:
        if any(report.broken["contract"] or report.broken["lengths"] for report in found.files):
            return  # Its samples can't be read value by value; the day stops anyway.
        name = self.plan.schema.exposures.columns[self.plan.schema.exposures.user]
        type_ = pa.string() if name == "string" else pa.int64()
        staged = pa.array([], type_) if samples is None else samples.column(USER_ID).combine_chunks().unique()
        rows = RawDay(self.plan, self.engine, day).read(drawn, staged, self.users)
        by_user: dict[int, list[dict[str, object]]] = {user: [] for user in rows.users}
        if samples is not None:
            wanted = samples.filter(
                pc.is_in(samples.column(USER_ID), value_set=pa.array(list(rows.users.values()), type_))
            )
            for sample in wanted.to_pylist():
                by_user.setdefault(stored_id(sample[USER_ID]), []).append(sample)
        comparison = Comparison(rows.raw)
        for user in rows.users:
            comparison.user(user, by_user[user], rows.crossed, rows.exposures)
        found.recomputed, found.users = comparison.leaves, comparison.users
        values = sum(leaf.compared for leaf in comparison.leaves.values())
        logger.info("%s: %d values of %d users recomputed from the raw log", dt_of(day), values, comparison.users)

    def _drift(self, day: int, found: Mapping[int, DayFindings]) -> None:
        limits, out = self.plan.schema.drift, self.plan.out
        known: dict[int, Mapping[str, Summary] | None] = {d: merge(found[d].summaries) for d in found if d < day}
        for dt in sample_days(out / "samples"):
            number = day_number(dt)
            if number < day and number not in known and path_of(out, dt).is_file():
                known[number] = None  # read below, if it is one of the nearest
        nearest = sorted(known)[-limits.days :]
        before = [merge(read(out, dt_of(d))) if (own := known[d]) is None else own for d in nearest]
        found[day].drifts = list(drifts(limits, merge(found[day].summaries), before))

    # ------------------------------------------------------------------ deciding

    def _decide(self, days: Sequence[int], found: Mapping[int, DayFindings], expected: Mapping[int, Expected]) -> None:
        rows = [row for day in days for row in self._frame(found[day], expected[day])]
        name = f"{self.plan.schema.name} {dt_of(days[0])}" + (f" to {dt_of(days[-1])}" if len(days) > 1 else "")
        suite = Suite(name, tuple(Between(column, 0.0, 0.0, notes) for column, notes in NOTES.items()))
        verdict = suite.judge(rows)
        for day in days:
            self._warn(day, found[day])
        if verdict.failed:
            refused = [self._keep(day, REFUSED, verdict) for day in days if self._reasons(found[day], expected[day])]
            for folder in refused:
                data_docs.write_page(folder)
            raise UserError(self._message(days, found, expected, [folder / PAGE for folder in refused]))
        for day in days:
            shutil.rmtree(self.plan.out / FOLDER / f"dt={dt_of(day)}" / REFUSED, ignore_errors=True)
            self._keep(day, PUBLISHED, verdict)

    def _frame(self, found: DayFindings, expected: Expected) -> Iterator[dict[str, Count]]:
        for report in found.files:
            yield {name: float(report.broken[name]) for name in INVARIANTS}
        yield {
            COUNTS: float(len(found.miscounts)),
            RECOMPUTED: float(sum(leaf.differ for leaf in found.recomputed.values())),
            QUARANTINE: max((rate.excess for rate in expected.rates), default=0.0),
            DRIFT: 0.0 if self.allow_drift else float(sum(drift.level == "stop" for drift in found.drifts)),
        }

    def _warn(self, day: int, found: DayFindings) -> None:
        reported = [drift.words for drift in found.drifts if drift.level == "warn" or self.allow_drift]
        if reported:
            more = f"; and {len(reported) - 3} more (`genrank stats` shows all)" if len(reported) > 3 else ""
            logger.warning("%s has drifted: %s%s", dt_of(day), "; ".join(reported[:3]), more)

    def _reasons(self, found: DayFindings, expected: Expected) -> list[str]:
        """Why the day stops, in words."""
        broken: dict[str, int] = {}
        examples: dict[str, str] = {}
        for report in found.files:
            for name, count in report.broken.items():
                broken[name] = broken.get(name, 0) + count
            for name, example in report.examples.items():
                examples.setdefault(name, example)
        reasons = [
            f"{INVARIANTS[name]} ({count:,} broken: {examples[name]})" for name, count in broken.items() if count
        ]
        reasons += found.miscounts
        reasons += [
            f"{leaf.example} ({leaf.differ:,} of {max(leaf.compared, leaf.differ):,} compared differ)"
            for leaf in found.recomputed.values()
            if leaf.differ
        ]
        if not self.allow_drift:
            reasons += [drift.words for drift in found.drifts if drift.level == "stop"]
        reasons += [
            f"source {rate.source!r}: {rate.rate:.1%} of {rate.dt}'s rows are quarantined, more than max_quarantine_rate"
            f" {rate.limit:.1%} ({rate.why})"
            for rate in expected.rates
            if rate.excess > 0
        ]
        return reasons

    def _message(
        self,
        days: Sequence[int],
        found: Mapping[int, DayFindings],
        expected: Mapping[int, Expected],
        pages: Sequence[Path],
    ) -> str:
        day = next(day for day in days if self._reasons(found[day], expected[day]))
        reasons = self._reasons(found[day], expected[day])
        more = f"; and {len(reasons) - REPORTED} more" if len(reasons) > REPORTED else ""
        dt = dt_of(day)
        if any(rate.excess > 0 for rate in expected[day].rates) and len(reasons) == 1:
            remedy = f"The rows and reasons lie in quarantine/dt={dt}"
        elif all(drift.words in reasons for drift in found[day].drifts if drift.level == "stop") and len(
            reasons
        ) == sum(drift.level == "stop" for drift in found[day].drifts):
            remedy = "Look for what changed in the logs; if it is meant, give --allow-drift or other limits (the schema's drift)"
        else:
            remedy = "If files of the logs changed meanwhile, build again; else report it as a bug, with the page"
        page = f" ({pages[0]})" if pages else ""
        return f"quality gate, {dt}: {'; '.join(reasons[:REPORTED])}{more}; nothing was published. {remedy}{page}"

    def _keep(self, day: int, state: str, verdict: Verdict) -> Path:
        """The suite, what it was held against and its validation, beside the day; a page of before no longer is of these."""
        folder = self.plan.out / FOLDER / f"dt={dt_of(day)}" / state
        (folder / PAGE).unlink(missing_ok=True)
        texts = {
            data_docs.COUNTS: verdict.counts,
            data_docs.VALIDATION: verdict.validation,
            data_docs.SUITE: verdict.suite,
        }
        for name, text in texts.items():
            write_atomically(folder / name, text)
        return folder


def _miscounts(day: int, files: Sequence[SampleReport], found: DayFindings, expected: Expected) -> Iterator[str]:
    """Where files don't hold what was written to them, or candidates and exposures differ in number."""
    read_back = {report.bucket: report for report in found.files}
    down_sampled = candidates = 0
    for file in (file for file in files if file.day == day):
        down_sampled += file.down_sampled
        if not file.path:
            continue
        report = read_back[file.bucket]
        candidates += report.candidates
        if report.broken["contract"] or report.broken["lengths"]:
            continue
        for what, wrote, holds in (
            ("samples", file.rows, report.rows),
            ("candidates", file.candidates, report.candidates),
        ):
            if wrote != holds:
                yield f"the file of bucket {file.bucket} holds {holds:,} {what}, {wrote:,} were written to it"
        if file.sha256 != report.sha256:
            yield f"the file of bucket {file.bucket} has changed since it was written"
    if not any(report.broken["contract"] or report.broken["lengths"] for report in found.files) and (
        candidates + down_sampled != expected.exposures
    ):
        left = f" and {down_sampled:,} were down-sampled" if down_sampled else ""
        yield f"{expected.exposures:,} exposures went in and {candidates:,} candidates came out{left}"

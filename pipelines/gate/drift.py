"""How far a day lies from the days published before it: rows, label rates, and each leaf of its statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from genrank.pipelines.leaf_summaries import length_of
from genrank.pipelines.sample_columns import LABELS
from genrank.pipelines.sample_statistics import Summary
from genrank.schemas.drift import DriftLimits, Limits
from genrank.schemas.schema import CANDIDATES


class Drift(NamedTuple):
    """One thing that has moved beyond a limit."""

    what: str
    level: Literal["warn", "stop"]
    words: str
    """What it is, what it was, and the limit."""


def drifts(limits: DriftLimits, day: Mapping[str, Summary], before: Sequence[Mapping[str, Summary]]) -> Iterator[Drift]:
    """What has moved, from one day's summaries (leaf -> its summary) and those of days before it."""
    if len(before) < limits.least_days:
        return
    days = f"the {len(before)} days before"
    rows = length_of(CANDIDATES)
    count, mean = (
        (day[rows].total, sum(one[rows].total for one in before if rows in one) / len(before))
        if rows in day
        else (0, 0)
    )
    if mean >= limits.least_values:
        ratio = _ratio(count, mean)
        yield from _judged(
            f"{CANDIDATES}", limits.rows, ratio, f"{count:,.0f} rows, {mean:,.0f} a day in {days}", "times"
        )
    for leaf in sorted(day):
        parts = [one[leaf] for one in before if leaf in one and one[leaf].kind == day[leaf].kind]
        if len(parts) >= limits.least_days:
            yield from _leaf(limits, leaf, day[leaf], parts, days)


def _leaf(limits: DriftLimits, leaf: str, now: Summary, parts: Sequence[Summary], days: str) -> Iterator[Drift]:
    then = _merged(parts)
    if min(now.count, then.count) < limits.least_values:
        return
    if leaf.startswith(f"{LABELS}."):
        # Where a label isn't mature it is missing, which says nothing of the log.
        weight = sum(now.weights)
        if min(then.total, then.mean * weight) * 10 >= limits.least_values and weight:
            found = f"rate {now.mean:.4g}, {then.mean:.4g} in {days}"
            yield from _judged(leaf, limits.label_rate, _ratio(now.mean, then.mean), found, "times")
        return
    grown = now.missing_rate - then.missing_rate
    what = "without a partner" if now.kind == "join" else "missing"
    found = f"{now.missing_rate:.1%} {what}, {then.missing_rate:.1%} in {days}"
    yield from _judged(leaf, limits.missing, grown, found, "more")
    if now.kind != "join":
        # The nearest of the days: what grows day by day, as histories do in a young log, is no drift.
        nearest = min(now.psi(part) for part in parts)
        yield from _judged(leaf, limits.psi, nearest, f"another distribution than on any of {days}", "PSI")


def _judged(what: str, limits: Limits, value: float, found: str, unit: str) -> Iterator[Drift]:
    if math.isnan(value):
        return
    for level, limit in (("stop", limits.stop), ("warn", limits.warn)):
        if limit is not None and value >= limit:
            yield Drift(what, level, f"{what}: {found} ({value:.3g} {unit}, limit {limit:g})")  # type: ignore[arg-type]
            return


def _ratio(now: float, then: float) -> float:
    """How many times more or fewer."""
    if now <= 0 or then <= 0:
        return 1.0 if now == then else math.inf
    return max(now / then, then / now)


def _merged(parts: Sequence[Summary]) -> Summary:
    merged = Summary(parts[0].leaf, parts[0].kind)
    for part in parts:
        merged.merge(part)
    return merged

"""Cross features' operations on a list of events, one line each: what the gate holds the builder's scans against.

An operation from outside is recomputed where its function is registered here by the operation's name: `RECOUNTS["span"] = span`. Features
of operations without one aren't recomputed; the gate says how many.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

from genrank.schemas import CrossFeature
from genrank.schemas.base import parse_duration
from genrank.schemas.ids import MISSING_ID, hash_string


class Window(NamedTuple):
    """The events at an exposure's keys that it sees."""

    all: int
    """How many there are, whether or not they meet `where`."""
    ts: list[int]
    """Of those that meet it: when they happened, epoch ms."""
    id: list[int]
    """Orders events of one millisecond."""
    values: list[Any]
    """The feature's `value`; empty where it has none."""

    @property
    def numbers(self) -> list[float]:
        """Values that are there, as numbers."""
        return [float(value) for value in self.values if value is not None and not _is_nan(value)]


Recount = Callable[[CrossFeature, Window, Window, int], float | int]
"""(feature, events of `source`, events of `per` or else of `source`, the moment asked as of in epoch ms) -> the value."""


def _count(feature: CrossFeature, hits: Window, trials: Window, at: int) -> float:
    return float(len(hits.ts))


def _rate(feature: CrossFeature, hits: Window, trials: Window, at: int) -> float:
    shown = trials.all + feature.strength
    return (len(hits.ts) + feature.prior * feature.strength) / shown if shown > 0 else feature.prior


def _sum(feature: CrossFeature, hits: Window, trials: Window, at: int) -> float:
    return math.fsum(hits.numbers)


def _mean(feature: CrossFeature, hits: Window, trials: Window, at: int) -> float:
    return math.fsum(hits.numbers) / len(hits.numbers) if hits.numbers else math.nan


def _max(feature: CrossFeature, hits: Window, trials: Window, at: int) -> float:
    return max(hits.numbers, default=math.nan)


def _min(feature: CrossFeature, hits: Window, trials: Window, at: int) -> float:
    return min(hits.numbers, default=math.nan)


def _std(feature: CrossFeature, hits: Window, trials: Window, at: int) -> float:
    # Of fractions, exact until the root.
    return statistics.pstdev(hits.numbers) if hits.numbers else math.nan


def _decayed(feature: CrossFeature, hits: Window, trials: Window, at: int) -> float:
    half_life = parse_duration(feature.half_life or "")
    values = hits.values if feature.value else [1.0] * len(hits.ts)
    there = [(ts, float(value)) for ts, value in zip(hits.ts, values, strict=True) if value is not None]
    return math.fsum(value * 2 ** (-(at - ts) / half_life) for ts, value in there if not _is_nan(value))


def _recency(feature: CrossFeature, hits: Window, trials: Window, at: int) -> float:
    return (at - max(hits.ts)) / 1000 if hits.ts else math.nan


def _distinct(feature: CrossFeature, hits: Window, trials: Window, at: int) -> float:
    return float(len({value for value in hits.values if value is not None}))


def _last(feature: CrossFeature, hits: Window, trials: Window, at: int) -> float | int:
    there = [
        row for row in zip(hits.ts, hits.id, hits.values, strict=True) if row[2] is not None and not _is_nan(row[2])
    ]
    value = max(there, key=lambda row: row[:2])[2] if there else None
    if feature.stored == "id":
        return MISSING_ID if value is None else hash_string(value) if isinstance(value, str) else int(value)
    return math.nan if value is None else float(value)


def reduced(feature: CrossFeature, values: list[float]) -> float:
    """The values at the ids of a key that is a list, as one."""
    there = [value for value in values if not _is_nan(value)]
    if not there:
        return math.nan
    if feature.reduction in ("max", "min"):
        return max(there) if feature.reduction == "max" else min(there)
    return math.fsum(there) / (len(there) if feature.reduction == "mean" else 1)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


RECOUNTS: dict[str, Recount] = {
    "count": _count,
    "rate": _rate,
    "sum": _sum,
    "mean": _mean,
    "max": _max,
    "min": _min,
    "std": _std,
    "decayed_count": _decayed,
    "decayed_sum": _decayed,
    "recency": _recency,
    "distinct": _distinct,
    "last": _last,
}

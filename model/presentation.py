"""Numbers and days in words, for terminal and page alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from genrank.model.metrics import Estimate


class Cell(NamedTuple):
    """An estimate in a table."""

    value: str
    interval: str
    """Empty where there is none."""


class Numbers(NamedTuple):
    """An estimate to compute with: NaN where it is undefined."""

    value: float
    low: float
    high: float


def numbers(estimate: Estimate | None) -> Numbers:
    """NaN in the place of what is undefined (AUC of one class), which JSON keeps as null."""
    found = estimate or Estimate(None)
    return Numbers(*(math.nan if x is None else x for x in (found.value, found.low, found.high)))


def cell(estimate: Estimate | None) -> Cell:
    """Four digits, or a dash; the interval in brackets."""
    value, low, high = numbers(estimate)
    return Cell(
        f"{value:.4f}" if math.isfinite(value) else "\N{EN DASH}",
        f"[{low:.4f}, {high:.4f}]" if math.isfinite(low + high) else "",
    )


def dates_text(dates: Sequence[str]) -> str:
    """`2026-01-05`, or `2026-01-05 to 2026-01-07 (3 days)`."""
    return dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]} ({len(dates)} days)"

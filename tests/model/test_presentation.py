"""Numbers and days in words."""

from __future__ import annotations

import math

from genrank.model.metrics import Estimate
from genrank.model.presentation import cell, dates_text, numbers


def test_what_is_undefined_is_a_dash_and_nan() -> None:
    for undefined in (None, Estimate(None)):
        assert cell(undefined) == ("\N{EN DASH}", "")
        assert all(math.isnan(x) for x in numbers(undefined))


def test_an_interval_is_shown_where_there_is_one() -> None:
    assert cell(Estimate(0.73125)) == ("0.7312", "")
    assert cell(Estimate(0.5, 0.25, 0.75)) == ("0.5000", "[0.2500, 0.7500]")
    assert numbers(Estimate(0.5, 0.25, 0.75)) == (0.5, 0.25, 0.75)


def test_days() -> None:
    assert dates_text(["2026-01-05"]) == "2026-01-05"
    assert dates_text(["2026-01-05", "2026-01-06", "2026-01-07"]) == "2026-01-05 to 2026-01-07 (3 days)"

"""Sums of squared differences from a mean, of events and of events merged before (count, mean, squared differences).

A row of n events with mean m and squared differences d adds n m to the sum and n m^2 + d to the sum of squares. Both, and with them
n * sum of squares - sum^2 (n times the squared differences of all), are added up exactly (`exact_sums`) and rounded once, so that no offset
cancels and no order matters. It is the pairwise update of Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing
sample variances", 1979, equation 1.5), of any number of parts at once; what merged rows round is their own m and d, to 16 digits.
"""

from __future__ import annotations

import numpy as np

from genrank.pipelines.exact_sums import Float, Int, Parts, added, grouped, multiplied, rounded, split


def moments(events: Int | None, means: Float, squares: Float) -> tuple[Parts, Parts]:
    """(sum, sum of squares) of what each row stands for.

    Args:
        events: int64 [n] how many events each row was merged from; None: one each.
        means, squares: finite float64 [n].
    """
    own = split(means)
    sums = own if events is None else multiplied({0: events}, own)
    return sums, added(multiplied(sums, own), split(squares))


def squared_differences(count: Int, sums: Parts, squares: Parts) -> Float:
    """float64 [n]: `count` times the sum of squared differences from the mean, of exact sums and sums of squares; 0 at least."""
    square = multiplied(sums, sums)
    return rounded(added(multiplied({0: count}, squares), {exponent: -part for exponent, part in square.items()}))


def merged(events: Int, means: Float, squares: Float, codes: Int, count: Int) -> tuple[Float, Float]:
    """(mean, squared differences) of the rows of each code, float64 [groups].

    Args:
        events, means, squares: of each row, as `moments` takes them.
        codes: int64 [n] the group of each row.
        count: int64 [groups] how many events each group has, 1 at least.
    """
    sums, of_squares = (grouped(part, codes, len(count)) for part in moments(events, means, squares))
    of_events = count.astype(np.float64)
    return rounded(sums) / of_events, squared_differences(count, sums, of_squares) / of_events

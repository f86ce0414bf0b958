"""Squared differences and decayed sums against fractions and float64, whatever the offset, the age, and how rows were merged before."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrank.pipelines import decay, spread

OFFSETS = st.sampled_from([0.0, 1.0, 1e6, -1e9, 1e15, 3e-7])
NEAR = st.lists(st.floats(-5, 5), min_size=1, max_size=12)


def std(values: list[float], cuts: list[int]) -> float:
    """By way of merged rows, which are cut at `cuts`."""
    bounds = sorted({0, len(values), *(cut % len(values) for cut in cuts)})
    codes = np.searchsorted(bounds, np.arange(len(values)), "right") - 1
    ones, zeros = np.ones(len(values), np.int64), np.zeros(len(values))
    count = np.bincount(codes).astype(np.int64)
    means, squares = spread.merged(ones, np.array(values), zeros, codes, count)
    total = np.array([len(values)])
    _, whole = spread.merged(count, means, squares, np.zeros(len(count), np.int64), total)
    return math.sqrt(whole[0] / len(values))


@given(OFFSETS, NEAR, st.lists(st.integers(0, 11), max_size=4))
def test_a_large_offset_cancels_nothing(offset: float, near: list[float], cuts: list[int]) -> None:
    values = [offset + value for value in near]
    want = statistics.pstdev(values)
    # Events alone are exact; merged rows round their means to 16 digits.
    assert std(values, []) == pytest.approx(want, rel=1e-15, abs=0)
    rounding = math.ulp(max(map(abs, values)))
    assert std(values, cuts) == pytest.approx(want, rel=1e-12, abs=4 * rounding)


def test_what_float64_sums_of_squares_lose() -> None:
    values = [1e9 + 0.25, 1e9 + 0.5, 1e9 + 0.75]
    naive = math.fsum(x * x for x in values) / 3 - (math.fsum(values) / 3) ** 2
    assert abs(naive - 1 / 24) > 0.01
    assert std(values, []) == pytest.approx(math.sqrt(1 / 24), rel=1e-15)
    assert std(values, [1]) == pytest.approx(math.sqrt(1 / 24), rel=1e-7)
    assert std([0.1] * 7, []) == 0.0


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 60_000)), min_size=1, max_size=10),
    st.integers(0, 3_000),
    st.sampled_from([1_000, 999, 86_400_000]),
)
def test_decayed_sums_merge_as_of_their_newest_event(
    events: list[tuple[float, int]], later: int, half_life: int
) -> None:
    amounts, ts = np.array([amount for amount, _ in events]), 1_700_000_000_000 + np.array([at for _, at in events])
    codes, newest = np.zeros(len(ts), np.int64), np.array([ts.max()])
    total = decay.merged(amounts, ts, codes, newest, half_life)
    moment = newest + later
    origin = moment[0] // half_life
    again = decay.at(decay.scaled(total, newest, half_life, origin), moment, half_life, origin)
    terms = [a * 2 ** (-(int(moment[0]) - t) / half_life) for a, t in zip(amounts.tolist(), ts.tolist(), strict=True)]
    # The terms' own exponents are rounded: 63 half-lives to 63 * log(2) * 1.1e-16 of a term.
    assert again[0] == pytest.approx(math.fsum(terms), rel=0, abs=1e-14 * math.fsum(map(abs, terms)))
    order = np.argsort(amounts)
    assert decay.merged(amounts[order], ts[order], codes, newest, half_life).tolist() == total.tolist()


def test_whole_half_lives_are_exact_and_what_is_negligible_adds_nothing() -> None:
    ts = np.array([0, 1_000, 2_000, 10_000_000])
    codes, newest = np.array([0, 0, 0, 1]), np.array([2_000, 10_000_000])
    assert decay.merged(np.ones(4), ts, codes, newest, 1_000).tolist() == [1.75, 1.0]
    assert decay.merged(np.ones(4), ts, np.zeros(4, np.int64), newest[1:], 1_000).tolist() == [1.0]

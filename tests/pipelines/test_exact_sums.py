"""Sums against Python's integers and fractions, which are exact."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from genrank.pipelines.exact_sums import added, between, grouped, multiplied, rounded, running, split

FLOATS = st.floats(-1e38, 1e38, allow_nan=False)
WHOLE = st.integers(-(2**63), 2**63 - 1).map(float)
VALUES = st.lists(FLOATS | WHOLE | st.floats(-10, 10, width=32), max_size=30)


def exact(values: list[float]) -> Fraction:
    return sum(map(Fraction, values), Fraction())


def near(got: float, values: list[float]) -> bool:
    want = float(exact(values))
    return abs(got - want) <= 2 * math.ulp(want)


@settings(deadline=None)
@given(VALUES)
def test_parts_are_the_value_exactly(values: list[float]) -> None:
    parts = split(np.array(values, np.float64))
    for i, value in enumerate(values):
        assert sum(Fraction(int(part[i])) * Fraction(2) ** exponent for exponent, part in parts.items()) == Fraction(
            value
        )
    assert rounded(parts).tolist() == values


@settings(deadline=None)
@given(VALUES, st.data())
def test_sums_of_any_range_and_order_are_exact_up_to_one_rounding(values: list[float], data: st.DataObject) -> None:
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(values))] * 2)))
    at = (np.array([begin]), np.array([end]))
    (got,) = rounded(between(running(split(np.array(values, np.float64))), *at)).tolist()
    assert near(got, values[begin:end])
    shuffled = data.draw(st.permutations(values[begin:end]))
    (again,) = rounded(grouped(split(np.array(shuffled, np.float64)), np.zeros(len(shuffled), np.int64), 1)).tolist()
    assert again == got


@settings(deadline=None)
@given(VALUES, VALUES)
def test_sums_of_different_grids_add_up(some: list[float], others: list[float]) -> None:
    one = np.zeros(len(some), np.int64), np.zeros(len(others), np.int64)
    total = added(grouped(split(np.array(some)), one[0], 1), grouped(split(np.array(others)), one[1], 1))
    assert near(rounded(total)[0], [*some, *others])


@settings(deadline=None)
@given(st.lists(st.tuples(FLOATS | WHOLE, FLOATS | WHOLE | st.floats(-10, 10, width=32)), max_size=20))
def test_products_are_exact(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = (np.array([pair[at] for pair in pairs], np.float64) for at in (0, 1))
    parts = multiplied(split(ours), split(theirs))
    for i, (one, other) in enumerate(pairs):
        assert all(abs(int(part[i])) < 1 << 32 for part in parts.values())
        product = sum(Fraction(int(part[i])) * Fraction(2) ** exponent for exponent, part in parts.items())
        assert product == Fraction(one) * Fraction(other)


def test_what_wrapped_or_vanished_before() -> None:
    def total(*values: float) -> float:
        return float(rounded(grouped(split(np.array(values)), np.zeros(len(values), np.int64), 1))[0])

    assert total(1e13, 1e13) == 2e13
    assert total(float(2**62 + 2**61), float(2**62)) == float(2**63 + 2**61)
    assert total(1e-9, 3e-9) == 4e-9
    assert total(1e30, 1.0, -1e30) == 1.0
    assert total(1.0, -1.0 - 2**-52) == -(2**-52)

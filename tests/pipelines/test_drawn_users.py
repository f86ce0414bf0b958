"""The users whose samples the gate works out again: the same in every process, another choice each day, and about as many as wanted."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from genrank.pipelines.gate.users import below, draw, lowest

names = st.lists(st.one_of(st.text(max_size=5)), max_size=30)


@given(names, st.integers(0, 30_000), st.integers(0, 10))
def test_the_lowest_draws_are_taken_whatever_the_order_and_repetition(users: list[str], day: int, wanted: int) -> None:
    drawn = dict(zip(users, draw(pa.array(users, pa.string()), day).tolist(), strict=True))
    expected = sorted(drawn, key=drawn.__getitem__)[:wanted]
    assert lowest(pa.array(users, pa.string()), day, wanted) == expected
    again = pa.chunked_array([pa.array(users[::-1], pa.string()), pa.array(users, pa.string())])
    assert lowest(again, day, wanted) == expected


@given(st.integers(0, 2**40), st.integers(1, 2**20))
def test_the_limit_draws_twice_as_many_as_wanted(users: int, wanted: int) -> None:
    limit = below(users, wanted)
    assert 0 < limit < 1 << 64
    assert limit == (1 << 64) - 1 if users <= 2 * wanted else abs(limit * users - (2 * wanted << 64)) < users


def test_draws_are_even_and_differ_by_day() -> None:
    users = pa.array(range(20_000))
    one, other = draw(users, 20_000), draw(users, 20_001)
    assert one.tolist() == draw(users.cast(pa.int32()), 20_000).tolist()
    limit = below(20_000, 500)
    for drawn in (one, other):
        assert abs(int((drawn < limit).sum()) - 1_000) < 5 * 1_000**0.5
    both = ((one < limit) & (other < limit)).sum()
    assert both < 120  # 50 of 20,000, were the days independent

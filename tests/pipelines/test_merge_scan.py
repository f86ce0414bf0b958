"""The point-in-time kernel against its definition, event by event."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrank.pipelines.merge_scan import (
    Axis,
    Int,
    Keys,
    Scan,
    following,
    last_before,
    mix,
    ranges,
    slot_of,
)
from genrank.pipelines.row_order import order_by, sorted_rows

keys = st.integers(-2, 3)
times = st.integers(0, 40)
lags = st.integers(0, 15)
windows = st.integers(1, 30)
small = st.integers(-5, 5)


@dataclass(frozen=True)
class Event:
    key: int
    ts: int
    available: int
    id: int
    value: int
    chosen: bool = True

    def visible(self, key: int, at: int, window: int) -> bool:
        """By the definition in the module's docstring."""
        return self.chosen and self.key == key and self.available < at and at - window < self.ts < at


events_of = st.builds(
    lambda key, ts, lag, id_, value, chosen: Event(key, ts, ts + lag, id_, value, chosen),
    keys,
    times,
    lags,
    st.integers(-3, 3),
    small,
    st.booleans(),
)
logs = st.lists(events_of, max_size=25)
questions = st.lists(st.tuples(keys, times), max_size=12)


def column(events: list[Event], name: str) -> Int:
    return np.array([getattr(event, name) for event in events], np.int64)


def scan_of(events: list[Event]) -> Scan:
    return Scan(*(column(events, name) for name in ("key", "ts", "available", "id")))


def ints(values: list[int]) -> Int:
    return np.array(values, np.int64)


@given(logs, questions, windows)
def test_sums_counts_and_distinct_values_are_those_of_the_visible_events(
    events: list[Event], asked: list[tuple[int, int]], window: int
) -> None:
    scan = scan_of(events)
    queries = scan.at(ints([key for key, _ in asked]), ints([at for _, at in asked]))
    chosen = np.array([event.chosen for event in events], np.bool_)
    values = column(events, "value")
    count, total = scan.sum(queries, window, values, chosen)
    distinct = scan.distinct(queries, window, values, chosen)
    largest = scan.largest(queries, window, values.astype(np.float64), chosen)
    seen = [[event for event in events if event.visible(key, at, window)] for key, at in asked]
    assert largest.tolist() == pytest.approx(
        [max((e.value for e in of), default=math.nan) for of in seen], rel=0, abs=0, nan_ok=True
    )
    assert count.tolist() == [len(of) for of in seen]
    assert total.tolist() == [sum(event.value for event in of) for of in seen]
    assert distinct.tolist() == [len({event.value for event in of}) for of in seen]


@given(logs, questions, windows)
def test_the_newest_event_is_the_visible_one_with_the_greatest_time_and_id(
    events: list[Event], asked: list[tuple[int, int]], window: int
) -> None:
    scan = scan_of(events)
    queries = scan.at(ints([key for key, _ in asked]), ints([at for _, at in asked]))
    chosen = np.array([event.chosen for event in events], np.bool_)
    for (key, at), row in zip(asked, scan.newest(queries, window, chosen).tolist(), strict=True):
        seen = [event for event in events if event.visible(key, at, window)]
        if seen:
            assert events[row].visible(key, at, window)
            assert (events[row].ts, events[row].id) == max((event.ts, event.id) for event in seen)
        else:
            assert row == -1


@given(
    logs,
    st.lists(st.tuples(keys, st.integers(100, 110)), max_size=8),
    st.lists(st.tuples(keys, st.booleans(), st.lists(small, min_size=1, max_size=4)), max_size=6),
)
def test_merged_rows_count_as_the_events_they_stand_for(
    late: list[Event], asked: list[tuple[int, int]], merged: list[tuple[int, bool, list[int]]]
) -> None:
    """Rows merged of events that every query sees, or none does, beside events as they are."""
    window = 50
    single = [Event(event.key, event.ts + 70, event.available + 70, event.id, event.value) for event in late]
    rows = [Event(key, 65 if inside else 30, 69, 0, sum(values)) for key, inside, values in merged]
    parts = [
        Event(row.key, row.ts, row.available, 0, value)
        for row, (*_, values) in zip(rows, merged, strict=True)
        for value in values
    ]
    scan = Scan(
        *(column([*single, *rows], name) for name in ("key", "ts", "available", "id")),
        merged=ints([0] * len(single) + [len(values) for *_, values in merged]),
    )
    queries = scan.at(ints([key for key, _ in asked]), ints([at for _, at in asked]))
    count, total = scan.sum(queries, window, column([*single, *rows], "value"))
    seen = [[event for event in (*single, *parts) if event.visible(key, at, window)] for key, at in asked]
    assert count.tolist() == [len(of) for of in seen]
    assert total.tolist() == [sum(event.value for event in of) for of in seen]


@given(logs, questions, windows)
def test_following_events_lie_in_the_closed_window_after(
    events: list[Event], asked: list[tuple[int, int]], window: int
) -> None:
    at_keys, at = ints([key for key, _ in asked]), ints([at for _, at in asked])
    count, total = following(*(column(events, name) for name in ("key", "ts", "value")), at_keys, at, window)
    seen = [[e for e in events if e.key == key and begin <= e.ts <= begin + window] for key, begin in asked]
    assert count.tolist() == [len(of) for of in seen]
    assert total.tolist() == [sum(event.value for event in of) for of in seen]


@given(logs, questions)
def test_the_last_event_at_or_before_a_moment(events: list[Event], asked: list[tuple[int, int]]) -> None:
    at_keys, at = ints([key for key, _ in asked]), ints([at for _, at in asked])
    found = last_before(*(column(events, name) for name in ("key", "ts", "id")), at_keys, at)
    for (key, moment), row in zip(asked, found.tolist(), strict=True):
        earlier = [(event.ts, event.id) for event in events if event.key == key and event.ts <= moment]
        assert (row == -1) == (not earlier)
        if earlier:
            assert events[row].key == key and (events[row].ts, events[row].id) == max(earlier)


@given(st.lists(st.tuples(st.integers(-1, 4), times), min_size=2, max_size=30))
def test_packed_order_is_the_order_of_key_and_time(pairs: list[tuple[int, int]]) -> None:
    codes, ts = ints([key for key, _ in pairs]), ints([time for _, time in pairs])
    packed = Axis.over(5, ts).pack(codes, ts).tolist()
    for one, this in zip(pairs, packed, strict=True):
        for other, that in zip(pairs, packed, strict=True):
            assert (one < other) == (this < that)


def test_an_axis_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="use more buckets"):
        Axis.over(1 << 40, ints([0, 1 << 40]))


@given(st.lists(small, max_size=20), st.lists(small, max_size=20))
def test_codes_are_dense_and_found_again(values: list[int], others: list[int]) -> None:
    found = Keys(ints(values))
    assert sorted(set(found.codes.tolist())) == list(range(len(set(values)))) == list(range(found.count))
    code_of = dict(zip(values, found.codes.tolist(), strict=True))
    assert found.find(ints(others)).tolist() == [code_of.get(value, -1) for value in others]


@given(st.lists(st.tuples(small, small, small), max_size=30))
def test_order_by_is_a_stable_sort_over_all_of_its_keys(rows: list[tuple[int, int, int]]) -> None:
    packed, first, second = (ints([row[i] for row in rows]) for i in range(3))
    assert order_by(packed, first, second).tolist() == sorted(range(len(rows)), key=lambda row: rows[row])


@given(st.lists(st.tuples(times, st.integers(0, 5)), max_size=10))
def test_ranges_are_concatenated(spans: list[tuple[int, int]]) -> None:
    found = ranges(ints([start for start, _ in spans]), ints([length for _, length in spans]))
    assert found.tolist() == [row for start, length in spans for row in range(start, start + length)]


@given(st.lists(st.tuples(small, small), min_size=1, max_size=30), st.integers(1, 9))
def test_a_hash_tells_rows_apart_and_its_slot_lies_in_range(rows: list[tuple[int, int]], slots: int) -> None:
    hashed = mix(ints([one for one, _ in rows]), ints([two for _, two in rows]))
    assert len(set(hashed.tolist())) == len(set(rows))
    assert set(slot_of(hashed, slots).tolist()) <= set(range(slots))


def test_hashes_are_the_same_on_every_machine_and_release() -> None:
    """Partials and samples hold them."""
    assert mix(ints([0, 1, -1])).tolist() == [-4489516891107146569, -3806075639014552086, -1257701693245480594]
    assert mix(ints([7]), ints([-7])).tolist() == [6985694351563663658]


@given(st.lists(st.integers(-3, 3) | st.sampled_from([2**40, -(2**62), 2**62]), max_size=30))
def test_rows_are_sorted_as_numpy_does(values: list[int]) -> None:
    packed = ints(values)
    before = packed.copy()
    assert sorted_rows(packed, stable=True).tolist() == np.argsort(packed, kind="stable").tolist()
    assert packed[sorted_rows(packed)].tolist() == sorted(values)
    assert (packed == before).all()


@given(st.lists(small, max_size=10), st.lists(small, max_size=10), st.lists(small, max_size=10))
def test_codes_that_are_remembered_are_of_the_array_asked(there: list[int], some: list[int], others: list[int]) -> None:
    found, one, two = Keys(ints(there)), ints(some), ints(others)
    fresh = Keys(ints(there))
    for asked in (one, one, two, two[1:], two[::-1], one):
        assert found.find(asked).tolist() == [fresh.find(ints([value])).tolist()[0] for value in asked.tolist()]

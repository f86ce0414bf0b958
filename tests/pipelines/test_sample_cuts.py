"""Where a day is cut: nothing is lost, nothing is too long, and nobody sees less for what comes later."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from genrank.pipelines import hot_keys
from genrank.pipelines.days import day_number, dt_of, moment, moment_text, whole_days
from genrank.pipelines.merge_scan import Axis
from genrank.pipelines.messages import KeyCount
from genrank.pipelines.sample_cuts import cut
from genrank.pipelines.sequences import Timeline
from genrank.schemas import Schema
from genrank.schemas.base import DAY_MS
from tests.pipelines.worlds import full_schema

START, END = 1000, 2000
moments = st.lists(st.integers(START, END - 1), max_size=25).map(sorted)


def schema_of(most: int, limit: int) -> Schema:
    base = full_schema(max_candidates=most)
    return base.replace(
        sequences=tuple(s.replace(max_length=limit) if s.scope == "realtime" else s for s in base.sequences)
    )


@given(st.lists(st.tuples(moments.filter(bool), moments), min_size=1, max_size=3), st.integers(1, 6), st.integers(1, 6))
def test_samples_cover_the_day_and_each_candidate_sees_the_newest_events(
    users: list[tuple[list[int], list[int]]], most: int, limit: int
) -> None:
    schema = schema_of(most, limit)
    assert schema.realtime
    user = np.concatenate([np.full(len(shown), code, np.int64) for code, (shown, _) in enumerate(users)])
    ts = np.concatenate([np.array(shown, np.int64) for shown, _ in users])
    owner = np.concatenate([np.full(len(seen), code, np.int64) for code, (_, seen) in enumerate(users)])
    seen = np.concatenate([np.array(seen, np.int64) for _, seen in users])
    axis = Axis.over(len(users), seen, ts)
    timeline = Timeline(axis, axis.pack(owner, seen), seen, seen, owner * 0, {}, np.arange(len(users)), owner * 0)
    begins = np.flatnonzero(np.concatenate([[True], user[1:] != user[:-1]]))
    cuts = cut(schema, user, begins, ts, START, END, {schema.realtime.name: timeline})

    assert cuts.begin[0] == 0 and cuts.end[-1] == len(ts)
    assert cuts.begin[1:].tolist() == cuts.end[:-1].tolist()
    assert (cuts.end - cuts.begin).max() <= most and (cuts.end > cuts.begin).all()
    assert (cuts.r_end - cuts.r_begin).max() <= limit and (cuts.r_end >= cuts.r_begin).all()
    for at, begin in enumerate(cuts.begin.tolist()):
        own = range(begin, int(cuts.end[at]))
        assert len({int(user[row]) for row in own}) == 1 and cuts.user[at] == user[begin]
        for row in own:
            before = [i for i in range(len(seen)) if owner[i] == user[row] and seen[i] < ts[row]]
            visible = [i for i in before if cuts.r_begin[at] <= i < cuts.r_end[at]]
            # The newest ones, at least half of the limit where there are so many.
            assert visible == before[len(before) - len(visible) :]
            assert len(visible) >= min(len(before), (limit + 1) // 2)
    for code in range(len(users)):
        assert cuts.chunk[cuts.user == code].tolist() == list(range(int((cuts.user == code).sum())))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.integers(1, 9)), max_size=12))
def test_keys_over_the_limit_are_cut_in_slices(counted: list[tuple[str, int, int]]) -> None:
    total: dict[tuple[str, int], int] = {}
    for key_set, key, rows in counted:
        total[key_set, key] = total.get((key_set, key), 0) + rows * hot_keys.HOT_ROWS // 4
    found = hot_keys.hot_keys((KeyCount(s, k, n * hot_keys.HOT_ROWS // 4) for s, k, n in counted), slots=4)
    for (key_set, key), rows in total.items():
        slices = found.get(key_set, {}).get(key)
        assert (slices is None) == (rows <= hot_keys.HOT_ROWS)
        assert slices is None or slices == min(4, -(-rows // hot_keys.HOT_ROWS))


@given(st.integers(0, 40_000), st.integers(-14, 14))
def test_days_and_moments_are_read_back(day: int, hours: int) -> None:
    assert day_number(dt_of(day)) == day
    start = day * DAY_MS - hours * 3_600_000
    assert moment(moment_text(start)) == start
    assert (whole_days(DAY_MS), whole_days(DAY_MS + 1)) == (1, 2)

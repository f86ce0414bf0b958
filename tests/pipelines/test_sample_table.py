"""Exposures of a bucket become samples: every leaf of every sample, worked out again with loops."""

from __future__ import annotations

import itertools
from random import Random

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from genrank.pipelines.labels import Labels
from genrank.pipelines.merge_scan import Axis, Int
from genrank.pipelines.sample_cuts import Cuts
from genrank.pipelines.sample_table import DayOfBucket, sample_table
from genrank.pipelines.sequences import Timeline
from genrank.pipelines.user_profile import Profiles
from genrank.schemas import (
    Candidates,
    Categorical,
    CrossFeature,
    EventLog,
    Events,
    EventSequence,
    Hashed,
    Label,
    Numeric,
    Schema,
)
from genrank.schemas.base import DAY_MS
from genrank.schemas.derive.sample_schema import arrow_schema

DAY = 20_460
START = DAY * DAY_MS
LOOKBACK, LONGEST = 2 * DAY_MS, 3


def schema_of() -> Schema:
    item = Categorical(name="item_id", vocabulary=Hashed(size=100), dim=4)
    shown = CrossFeature(name="shown", op="count", source="exposures", keys=("item_id",), window="1d")
    columns = {
        "user_id": "string",
        "ts": "int64",
        "item_id": "int64",
        "price": "float64",
        "p": "float32",
        "spent": "float32",
    }
    return Schema(
        name="tests",
        sources=(
            EventLog(name="exposures", path="exposures/dt={dt}", columns=columns, post_exposure=("p", "spent")),
            EventLog(
                name="clicks",
                path="clicks/dt={dt}",
                columns={"user_id": "string", "ts": "int64", "item_id": "int64"},
            ),
        ),
        sequences=(
            EventSequence(
                name="history",
                events=(Events(source="clicks"),),
                features=(item,),
                max_length=LONGEST,
                lookback="2d",
            ),
            EventSequence(
                name="realtime",
                scope="realtime",
                events=(Events(source="clicks"),),
                features=(item,),
                max_length=100,
            ),
        ),
        candidates=Candidates(item="item_id", features=(item, Numeric(name="price"), shown)),
        labels=(
            Label(name="click", source="clicks", on=("item_id",), window="1h", oracle="p"),
            Label(name="spent", kind="value", column="spent"),
        ),
    )


SCHEMA = schema_of()

moments = st.lists(st.integers(0, 20), min_size=1, max_size=8).map(sorted)
events = st.lists(st.integers(-60, 24), max_size=12).map(sorted)
"""Hours from the day's start."""
users = st.lists(st.tuples(moments, events), min_size=1, max_size=3)


def timeline_of(rows: list[list[int]]) -> Timeline:
    """Each user's events, available a moment after they happened; the item is the row's number."""
    owner = np.array([code for code, own in enumerate(rows) for _ in own], np.int64)
    seen = np.array([START + hour * 3_600_000 + 7 for own in rows for hour in own], np.int64)
    axis = Axis.over(len(rows), seen, np.array([START - 99 * DAY_MS, START + 2 * DAY_MS]))
    leaves = {"item_id": pa.array(np.arange(len(seen)) + 1000)}
    kinds = np.zeros(len(seen), np.int64)
    return Timeline(axis, axis.pack(owner, seen), seen - 7, seen, kinds, leaves, np.arange(len(rows)), seen)


def cuts_of(days: list[list[int]], stops: list[list[int]], timeline: Timeline) -> Cuts:
    """Samples of each user that end at `stops`, places among the user's exposures; each sees the day's realtime events from some on."""
    rows, at = [], 0
    for user, shown in enumerate(days):
        bounds = sorted({0, *(stop % len(shown) for stop in stops[user]), len(shown)})
        own = [i for i in range(len(timeline.ts)) if owner_of(timeline, i) == user and timeline.available[i] >= START]
        first = own[0] if own else int(timeline.before(*pair(user, START))[0])
        for chunk, (begin, end) in enumerate(itertools.pairwise(bounds)):
            later = min(chunk, len(own))  # a later sample begins later
            rows.append((user, chunk, at + begin, at + end, first + later, first + len(own)))
        at += len(shown)
    return Cuts(*(np.array(column, np.int64) for column in zip(*rows, strict=True)))


def pair(user: int, moment: int) -> tuple[Int, Int]:
    return np.array([user]), np.array([moment])


def owner_of(timeline: Timeline, row: int) -> int:
    return int(timeline.packed[row] // timeline.axis.span)


@given(users, st.lists(st.lists(st.integers(0, 7), max_size=2), min_size=3, max_size=3), st.randoms())
def test_every_leaf_is_what_loops_give(
    bucket: list[tuple[list[int], list[int]]], stops: list[list[int]], random: Random
) -> None:
    shown = [own for own, _ in bucket]
    timeline = timeline_of([own for _, own in bucket])
    cuts = cuts_of(shown, stops, timeline)
    user = np.array([code for code, own in enumerate(shown) for _ in own], np.int64)
    ts = np.array([START + hour * 3_600_000 for own in shown for hour in own], np.int64)
    count = len(ts)
    numbers = np.array([random.random() for _ in range(count)], np.float32)
    kept = np.array([random.random() < 0.7 for _ in range(count)])
    correction = np.array([random.choice([1.0, 2.5]) for _ in range(count)], np.float32)
    exposures = pa.table(
        {
            "u": user,
            "user": [f"u{code}" for code in user],
            "ts": ts,
            "id(item_id)": np.arange(count) + 7,
            "number(price)": numbers,
        }
    )
    labels = {
        label.name: Labels(
            np.array([random.choice([0, 1]) for _ in range(count)], np.float32),
            np.array([random.choice([0, 1]) for _ in range(count)], np.float32),
            numbers if label.oracle else None,
        )
        for label in SCHEMA.labels
    }
    crossed = {"shown": pa.array(np.arange(count, dtype=np.float32) * 3)}
    timelines = {"history": timeline, "realtime": timeline}
    day = DayOfBucket(DAY, exposures, crossed, timelines, labels, kept, correction)
    table = sample_table(SCHEMA, day, cuts, Profiles(SCHEMA, 1, {}, {}))

    assert table.schema.equals(arrow_schema(SCHEMA), check_metadata=True)
    table.validate(full=True)
    expected = []
    for owner, chunk, begin, end, r_begin, r_end in zip(*(column.tolist() for column in cuts), strict=True):
        rows = [row for row in range(begin, end) if kept[row]]
        if not rows:
            continue  # no candidate is left of it
        own = [i for i in range(len(timeline.ts)) if owner_of(timeline, i) == owner]
        past = [i for i in own if START - LOOKBACK <= timeline.available[i] < START][-LONGEST:]
        today = list(range(r_begin, r_end))
        visible = [[i for i in today if timeline.available[i] < ts[row]] for row in rows]
        before = [[i for i in today if timeline.available[i] < timeline.available[at]] for at in today]
        expected.append(
            {
                "sample_id": f"u{owner}:2026-01-07:{chunk}",
                "user_id": f"u{owner}",
                "window_start": START,
                "window_end": START + DAY_MS,
                "history": {
                    "item_id": [i + 1000 for i in past],
                    "ts": timeline.ts[past].tolist(),
                    "type": [0] * len(past),
                },
                "realtime": {
                    "item_id": [i + 1000 for i in today],
                    "ts": timeline.ts[today].tolist(),
                    "type": [0] * len(today),
                    "available": timeline.available[today].tolist(),
                },
                "candidates": {
                    "item_id": [row + 7 for row in rows],
                    "price": numbers[rows].tolist(),
                    "shown": [row * 3.0 for row in rows],
                    "ts": ts[rows].tolist(),
                    "item": [row + 7 for row in rows],
                },
                "labels": {
                    name: values
                    for label in SCHEMA.labels
                    for name, values in (
                        (label.name, labels[label.name].value[rows].tolist()),
                        (f"{label.name}_weight", (labels[label.name].weight * correction)[rows].tolist()),
                        *([(f"{label.name}_oracle", numbers[rows].tolist())] if label.oracle else []),
                    )
                },
                "mask": {
                    "candidate_sees": [len(seen) for seen in visible],
                    "realtime_sees": [len(seen) for seen in before],
                },
            }
        )
    found = table.to_pylist()
    requests = [sample["candidates"].pop("request") for sample in found]
    assert found == expected
    # A user's day is one request where the exposures name none.
    of_user: dict[str, set[int]] = {}
    for sample, ids in zip(found, requests, strict=True):
        of_user.setdefault(sample["user_id"], set()).update(ids)
    assert all(len(ids) == 1 for ids in of_user.values())
    assert len(set.union(set(), *of_user.values())) == len(of_user)

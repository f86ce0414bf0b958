"""Snapshots beside rows of a log and in the user group, against a dictionary's look-ups."""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from genrank.pipelines.column_roles import ROLE_TYPES
from genrank.pipelines.merge_scan import mix, slot_of
from genrank.pipelines.partials import PartialRef
from genrank.pipelines.snapshot_join import join_snapshot
from genrank.pipelines.user_profile import Profiles
from genrank.schemas import (
    Candidates,
    Categorical,
    Dense,
    EventLog,
    Hashed,
    Label,
    MultiValued,
    Numeric,
    Schema,
    Snapshot,
    UserGroup,
)
from genrank.schemas.ids import MISSING_ID

USERS = Snapshot(
    name="users",
    path="users/dt={dt}",
    key="user_id",
    columns={"user_id": "int64", "city": "int64", "age": "float32", "tags": "list<int64>"},
)
SCHEMA = Schema(
    name="shop",
    sources=(
        EventLog(
            name="exposures",
            path="exposures/dt={dt}",
            columns={"user_id": "int64", "item_id": "int64", "ts": "int64", "clicked": "bool"},
            post_exposure=("clicked",),
        ),
        USERS,
    ),
    user=UserGroup(
        features=(
            Categorical(name="city", column="users.city", vocabulary=Hashed(size=9), dim=4),
            Numeric(name="age", column="users.age", transform=Dense(shift=0.0, scale=1.0)),
            MultiValued(name="tags", column="users.tags", vocabulary=Hashed(size=9), dim=4, max_values=5),
        )
    ),
    candidates=Candidates(features=(Categorical(name="item_id", vocabulary=Hashed(size=9), dim=4),)),
    labels=(Label(name="click", column="clicked"),),
)
NAMES = {"city": "id(city)", "age": "number(age)", "tags": "ids5(tags)"}
PARTIALS = pa.schema(
    {"u": pa.int64(), "id(city)": pa.int64(), "number(age)": pa.float32(), "ids5(tags)": ROLE_TYPES["ids"]}
)
BUCKETS = 2

Rows = dict[int, tuple[int, float, list[int]]]


def snapshot(draw: random.Random) -> Rows:
    """User -> city, age, tags."""
    return {
        user: (draw.choice([3, 4, MISSING_ID]), draw.choice([1.5, 30.0]), draw.choice([[], [7], [7, 8]]))
        for user in range(10)
        if draw.random() < 0.6
    }


def publish(folder: Path, day: int, rows: Rows) -> PartialRef:
    """A partial of two buckets, an empty one without a file."""
    files = {}
    for bucket in range(BUCKETS):
        kept = [user for user in rows if slot_of(mix(np.array([user])), BUCKETS)[0] == bucket]
        if kept:
            files[bucket] = f"{day}-{bucket}.parquet"
            columns = [kept, *([rows[user][at] for user in kept] for at in range(3))]
            pq.write_table(
                pa.table([pa.array(c, f.type) for c, f in zip(columns, PARTIALS, strict=True)], PARTIALS),
                folder / files[bucket],
            )
    return PartialRef(day, str(folder), files, BUCKETS)


@given(seed=st.integers(0, 10**6))
def test_a_logs_rows_get_the_snapshot_of_their_own_day(seed: int) -> None:
    draw = random.Random(seed)
    with TemporaryDirectory() as folder:
        contents = {day: snapshot(draw) for day in (1, 2)}
        # Rows of two days read one snapshot; those of day 9 have none.
        partials = {5: publish(Path(folder), 1, contents[1]), 6: publish(Path(folder), 2, contents[2])}
        partials[7] = partials[6]
        days = np.array([draw.choice([5, 6, 7, 9]) for _ in range(draw.randrange(1, 30))])
        keys = [draw.choice([None, *range(12)]) for _ in days]
        frame = pl.DataFrame({"user_id": pl.Series(keys, dtype=pl.Int64)})
        columns = {"id(city)": "city", "ids5(tags)": "tags"}
        joined, known = join_snapshot(USERS, partials, columns, PARTIALS, frame, days)
    of_day = {5: contents[1], 6: contents[2], 7: contents[2], 9: {}}
    found = [of_day[day].get(key) for day, key in zip(days.tolist(), keys, strict=True)]
    assert known.tolist() == [row is not None for row in found]
    assert joined["user_id"].to_list() == keys
    assert joined["city"].to_list() == [row[0] if row else None for row in found]
    assert joined["tags"].to_list() == [row[2] if row else None for row in found]


@given(seed=st.integers(0, 10**6))
def test_a_users_group_is_the_snapshot_as_of_the_window(seed: int) -> None:
    draw = random.Random(seed)
    bucket = draw.randrange(BUCKETS)
    users = [user for user in range(12) if slot_of(mix(np.array([user])), BUCKETS)[0] == bucket and draw.random() < 0.8]
    if not users:
        return
    with TemporaryDirectory() as folder:
        rows = snapshot(draw)
        profiles = Profiles(SCHEMA, BUCKETS, {"users": {5: publish(Path(folder), 5, rows)}}, {"users": PARTIALS})
        there = profiles.as_of(5, np.array(users)).to_pylist()
        absent = profiles.as_of(6, np.array(users)).to_pylist()
        known = profiles.known_users(5, bucket, pa.array(users, pa.int64()))
    nothing = (MISSING_ID, float("nan"), [])
    for user, found in zip(users, there, strict=True):
        city, age, tags = rows.get(user, nothing)
        assert (found["city"], found["tags"]) == (city, tags)
        assert found["age"] == age or (found["age"] != found["age"] and age != age)
    assert all((row["city"], row["tags"]) == (MISSING_ID, []) for row in absent)
    assert known == {"user → users": (sum(user in rows for user in users), len(users))}

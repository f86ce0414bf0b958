"""Small random logs, and a schema that uses every kind of feature, for the builder's tests."""

from __future__ import annotations

from bisect import bisect_right
from datetime import datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrank.pipelines.days import day_number, dt_of
from genrank.schemas import (
    Candidates,
    Categorical,
    ChangePoints,
    CrossFeature,
    EventLog,
    Events,
    EventSequence,
    Hashed,
    Label,
    MultiValued,
    Numeric,
    Schema,
    Snapshot,
    Sql,
    TimeGap,
    UserGroup,
    Vector,
)
from genrank.schemas.manifest import sample_files

HOUR = 3_600_000
DAY = 24 * HOUR
FIRST = "2026-01-05"


def ids(name: str, column: str | None = None) -> Categorical:
    return Categorical(name=name, column=column, vocabulary=Hashed(size=1000), dim=8)


def sources(exposure_delay: str = "0ms", click_delay: str = "2s") -> tuple[EventLog | Snapshot, ...]:
    return (
        EventLog(
            name="exposures",
            path="exposures/dt={dt}",
            columns={
                "user_id": "int64",
                "ts": "int64",
                "item_id": "string",
                "request_id": "string",
                "position": "int32",
                "price": "float64",
                "tags": "list<string>",
                "clicked": "bool",
                "p_true": "float32",
            },
            dedup=("user_id", "request_id", "item_id"),
            valid=("price >= 0", "position < 100"),
            post_exposure=("clicked", "p_true"),
            delay=exposure_delay,
            max_quarantine_rate=1.0,
        ),
        EventLog(
            name="clicks",
            path="clicks/dt={dt}",
            columns={
                "user": "int64",
                "at": "timestamp",
                "arrived": "timestamp",
                "item_id": "string",
                "dwell": "float64",
                "kind": "string",
            },
            rename={"kind": "click_kind"},
            user="user",
            time="at",
            arrival="arrived",
            delay=click_delay,
            lateness="2d",
            max_quarantine_rate=1.0,
        ),
        EventLog(
            name="orders",
            path="orders/dt={dt}",
            columns={"user_id": "int64", "ts": "int64", "item_id": "string", "amount": "int32"},
            time_unit="s",
            max_quarantine_rate=1.0,
        ),
        Snapshot(
            name="items",
            path="items/dt={dt}",
            key="item_id",
            columns={
                "item_id": "string",
                "category": "string",
                "list_price": "float32",
                "words": "list<string>",
                "content": "list<float32>",
            },
            max_age="1d",
        ),
        Snapshot(
            name="users",
            path="users/dt={dt}",
            key="user_id",
            columns={
                "user_id": "int64",
                "city": "string",
                "age": "int32",
                "born": "timestamp",
                "likes": "list<string>",
            },
            max_age="3d",
        ),
    )


def full_schema(**candidates: object) -> Schema:
    """Every feature kind, every op, every way of keying."""
    by_user = ("user_id",)
    cross = (
        CrossFeature(name="user_shown", op="count", source="exposures", keys=by_user, window="1d"),
        CrossFeature(
            name="item_ctr",
            op="rate",
            source="clicks",
            per="exposures",
            keys=("item_id",),
            window="2d",
            prior=0.1,
            strength=5,
        ),
        CrossFeature(
            name="item_long", op="rate", source="clicks", where="dwell > 5", keys=("item_id",), window="7d", prior=0.3
        ),
        CrossFeature(name="category_shown", op="count", source="exposures", keys=("items.category",), window="6h"),
        CrossFeature(name="pair_recency", op="recency", source="clicks", keys=("item_id",), window="3d"),
        CrossFeature(
            name="user_category", op="count", source="exposures", keys=("user_id", "items.category"), window="30h"
        ),
        CrossFeature(name="user_spent", op="sum", source="orders", value="amount", keys=by_user, window="7d"),
        CrossFeature(name="item_dwell", op="mean", source="clicks", value="dwell", keys=("item_id",), window="2d"),
        CrossFeature(name="item_dwell_sum", op="sum", source="clicks", value="dwell", keys=("item_id",), window="1d"),
        CrossFeature(name="item_dwell_max", op="max", source="clicks", value="dwell", keys=("item_id",), window="30h"),
        CrossFeature(name="user_spent_min", op="min", source="orders", value="amount", keys=by_user, window="7d"),
        CrossFeature(name="item_dwell_std", op="std", source="clicks", value="dwell", keys=("item_id",), window="2d"),
        CrossFeature(
            name="user_heat", op="decayed_count", source="exposures", keys=by_user, window="2d", half_life="5h"
        ),
        CrossFeature(
            name="item_heat",
            op="decayed_sum",
            source="clicks",
            value="dwell",
            where="dwell > 2",
            keys=("item_id",),
            window="3d",
            half_life="1d",
        ),
        CrossFeature(name="last_position", op="last", source="exposures", value="position", keys=by_user, window="1d"),
        CrossFeature(name="items_seen", op="distinct", source="exposures", value="item_id", keys=by_user, window="12h"),
        CrossFeature(
            name="item_users", op="distinct", source="exposures", value="user_id", keys=("item_id",), window="1d"
        ),
        CrossFeature(name="all_today", op="count", source="exposures", keys=(), window="1d"),
        CrossFeature(
            name="user_tags", op="count", source="exposures", keys=("user_id", "tags"), window="30h", reduce="sum"
        ),
        CrossFeature(name="user_tag", op="count", source="exposures", keys=("user_id", "tags"), window="6h"),
        CrossFeature(name="tag_seen", op="recency", source="exposures", keys=("tags", "user_id"), window="2d"),
        CrossFeature(
            name="word_ctr",
            op="rate",
            source="clicks",
            per="exposures",
            keys=("items.words",),
            window="2d",
            prior=0.1,
            strength=5,
            reduce="max",
        ),
        CrossFeature(
            name="word_dwell",
            op="max",
            source="clicks",
            value="dwell",
            keys=("items.words",),
            window="7d",
            reduce="min",
        ),
        CrossFeature(
            name="item_morning", op="count", source="clicks", keys=("item_id",), window="2d", as_of="window_start"
        ),
    )
    side = (
        ids("item_id"),
        ids("category", "items.category"),
        Numeric(name="dwell"),
        MultiValued(name="words", column="items.words", max_values=2, vocabulary=Hashed(size=100), dim=4),
        Sql(name="cheap", expression="items.list_price < 5", type="bool"),
        ids("city"),
        TimeGap(name="gap"),
        Vector(name="content", column="items.content", length=3),
    )
    return Schema(
        name="tests",
        sources=sources(),
        user=UserGroup(
            features=(
                ids("city", "users.city"),
                Numeric(name="age", column="users.age"),
                TimeGap(name="born", column="users.born"),
                MultiValued(name="likes", column="users.likes", max_values=2, vocabulary=Hashed(size=100), dim=4),
                Sql(name="age_squared", expression="users.age * users.age", type="float32"),
            )
        ),
        sequences=(
            EventSequence(
                name="history",
                events=(
                    Events(source="clicks"),
                    Events(source="orders", name="order"),
                    ChangePoints(source="users", column="city"),
                ),
                features=side,
                max_length=6,
                lookback="3d",
            ),
            EventSequence(
                name="realtime",
                scope="realtime",
                events=(
                    Events(source="clicks", where="kind = 'deep'"),
                    Events(source="exposures"),
                    ChangePoints(source="users", column="city"),
                ),
                features=side,
                max_length=40,
            ),
        ),
        candidates=Candidates(
            item="item_id",
            request="request_id",
            features=(
                ids("item_id"),
                ids("category", "items.category"),
                Numeric(name="price"),
                MultiValued(name="tags", max_values=2, vocabulary=Hashed(size=100), dim=4),
                Sql(name="discount", expression="price / items.list_price", type="float32"),
                Sql(
                    name="kind",
                    expression="CASE WHEN price > 5 THEN 'dear' ELSE 'cheap' END",
                    type="string",
                    vocabulary=Hashed(size=10),
                    dim=2,
                ),
                TimeGap(name="since_newest"),
                Vector(name="content", column="items.content", length=3, normalize=True),
                *cross,
            ),
            **candidates,  # type: ignore[arg-type]
        ),
        labels=(
            Label(name="click", source="clicks", on=("item_id",), window="1h"),
            Label(name="flag", column="clicked", oracle="p_true"),
            Label(
                name="order",
                source="orders",
                on=("user_id", "item_id"),
                window="36h",
                attribution="last",
                given="click",
            ),
            Label(name="spent", kind="value", source="orders", on=("item_id",), value="amount", window="1d"),
            Label(
                name="dwell",
                kind="value",
                source="clicks",
                on=("item_id",),
                value="dwell",
                where="dwell > 1",
                window="2h",
            ),
        ),
        utc_offset="+02:00",
    )


def write_world(
    root: Path,
    seed: int = 0,
    users: int = 5,
    items: int = 6,
    days: int = 4,
    per_day: int = 30,
    first_day: str = FIRST,
    zone: tzinfo = timezone(timedelta(hours=2)),
) -> list[str]:
    """Daily Parquet of every source, with ties, duplicates, late rows, nulls and missing snapshot days. Returns the days."""
    rng = np.random.default_rng(seed)
    first = day_number(first_day)
    names = np.array([f"i{i}" for i in range(items)])
    dts = [dt_of(first + d) for d in range(days)]
    starts = [
        round(datetime.fromisoformat(dt_of(first + d)).replace(tzinfo=zone).timestamp() * 1000) for d in range(days + 9)
    ]
    coarse = int(rng.choice([1, 1000, HOUR]))
    clicks_by_day: dict[int, list[tuple[object, ...]]] = {}
    for d in range(days):
        begin, length = starts[d], starts[d + 1] - starts[d]
        n = int(rng.integers(1, per_day + 1))
        ts = begin + rng.integers(0, length // coarse, n) * coarse
        rows = {
            "user_id": [None if rng.random() < 0.02 else int(u) for u in rng.integers(1, users + 1, n)],
            "ts": [int(t) for t in ts],
            "item_id": [None if rng.random() < 0.02 else str(i) for i in rng.choice(names, n)],
            "request_id": [f"r{d}-{r}" for r in rng.integers(0, max(1, n // 3), n)],
            "position": [int(p) for p in rng.integers(0, 104, n)],
            "price": [None if rng.random() < 0.05 else float(np.round(p, 2)) for p in rng.uniform(-0.5, 10, n)],
            "tags": [
                None
                if rng.random() < 0.1
                else [str(t) if rng.random() > 0.1 else None for t in rng.choice(["a", "b", "c"], rng.integers(0, 4))]
                for _ in range(n)
            ],
            "clicked": [None if rng.random() < 0.1 else bool(rng.random() < 0.3) for _ in range(n)],
            "p_true": [float(p) for p in rng.random(n)],
        }
        types = {
            "user_id": pa.int64(),
            "ts": pa.int64(),
            "item_id": pa.string(),
            "request_id": pa.string(),
            "position": pa.int32(),
            "price": pa.float64(),
            "tags": pa.list_(pa.string()),
            "clicked": pa.bool_(),
            "p_true": pa.float32(),
        }
        table = pa.table({k: pa.array(v, types[k]) for k, v in rows.items()})
        # Which of two rows of one millisecond that `dedup` calls one event stays is decided by a hash, which no oracle knows.
        names_of_event = zip(*(rows[k] for k in ("user_id", "ts", "item_id", "request_id")), strict=True)
        table = table.take(pa.array(sorted({name: i for i, name in enumerate(names_of_event)}.values()), pa.int64()))
        again = pa.concat_tables([table, table.slice(0, int(rng.integers(0, 4)))])
        write(
            again.take(pa.array(rng.permutation(len(again)))),
            root / "exposures" / f"dt={dts[d]}",
            parts=int(rng.integers(1, 4)),
        )
        for u, t, i in zip(rows["user_id"], rows["ts"], rows["item_id"], strict=True):
            if rng.random() < 0.6:
                at = int(t) + int(rng.choice([0, 1, 1000, 1500, HOUR, 30 * HOUR]))
                arrives = at + int(rng.choice([0, 0, 0, 2000, HOUR, 26 * HOUR, 5 * DAY]))
                into = bisect_right(starts, arrives if rng.random() < 0.5 else at) - 1
                if into < days:
                    item = i if rng.random() < 0.8 else str(rng.choice(names))
                    row = (
                        u,
                        at,
                        None if arrives == at else arrives,
                        item,
                        float(np.round(rng.uniform(0, 9), 1)) if rng.random() > 0.1 else None,
                        str(rng.choice(["deep", "short"])),
                    )
                    clicks_by_day.setdefault(int(into), []).extend([row] * (2 if rng.random() < 0.1 else 1))
        m = int(rng.integers(0, max(2, per_day // 4)))
        orders = pa.table(
            {
                "user_id": pa.array(rng.integers(1, users + 2, m), pa.int64()),
                "ts": pa.array((begin + rng.integers(-2 * HOUR, length + HOUR, m)) // 1000, pa.int64()),
                "item_id": pa.array(rng.choice(names, m), pa.string()),
                "amount": pa.array(
                    [None if rng.random() < 0.1 else int(a) for a in rng.integers(1, 50, m)], pa.int32()
                ),
            }
        )
        write(orders, root / "orders" / f"dt={dts[d]}")
        if d == 0 or rng.random() < 0.7:
            some = names[rng.random(items) < 0.9]
            table = pa.table(
                {
                    "item_id": pa.array(some, pa.string()),
                    "category": pa.array(
                        [None if rng.random() < 0.1 else str(c) for c in rng.choice(["x", "y"], len(some))], pa.string()
                    ),
                    "list_price": pa.array(np.round(rng.uniform(1, 9, len(some)), 2), pa.float32()),
                    "content": pa.array(contents(seed + d, len(some)), pa.list_(pa.float32())),
                    "words": pa.array(
                        [[str(w) for w in rng.choice(["p", "q", "r"], rng.integers(0, 4))] for _ in some],
                        pa.list_(pa.string()),
                    ),
                }
            )
            write(table, root / "items" / f"dt={dts[d]}")
        if d == 0 or rng.random() < 0.7:
            some_users = np.arange(1, users + 1)[rng.random(users) < 0.9]
            table = pa.table(
                {
                    "user_id": pa.array(some_users, pa.int64()),
                    "city": pa.array(
                        [None if rng.random() < 0.1 else str(c) for c in rng.choice(["A", "B"], len(some_users))],
                        pa.string(),
                    ),
                    "age": pa.array(
                        [None if rng.random() < 0.2 else int(a) for a in rng.integers(18, 80, len(some_users))],
                        pa.int32(),
                    ),
                    "born": pa.array(
                        [int(t) for t in rng.integers(0, 10**12, len(some_users))], pa.timestamp("ms", tz="UTC")
                    ),
                    "likes": pa.array(
                        [[str(w) for w in rng.choice(["p", "q", "r"], rng.integers(0, 4))] for _ in some_users],
                        pa.list_(pa.string()),
                    ),
                }
            )
            write(table, root / "users" / f"dt={dts[d]}")
    for d in range(days):
        rows_of_day = clicks_by_day.get(d, [])
        columns = list(zip(*rows_of_day, strict=True)) if rows_of_day else [[]] * 6
        kinds = [
            pa.int64(),
            pa.timestamp("us", tz="UTC"),
            pa.timestamp("ms", tz="UTC"),
            pa.string(),
            pa.float64(),
            pa.string(),
        ]
        values = [list(column) for column in columns]
        values[1] = [v * 1000 for v in values[1]]
        fields = ["user", "at", "arrived", "item_id", "dwell", "click_kind"]
        write(
            pa.table({f: pa.array(v, k) for f, v, k in zip(fields, values, kinds, strict=True)}),
            root / "clicks" / f"dt={dts[d]}",
        )
    return dts


def contents(seed: int, items: int) -> list[list[float] | None]:
    """Vectors of three numbers, some missing, drawn apart from all else."""
    rng = np.random.default_rng(seed)
    return [None if rng.random() < 0.2 else rng.normal(size=3).round(3).tolist() for _ in range(items)]


def write(table: pa.Table, folder: Path, parts: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    bounds = np.linspace(0, len(table), parts + 1).astype(int)
    for i in range(parts):
        pq.write_table(table.slice(bounds[i], bounds[i + 1] - bounds[i]), folder / f"part-{i}.parquet")


def read_samples(out: Path, dt: str) -> list[dict[str, Any]]:
    """A published day's samples as Python values, in stored order."""
    return [row for file in sample_files(out / "samples", dt) for row in pq.read_table(file).to_pylist()]


def write_late_click(root: Path, of: str, arrives: str) -> None:
    """A click of user 1 early on day `of`, whose samples are built in `root/out`, that arrives in the partition of a later day."""
    file = sorted((root / "data" / "clicks" / f"dt={arrives}").glob("*.parquet"))[0]
    table = pq.read_table(file)
    start = pq.read_table(sample_files(root / "out" / "samples", of)[0]).column("window_start")[0].as_py()
    late = {
        "user": 1,
        "at": (start + 1000) * 1000,
        "arrived": None,
        "item_id": "i0",
        "dwell": 9.0,
        "click_kind": "deep",
    }
    pq.write_table(pa.concat_tables([table, pa.Table.from_pylist([late], table.schema)]), file)

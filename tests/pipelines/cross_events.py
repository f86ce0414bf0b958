"""A small schema with every operation of cross features, random events for it in memory, and the answers by definition."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import strategies as st

from genrank.pipelines.column_roles import Column
from genrank.pipelines.compaction.reader import PastReader
from genrank.pipelines.merge_scan import mix, slot_of
from genrank.pipelines.partials import partial_schema
from genrank.schemas import (
    Candidates,
    Categorical,
    CrossFeature,
    EventLog,
    Events,
    EventSequence,
    Hashed,
    Label,
    Schema,
    Table,
)
from genrank.schemas.base import DAY_MS, parse_duration
from genrank.schemas.ids import MISSING_ID

COLUMNS = {"user_id": "int64", "item_id": "int64", "ts": "int64", "amount": "float64", "shop": "int64"}
COLUMNS |= {"tags": "list<int64>"}
SHOP = Table(name="shop", dim=4, vocabulary=Hashed(size=50))
DAYS = 9
"""Events lie on days 0 .. DAYS - 1 of the epoch."""


def features_at(*keys: str) -> tuple[CrossFeature, ...]:
    """Every operation at some keys: windows of hours and days, with and without a condition."""
    stem = "_".join(keys) or "all"

    def of(op: str, window: str, **more: object) -> CrossFeature:
        name = f"{stem}_{op}_{window}_{len(more)}"
        return CrossFeature(name=name, op=op, source="clicks", keys=keys, window=window, **more)

    return (
        of("count", "7h"),
        of("count", "4d", where="amount > 1"),
        of("rate", "3d", per="exposures", prior=0.25, strength=2.0),
        of("rate", "2d", where="amount > 1", prior=0.5),
        of("sum", "4d", value="amount"),
        of("mean", "3d", value="amount"),
        of("max", "3d", value="amount"),
        of("max", "7h", value="amount"),
        of("min", "4d", value="amount", where="amount > 1"),
        of("min", "2d", value="amount"),
        of("std", "3d", value="amount"),
        of("std", "4d", value="amount", where="amount > 1"),
        of("decayed_count", "3d", half_life="7h"),
        of("decayed_count", "4d", half_life="36h", where="amount > 1"),
        of("decayed_sum", "2d", half_life="1d", value="amount"),
        of("decayed_sum", "4d", half_life="2h", value="amount"),
        of("last", "3d", value="amount"),
        of("last", "4d", value="shop", table=SHOP),
        of("recency", "3d", where="amount > 1"),
        of("recency", "4d"),
        of("distinct", "4d", value="shop"),
        of("distinct", "3d", value="user_id", where="amount > 1"),
        of("count", "2d", as_of="window_start"),
    )


def features_at_lists(*keys: str) -> tuple[CrossFeature, ...]:
    """Some operations at some keys, of which `tags` is a list, with every reduction."""
    common = {"source": "clicks", "keys": keys}
    stem = "_".join(keys)
    return (
        CrossFeature(name=f"{stem}_count", op="count", window="3d", reduce="sum", **common),
        CrossFeature(name=f"{stem}_rate", op="rate", per="exposures", prior=0.25, strength=2, window="2d", **common),
        CrossFeature(name=f"{stem}_mean", op="mean", value="amount", window="2d", reduce="mean", **common),
        CrossFeature(name=f"{stem}_min", op="min", value="amount", window="7h", reduce="max", **common),
        CrossFeature(name=f"{stem}_recency", op="recency", window="4d", reduce="min", **common),
        CrossFeature(name=f"{stem}_shops", op="distinct", value="shop", window="4d", reduce="max", **common),
    )


def schema_of(*features: CrossFeature) -> Schema:
    exposures, clicks = (
        EventLog(name=name, path=f"{name}/dt={{dt}}", columns=COLUMNS, delay=delay)
        for name, delay in (("exposures", "0ms"), ("clicks", "90m"))
    )
    item = Categorical(name="item_id", table=Table(name="item", dim=4, vocabulary=Hashed(size=100)))
    return Schema(
        name="cross",
        sources=(exposures, clicks),
        sequences=(EventSequence(name="history", events=(Events(source="clicks"),), features=(item,)),),
        candidates=Candidates(features=(item, *features)),
        labels=(Label(name="click", source="clicks", window="10m"),),
    )


@dataclass(frozen=True)
class Event:
    log: str
    user: int
    item: int
    ts: int
    amount: float | None
    shop: int | None
    id: int = 0
    tags: tuple[int, ...] = ()

    @property
    def available(self) -> int:
        return self.ts + (parse_duration("90m") if self.log == "clicks" else 0)


STEP = DAY_MS // 4
"""Times are whole steps, so that they tie and lie on the edges of windows."""


def random_events(seed: int, number: int) -> list[Event]:
    """Events of both logs, dense enough that every window holds some; each has an id of its own."""
    draw = np.random.default_rng(seed)
    return [
        Event(
            log=("exposures", "clicks", "clicks")[draw.integers(3)],
            user=int(draw.integers(1, 4)),
            item=int(draw.integers(1, 3)),
            ts=int(draw.integers(DAYS * 4)) * STEP,
            amount=None if draw.integers(5) == 0 else float(draw.integers(-2, 5)),
            shop=None if draw.integers(5) == 0 else int(draw.integers(1, 5)),
            id=number,
            tags=tuple(np.flatnonzero(draw.integers(2, size=3)).tolist()),
        )
        for number in draw.permutation(number).tolist()
    ]


def events(most: int = 300) -> st.SearchStrategy[list[Event]]:
    """None, few or many."""
    return st.builds(random_events, st.integers(0, 2**32), st.one_of(st.integers(0, 5), st.integers(most // 2, most)))


def partial_of(schema: Schema, log: str, found: Sequence[Event], columns: Sequence[Column]) -> pa.Table:
    """Rows of a log's partials of all days, as `partials.load` gives them."""
    rows = sorted((event for event in found if event.log == log), key=lambda event: (event.ts, event.user, event.id))
    values: dict[str, list[object]] = {
        "u": [event.user for event in rows],
        "ts": [event.ts for event in rows],
        "arrived": [event.ts for event in rows],
        "id": [event.id for event in rows],
        "user": [event.user for event in rows],
        "_day": [event.ts // DAY_MS for event in rows],
    }
    of = {"user_id": "user", "item_id": "item", "ts": "ts", "amount": "amount", "shop": "shop", "tags": "tags"}
    for column in columns:
        if column.role == "flag":
            values[column.name] = [event.amount is not None and event.amount > 1 for event in rows]
        else:
            missing = MISSING_ID if column.role == "id" else math.nan
            raw = [getattr(event, of[column.expression]) for event in rows]
            values[column.name] = [missing if value is None else value for value in raw]
    fields = partial_schema(schema, schema.source(log), tuple(columns)).append(pa.field("_day", pa.int32()))
    return pa.table({field.name: pa.array(values[field.name], field.type) for field in fields})


@dataclass(frozen=True)
class Held(PastReader):
    """A reader whose partials lie in memory."""

    rows_of: Mapping[str, pa.Table]

    def load(
        self, source: str, days: Collection[int], bucket: int, columns: Sequence[str], users: pa.Array | None = None
    ) -> pa.Table:
        table = self.rows_of[source]
        own = slot_of(mix(table.column("u").to_numpy()), self.buckets) == bucket
        own &= np.isin(table.column("_day").to_numpy(), list(days))
        if users is not None:
            own &= pc.is_in(table.column("u"), value_set=users).to_numpy(zero_copy_only=False)
        names = list(dict.fromkeys([*columns, *(["u"] if users is not None else []), "_day"]))
        return table.filter(pa.array(own)).select(names).combine_chunks()


def by_definition(
    feature: CrossFeature, found: Sequence[Event], keys: Mapping[str, int], at: int
) -> float | int | None:
    """A cross feature of events seen one by one; None where it is missing."""

    def seen(log: str) -> list[Event]:
        window = parse_duration(feature.window)
        return [
            event
            for event in found
            if event.log == log
            and event.available < at
            and at - window < event.ts < at
            and all(
                value in event.tags if key == "tags" else getattr(event, key.removesuffix("_id")) == value
                for key, value in keys.items()
            )
        ]

    chosen = [e for e in seen(feature.source) if not feature.where or (e.amount is not None and e.amount > 1)]
    name = (feature.value or "").removesuffix("_id")
    valued = [event for event in chosen if name and getattr(event, name) is not None]
    values = [getattr(event, name) for event in valued]
    match feature.op:
        case "count":
            return len(chosen)
        case "rate":
            weight = len(seen(feature.per or feature.source)) + feature.strength
            return (len(chosen) + feature.prior * feature.strength) / weight if weight else feature.prior
        case "sum":
            return sum(values)
        case "mean":
            return sum(values) / len(values) if values else None
        case "max" | "min":
            return {"max": max, "min": min}[feature.op](values) if values else None
        case "std":
            return statistics.pstdev(values) if values else None
        case "decayed_count" | "decayed_sum":
            half_life = parse_duration(feature.half_life or "")
            weighed = [(e.ts, getattr(e, name)) for e in valued] if name else [(e.ts, 1.0) for e in chosen]
            return math.fsum(value * 2 ** (-(at - ts) / half_life) for ts, value in weighed)
        case "last":
            return getattr(max(valued, key=lambda event: (event.ts, event.id)), name) if valued else None
        case "recency":
            return (at - max(event.ts for event in chosen)) / 1000 if chosen else None
        case "distinct":
            return len(set(values))
    raise AssertionError(feature.op)

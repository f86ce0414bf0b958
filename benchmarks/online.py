"""What a request's features cost online, beside a hand-written implementation that keeps the same state, values compared in the same run.

    genrank world --out runs/online/logs --users 2000 --days 10
    genrank build --engine local --schema examples/marketplace/schema.py --data runs/online/logs --out runs/online/data --from 2026-01-10 --to 2026-01-10
    python -m benchmarks.online --samples runs/online/data --logs runs/online/logs --day 2026-01-10

The peer is what one writes first, and well: a dictionary from each key to its events' arrays in the order of time, a binary search and a mask
a key and feature, answers kept for the candidates of a request that share a key; a user's events in the order in which they became available.
It reads exposures without checking them, looks attributes up by item, leaves lists out and returns dictionaries of NumPy arrays: no Arrow.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from genrank.pipelines.column_roles import Column
from genrank.pipelines.columns import cross_features, feature_column, value_column
from genrank.pipelines.cross_features import available, key_columns, key_sets
from genrank.pipelines.days import day_number
from genrank.pipelines.merge_scan import mix
from genrank.pipelines.online.features import OnlineFeatures
from genrank.pipelines.sources import read_rows
from genrank.schemas import CrossFeature, Schema, load_schema
from genrank.schemas.base import parse_duration
from genrank.schemas.console import print_whole
from genrank.schemas.ids import MISSING_ID

Arrays = dict[str, NDArray[Any]]
CANDIDATES = (1, 32, 256, 1024)


class Kept(OnlineFeatures):
    """Keeps the rows that it was made of, for the peer."""

    def __init__(self, schema: Schema, rows: Mapping[str, pa.Table], snapshots: Any) -> None:
        super().__init__(schema, rows, snapshots)
        self.loaded = rows


class Peer:
    """Features by hand, from the same rows."""

    def __init__(self, features: Kept, day: int) -> None:
        self.schema = schema = features.schema
        self.start = schema.local_days.start(day)
        self.features = cross_features(schema)
        self.items, self.users = (dict(_rows(features, name, day)) for name in ("items", "users"))
        self.events: dict[tuple[str, tuple[str, ...]], dict[int, Arrays]] = {}
        for key_set in key_sets(schema):
            for log in key_set.windows(schema):
                name = (log, key_set.keys)
                if name not in self.events:
                    self.events[name] = self._by_key(log, key_columns(key_set), features.loaded[log])
        self.sequences = {s.name: self._by_user(features, s.name) for s in schema.sequences}

    def _by_key(self, log: str, keys: list[str], table: pa.Table) -> dict[int, Arrays]:
        columns = {
            n: table.column(n).to_numpy()
            for n in table.column_names
            if not pa.types.is_list(table.schema.field(n).type)
        }
        columns["available"] = available(self.schema.event_log(log), table)
        present = np.all([columns[name] != MISSING_ID for name in keys], axis=0) if keys else np.ones(len(table), bool)
        key = mix(*(columns[name] for name in keys)) if keys else np.zeros(len(table), np.int64)
        order = np.lexsort((columns["id"], columns["ts"], key))
        order = order[present[order]]
        distinct, first = np.unique(key[order], return_index=True)
        columns = {name: own[order] for name, own in columns.items() if own.dtype != object}
        ends = np.append(first[1:], len(order))
        return {
            int(k): {name: own[low:high] for name, own in columns.items()}
            for k, low, high in zip(distinct, first, ends, strict=True)
        }

    def _by_user(self, features: Kept, name: str) -> dict[int, Arrays]:
        """A user's events of a sequence, in the order in which they became available."""
        (timeline,) = features._state.timelines[name]
        leaves = {
            n: a.to_numpy(zero_copy_only=False) for n, a in timeline.leaves.items() if not pa.types.is_list(a.type)
        }
        leaves |= {"ts": timeline.ts, "type": timeline.type, "available": timeline.available}
        code = timeline.packed // timeline.axis.span
        first = np.searchsorted(code, np.arange(len(timeline.users) + 1))
        return {
            int(user): {n: own[first[at] : first[at + 1]] for n, own in leaves.items()}
            for at, user in enumerate(timeline.users)
        }

    def request(self, user: int, ts: int, items: NDArray[np.int64]) -> dict[str, Arrays]:
        """Of candidates shown at one moment."""
        found: dict[str, Arrays] = {}
        for sequence in self.schema.sequences:
            own = self.sequences[sequence.name].get(user)
            if own is None:
                continue
            realtime = sequence.scope == "realtime"
            until = int(np.searchsorted(own["available"], ts if realtime else self.start))
            oldest = self.start if realtime else self.start - parse_duration(sequence.lookback)
            since = max(int(np.searchsorted(own["available"], oldest)), until - sequence.max_length)
            found[sequence.name] = {name: values[since:until] for name, values in own.items()}
        attributes = [self.items.get(item, {}) for item in items.tolist()]
        candidates: Arrays = {}
        for feature in self.schema.candidates.features:
            column = feature_column(feature)
            if column and column.expression.startswith("items.") and not column.sql and column.role != "ids":
                name = Column(column.role, column.expression.removeprefix("items.")).name
                missing = math.nan if column.role == "number" else MISSING_ID
                candidates[feature.name] = np.array([own.get(name, missing) for own in attributes])
        keys: dict[str, list[int]] = {"user_id": [user] * len(items), "item_id": items.tolist()}
        for name in ("category", "brand"):
            keys[f"items.{name}"] = [own.get(f"id({name})", MISSING_ID) for own in attributes]
        keys["users.age"] = [self.users.get(user, {}).get("id(age)", MISSING_ID)] * len(items)
        hashed: dict[tuple[str, ...], list[int]] = {}
        for feature in self.features:
            names = tuple(sorted(feature.keys))
            if names not in hashed:
                own_keys = [np.array(keys[name], np.int64) for name in names]
                hashed[names] = mix(*own_keys).tolist() if names else [0] * len(items)
            known: dict[int, float] = {}
            values = []
            for key in hashed[names]:
                if key not in known:
                    known[key] = self._value(feature, names, key, ts)
                values.append(known[key])
            candidates[feature.name] = np.array(values, np.int64 if feature.stored == "id" else np.float32)
        found["candidates"] = candidates
        return found

    def _value(self, feature: CrossFeature, names: tuple[str, ...], key: int, ts: int) -> float:
        at = self.start if feature.as_of == "window_start" else ts
        since = at - parse_duration(feature.window)

        def seen(log: str, where: str | None = None) -> tuple[Arrays | None, slice, Any]:
            own = self.events[log, names].get(key)
            if own is None:
                return None, slice(0), np.zeros(0, bool)
            low = int(np.searchsorted(own["ts"], since, "right"))
            cut = slice(low, low + int(np.searchsorted(own["ts"][low:], at)))
            mask = own["available"][cut] < at
            if where:
                mask = mask & own[Column("flag", where, sql=True).name][cut]
            return own, cut, mask

        own, cut, mask = seen(feature.source, feature.where)
        if feature.op == "count":
            return int(mask.sum())
        if feature.op == "rate":
            weight = float(seen(feature.per or feature.source)[2].sum()) + feature.strength
            return (float(mask.sum()) + feature.prior * feature.strength) / weight
        if feature.op == "recency":
            newest = np.flatnonzero(mask)
            return (at - int(own["ts"][cut][newest[-1]])) / 1000.0 if own and len(newest) else math.nan
        column = value_column(feature)
        assert column
        is_id = column.role == "id"
        values = own[column.name][cut][mask] if own else np.zeros(0)
        values = values[values != MISSING_ID] if is_id else values[~np.isnan(values)]
        if feature.op == "distinct":
            return len(set(values.tolist()))
        if feature.op == "last":
            return values[-1] if len(values) else (MISSING_ID if is_id else math.nan)
        total = math.fsum(values.tolist())
        return total if feature.op == "sum" else (total / len(values) if len(values) else math.nan)


def _rows(features: Kept, snapshot: str, day: int) -> Any:
    """(key, its attributes) of a snapshot's day."""
    rows = features.snapshots[snapshot].as_of(day).rows
    names = [field.name for field in rows.schema if not pa.types.is_list(field.type)]
    for row in rows.select(names).to_pylist():
        yield row["u"], row


def compared(row: dict[str, Any], peer: dict[str, Arrays]) -> tuple[int, list[str]]:
    """(values that both have, leaves whose values differ)."""
    values, wrong = 0, []
    for group, leaves in peer.items():
        for name in leaves.keys() & row[group].keys():
            own = np.array(row[group][name], leaves[name].dtype)
            values += len(own)
            if not np.array_equal(own, leaves[name], equal_nan=own.dtype.kind == "f"):
                wrong.append(f"{group}.{name}")
    return values, wrong


def timed(
    call: Callable[[Any], object], requests: list[Any], at_least: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(CPU, wall) ms of each call, after a tenth of them that isn't counted."""
    for own in requests[: max(1, len(requests) // 10)]:
        call(own)
    cpu, wall = [], []
    for at in range(max(at_least, len(requests))):
        own = requests[at % len(requests)]
        begin = time.perf_counter(), time.process_time()
        call(own)
        cpu.append(time.process_time() - begin[1])
        wall.append(time.perf_counter() - begin[0])
    return np.array(cpu) * 1e3, np.array(wall) * 1e3


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schema", default="examples/marketplace/schema.py")
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--logs", type=Path, required=True)
    parser.add_argument("--day", required=True)
    parser.add_argument("--requests", type=int, default=100)
    args = parser.parse_args()
    schema = load_schema(args.schema)
    begin = time.process_time()
    features = Kept.load(schema, args.samples, args.day)
    loading = time.process_time() - begin
    rows = sum(table.num_rows for table in features.loaded.values())
    day = day_number(args.day)
    peer = Peer(features, day)
    print_whole(
        f"{platform.machine()}, load {os.getloadavg()[0]:.0f}; {rows:,} events, {features.nbytes / 1e6:.0f} MB, loaded in {loading:.1f} s of CPU"
    )
    random = np.random.default_rng(0)
    items = np.array(list(peer.items))
    history = {user: len(own["ts"]) for user, own in peer.sequences["history"].items() if user in peer.users}
    ascending = sorted(history, key=lambda user: history[user])
    groups = {"short": ascending[: len(ascending) // 4], "long": ascending[-len(ascending) // 20 :]}

    def request(users: list[int], number: int) -> dict[str, Any]:
        ts = peer.start + int(random.integers(6, 24)) * 3_600_000 + int(random.integers(3_600_000))
        own = {
            "user_id": int(random.choice(users)),
            "ts": ts - 3_600_000,
            "request_id": 1,
            "scene": "home",
            "device": "ios",
            "price": 9.5,
        }
        return own | {"item_id": pa.array(random.choice(items, number, replace=number > len(items)))}

    def by_hand(own: dict[str, Any]) -> dict[str, Arrays]:
        return peer.request(own["user_id"], own["ts"], own["item_id"].to_numpy())

    print_whole(
        "| history | candidates | way | CPU p50 ms | p99 | wall p50 ms | p99 | compared |\n|---|---|---|---|---|---|---|---|"
    )
    for group, users in groups.items():
        median = int(np.median([history[user] for user in users]))
        for number in CANDIDATES:
            asked = [request(users, number) for _ in range(args.requests)]
            both = [compared(features.request(own).to_pylist()[0], by_hand(own)) for own in asked[:10]]
            values, wrong = sum(n for n, _ in both), sorted({name for _, names in both for name in names})
            for way, call, of, share in (
                ("one request", features.request, asked, 1),
                (
                    "16 together, each",
                    features.requests,
                    [asked[at : at + 16] for at in range(0, len(asked) - 15, 16)],
                    16,
                ),
                ("by hand", by_hand, asked[: max(10, args.requests // 4)], 1),
            ):
                cpu, wall = (own / share for own in timed(call, of, 10))
                figures = [f"{np.percentile(own, at):.2f}" for own in (cpu, wall) for at in (50, 99)]
                same = f"{values:,} values, {len(wrong)} leaves differ {' '.join(wrong[:3])}".rstrip()
                print_whole(f"| {group} ({median} events) | {number:,} | {way} | {' | '.join(figures)} | {same} |")
    live(schema, args, request(groups["long"], 256))


def live(schema: Schema, args: argparse.Namespace, asked: dict[str, Any]) -> None:
    """A day's events added as they come: what adding costs, and a request beside them."""
    features = OnlineFeatures.load(schema, args.samples, args.day, live_from=args.day)
    print_whole(
        "| log | events | an add of | CPU p50 ms | p99 | a request of 256 meanwhile, CPU p50 ms |\n|---|---|---|---|---|---|"
    )
    for log in ("purchases", "carts", "clicks", "exposures"):
        source = schema.event_log(log)
        files = sorted((args.logs / log / f"dt={args.day}").glob("*.parquet"))
        table = pa.concat_tables(
            [read_rows(source, str(file), range(pq.read_metadata(file).num_row_groups)) for file in files]
        )
        table = table.take(pa.array(np.argsort(table.column("arrival_ts").fill_null(0).to_numpy(), kind="stable")))
        size = 100 if len(table) < 20_000 else 500
        adds, requests = [], []
        for at in range(0, len(table), size):
            begin = time.process_time()
            features.add(log, table.slice(at, size), args.day)
            adds.append(time.process_time() - begin)
            begin = time.process_time()
            features.request(asked)
            requests.append(time.process_time() - begin)
        cost = " | ".join(f"{1e3 * np.percentile(adds, at):.1f}" for at in (50, 99))
        print_whole(f"| {log} | {len(table):,} | {size} | {cost} | {1e3 * np.median(requests):.2f} |")
    print_whole(f"then {features.nbytes / 1e6:.0f} MB")


if __name__ == "__main__":
    main()

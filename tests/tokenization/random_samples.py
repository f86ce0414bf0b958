"""Random samples that satisfy a schema's contract, as the builder would publish them; and schemas that use every feature kind."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import genrank.schemas as s
from genrank.schemas.derive.sample_lengths import lengths_metadata
from genrank.schemas.derive.sample_schema import arrow_schema, leaves
from genrank.schemas.derive.tables import event_names, logical_tables
from genrank.schemas.ids import MISSING_ID, hash_string
from genrank.schemas.schema import CANDIDATES, USER

DAY_MS = 86_400_000


def demo_schema(**changes: Any) -> s.Schema:
    """Small, with every kind of feature, transform, vocabulary and scope."""
    items = s.Table(name="item", dim=16, vocabulary=s.Hashed(size=997))
    fields: dict[str, Any] = {
        "name": "demo",
        "sources": (
            s.EventLog(
                name="exposures",
                path="exposures/dt={dt}",
                columns={
                    "user_id": "int64",
                    "item_id": "int64",
                    "ts": "int64",
                    "request_id": "int64",
                    "price": "float32",
                    "clicked": "bool",
                    "watched": "float32",
                    "published": "timestamp",
                    "p_click": "float32",
                },
                post_exposure=("clicked", "watched", "p_click"),
            ),
            s.EventLog(
                name="clicks",
                path="clicks/dt={dt}",
                columns={
                    "user_id": "int64",
                    "item_id": "int64",
                    "ts": "int64",
                    "watched": "float32",
                    "price": "float32",
                },
            ),
            s.Snapshot(
                name="users",
                path="users/dt={dt}",
                key="user_id",
                columns={
                    "user_id": "int64",
                    "city": "string",
                    "age": "int32",
                    "tags": "list<int64>",
                    "since": "timestamp",
                },
            ),
        ),
        "user": s.UserGroup(
            features=(
                s.Categorical(
                    name="city", column="users.city", vocabulary=s.Enumerated(values=("oslo", "rome", "kyoto")), dim=8
                ),
                s.Numeric(
                    name="age", column="users.age", transform=s.FixedBuckets(boundaries=(18.0, 30.0, 45.0, 60.0))
                ),
                s.MultiValued(name="tags", column="users.tags", vocabulary=s.Identity(size=50), dim=8, pooling="mean"),
                s.TimeGap(name="tenure", column="users.since"),
                s.TimePart(name="weekday", part="weekday"),
            )
        ),
        "sequences": (
            s.EventSequence(
                name="history",
                events=(s.Events(source="clicks"), s.Events(source="exposures", name="seen")),
                features=(
                    s.Categorical(name="item_id", table=items),
                    s.Numeric(name="watched", transform=s.AutoDis(buckets=4)),
                    s.Numeric(name="price"),
                    s.TimeGap(name="gap", transform=s.FixedBuckets(boundaries=(1.0, 60.0, 3600.0, 86400.0))),
                    s.TimePart(name="hour", part="hour"),
                ),
                max_length=30,
            ),
            s.EventSequence(
                name="realtime",
                scope="realtime",
                events=(s.Events(source="clicks"),),
                features=(s.Categorical(name="item_id", table=items), s.TimeGap(name="gap")),
                max_length=20,
            ),
        ),
        "candidates": s.Candidates(
            request="request_id",
            features=(
                s.Categorical(name="item_id", table=items),
                s.Numeric(name="price", transform=s.QuantileBuckets(buckets=4)),
                s.TimeGap(name="age", column="published"),
                s.TimeGap(name="since_seen"),
                s.TimePart(name="hour", part="hour_of_week"),
                s.HashedCross(name="city_item", of=("user.city", "item_id"), vocabulary=s.Hashed(size=101), dim=8),
                s.CrossFeature(name="clicks_1h", op="count", source="clicks", keys=("user_id",), window="1h"),
                s.CrossFeature(name="ctr", op="rate", source="clicks", per="exposures", keys=("item_id",), window="1d"),
                s.CrossFeature(
                    name="last_item",
                    op="last",
                    source="clicks",
                    keys=("user_id",),
                    window="1d",
                    value="item_id",
                    table=items,
                ),
                s.Sql(
                    name="cents", expression="price * 100", type="float32", transform=s.Dense(shift=50.0, scale=0.01)
                ),
            ),
        ),
        "labels": (
            s.Label(name="click", column="clicked", oracle="p_click"),
            s.Label(name="watch", kind="value", column="watched"),
        ),
    }
    return s.Schema(**(fields | changes))


BOUNDARIES = {"candidates.price": [10.0, 40.0, 70.0]}
"""Of `demo_schema`'s one number in quantile buckets."""


def random_table(schema: s.Schema, dt: str, users: int, seed: int = 0, max_candidates: int = 12) -> pa.Table:
    """One day of samples with consistent times, requests and visibility counts."""
    rng = np.random.default_rng([seed, day_number(dt)])
    start = day_start(schema, dt)
    vocabularies = {f: t.vocabulary for t in logical_tables(schema) for f in t.features}
    by_group: dict[str, list[Any]] = {}
    for leaf in leaves(schema):
        by_group.setdefault(leaf.group, []).append(leaf)

    def ids(group: str, name: str, n: int) -> Any:
        vocabulary = vocabularies.get(f"{group}.{name}")
        if isinstance(vocabulary, s.Enumerated):
            known = [hash_string(v) if isinstance(v, str) else v for v in vocabulary.values]
            out = rng.choice(np.array([*known, 7, 2**40]), n)
        elif isinstance(vocabulary, s.Identity):
            out = rng.integers(-1, vocabulary.size + 2, n)
        else:
            out = rng.zipf(1.3, n).astype(np.int64) % 100_000
        return np.where(rng.random(n) < 0.05, MISSING_ID, out)

    def value(leaf: Any, n: int) -> Any:
        if leaf.stored == "id":
            return ids(leaf.group, leaf.name, n).tolist()
        if leaf.stored == "ids":
            return [ids(leaf.group, leaf.name, int(k)).tolist() for k in rng.integers(0, 6, n)]
        if leaf.stored == "vector":
            length = next(f for f in dict(schema.groups())[leaf.group] if f.name == leaf.name).vector_length
            missing = rng.random(n) < 0.1
            return [[] if gone else rng.normal(size=length).astype(np.float32).tolist() for gone in missing]
        if leaf.stored == "time":
            out = start - rng.integers(0, 40 * DAY_MS, n)
            return np.where(rng.random(n) < 0.05, MISSING_ID, out).tolist()
        numbers = rng.gamma(2.0, 20.0, n).astype(np.float32)
        return np.where(rng.random(n) < 0.1, np.float32(np.nan), numbers).tolist()

    rows = []
    user_type = schema.exposures.columns[schema.exposures.user]
    for user in range(users):
        row: dict[str, Any] = {
            "sample_id": f"{user}:{dt}:0",
            "user_id": f"u{user}" if user_type == "string" else user,
            "window_start": start,
            "window_end": start + DAY_MS,
        }
        if USER in by_group:
            row[USER] = {leaf.name: value(leaf, 1)[0] for leaf in by_group[USER]}
        available = np.zeros(0, np.int64)
        for sequence in schema.sequences:
            n = int(rng.integers(0, sequence.max_length + 1)) if rng.random() > 0.1 else 0
            low, high = (start - 30 * DAY_MS, start) if sequence.scope == "history" else (start, start + DAY_MS)
            ts = np.sort(rng.integers(low, high, n))
            struct = {leaf.name: value(leaf, n) for leaf in by_group.get(sequence.name, [])}
            if sequence.scope == "realtime":
                # Late arrivals and, rounded to 10 minutes, ties.
                available = ts + rng.integers(0, 3_600_000, n)
                available = np.where(rng.random(n) < 0.5, available // 600_000 * 600_000, available)
                available = np.minimum(available, start + DAY_MS - 1)  # later ones belong to the next day's history
                order = np.argsort(available, kind="stable")
                ts, available = ts[order], available[order]
                struct["available"] = available.tolist()
            struct |= {"ts": ts.tolist(), "type": rng.integers(0, len(event_names(sequence)), n).tolist()}
            row[sequence.name] = struct
        c = int(rng.integers(1, max_candidates + 1))
        ts = np.sort(rng.integers(start, start + DAY_MS, c))
        if len(available):
            tied = rng.random(c) < 0.3
            ts = np.sort(np.where(tied, rng.choice(available, c), ts))
        struct = {leaf.name: value(leaf, c) for leaf in by_group.get(CANDIDATES, [])}
        requests = np.sort(rng.integers(0, 4, c)) if rng.random() < 0.8 else rng.integers(0, 4, c)
        struct |= {
            "ts": ts.tolist(),
            "request": (user * 100 + requests).tolist(),
            "item": rng.integers(0, 500, c).tolist(),
        }
        row[CANDIDATES] = struct
        row["labels"] = {}
        for label in schema.labels:
            binary = label.kind == "binary"
            row["labels"][label.name] = (rng.integers(0, 2, c) if binary else rng.random(c).astype(np.float32)).tolist()
            row["labels"][f"{label.name}_weight"] = (rng.random(c) > 0.1).astype(np.float32).tolist()
            if label.oracle:
                row["labels"][f"{label.name}_oracle"] = rng.random(c).astype(np.float32).tolist()
        if schema.realtime:
            row["mask"] = {
                "candidate_sees": np.searchsorted(available, ts, side="left").astype(np.int32).tolist(),
                "realtime_sees": np.searchsorted(available, available, side="left").astype(np.int32).tolist(),
            }
        rows.append(row)
    return pa.Table.from_pylist(rows, arrow_schema(schema))


def write_random_samples(
    root: Path,
    schema: s.Schema,
    dates: list[str],
    *,
    users: int = 40,
    seed: int = 0,
    files: int = 2,
    row_group: int = 16,
    max_candidates: int = 12,
) -> Path:
    """Publishes random days under `root` (the samples root) and returns it."""
    for dt in dates:
        publish(
            root, schema, dt, random_table(schema, dt, users, seed, max_candidates), files=files, row_group=row_group
        )
    return root


def publish(
    root: Path,
    schema: s.Schema,
    dt: str,
    table: pa.Table,
    *,
    files: int = 1,
    row_group: int = 4096,
    lengths: bool = False,
) -> None:
    """Writes a day's files and its manifest as the builder does; `lengths`: with those in the footers."""
    day = root / f"dt={dt}"
    folder = day / "build=random"
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    step = -(-len(table) // files)
    for i in range(files):
        path = folder / f"part-{i:05d}.parquet"
        rows = table.slice(i * step, step)
        with pq.ParquetWriter(path, table.schema, compression="zstd", compression_level=1) as writer:
            writer.write_table(rows, row_group_size=row_group)
            if lengths:
                writer.add_key_value_metadata(
                    lengths_metadata(rows, schema, [*range(0, len(rows), row_group), len(rows)])
                )
        data = path.read_bytes()
        entries.append(
            {
                "path": str(path.relative_to(day)),
                "rows": len(rows),
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        )
    manifest = {
        "schema": schema.name,
        "fingerprint": schema.fingerprint,
        "build_id": "random",
        "dt": dt,
        "engine": "local",
        "as_of": f"{dt}T23:59:59+00:00",
        "files": entries,
        "samples": len(table),
        "candidates": sum(map(len, table["candidates"].combine_chunks().field("ts").to_pylist())),
        "inputs": [],
        "counts": {"in": {}, "out": {}, "quarantined": {}, "duplicates": {}},
        "created": f"{dt}T23:59:59+00:00",
    }
    (day / "manifest.json").write_text(json.dumps(manifest))


def day_number(dt: str) -> int:
    """Days since 1970-01-01."""
    return int(np.datetime64(dt, "D").astype(int))


def day_start(schema: s.Schema, dt: str) -> int:
    """Epoch ms of a day's first moment in the schema's offset."""
    return schema.local_days.start(day_number(dt))

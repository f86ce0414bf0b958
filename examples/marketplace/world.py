"""A seeded synthetic marketplace, written as daily Parquet, in which the true click probability of every exposure is known.

    generate(Path("data/world"), users=2000, days=10, seed=0)

writes `<out>/<source>/dt=YYYY-MM-DD/part-*.parquet` for the event logs exposures, clicks, carts, purchases and follows (a day's
folder holds the rows that arrived on that day) and the snapshots users and items (what was known at the day's start), and
`<out>/world.json`: parameters, row counts, and what was planted where. `preferences.py` holds the model, `traffic.py` the
simulation, `defects.py` the planted defects.

Users are generated in chunks that know nothing of each other, each through all days: memory is flat in users, chunks run in
parallel, and a killed run resumes with the first unfinished chunk. Equal arguments give equal bytes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrank.examples.marketplace.defects import KINDS, UNKNOWN_ITEM, Defects, plant
from genrank.examples.marketplace.preferences import (
    AGES,
    CATEGORIES,
    CITIES,
    DEVICES,
    GENDERS,
    MEMBERSHIPS,
    SCENES,
    Array,
    Catalogue,
    Population,
    Preferences,
    Traffic,
    rng,
)
from genrank.examples.marketplace.traffic import DAY_MS, Chunk
from genrank.schemas.console import progress_bar
from genrank.schemas.errors import UserError

FORMAT = 1
FIRST_ITEM_ID = 1
FIRST_USER_ID = 1
EVENT_LOGS = ("exposures", "clicks", "carts", "purchases", "follows")
SOURCES = (*EVENT_LOGS, "users", "items")


@dataclass(frozen=True)
class World:
    """Everything a world's bytes depend on."""

    users: int
    days: int
    seed: int
    start: date = date(2026, 1, 1)
    items: int = 3000
    preferences: Preferences = field(default_factory=Preferences)
    traffic: Traffic = field(default_factory=Traffic)
    defects: Defects = field(default_factory=Defects)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("users", 20, 10**9),
            ("days", 1, 366),
            ("items", 100, 1_000_000),
            ("seed", 0, 2**63 - 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"--{name} {getattr(self, name)}: give a number from {low} to {high}")

    @property
    def chunk_users(self) -> int:
        """Users simulated together: their memory of items (3 bytes a user and item) stays near 75 MB."""
        return max(64, min(8192, 25_000_000 // self.items))

    @property
    def chunks(self) -> int:
        """How many chunks hold all users."""
        return -(-self.users // self.chunk_users)

    @property
    def start_ms(self) -> int:
        """The first day's midnight in UTC, ms since the epoch."""
        return int(datetime(self.start.year, self.start.month, self.start.day, tzinfo=UTC).timestamp() * 1000)

    def dt(self, day: int) -> str:
        """ISO date of a day, counted from 0."""
        return (self.start + timedelta(days=day)).isoformat()

    def parameters(self) -> dict[str, Any]:
        """As JSON would read them back."""
        own = asdict(self) | {"start": self.start.isoformat(), "format": FORMAT}
        return dict(json.loads(json.dumps(own)))


def generate(
    out: Path,
    *,
    users: int,
    days: int,
    seed: int,
    start: date = date(2026, 1, 1),
    items: int = 3000,
    preferences: Preferences | None = None,
    traffic: Traffic | None = None,
    defects: Defects | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Write a world to `out` and return its `world.json`.

    A complete world of the same parameters is left as it is; a killed run of them is resumed from `.<name>.partial` beside
    `out`. `workers` processes simulate chunks of users (default: one a core); the bytes don't depend on it.

    Raises:
        UserError: a parameter out of range, `out` holds something else, or it can't be written.
    """
    world = World(
        users=users,
        days=days,
        seed=seed,
        start=start,
        items=items,
        preferences=preferences or Preferences(),
        traffic=traffic or Traffic(),
        defects=defects or Defects(),
    )
    out = Path(out)
    if (existing := _existing(out, world)) is not None:
        return existing
    staging = out.parent / f".{out.name}.partial"
    try:
        _open_staging(staging, world)
        _write_items(world, staging)
        _write_chunks(world, staging, workers or len(os.sched_getaffinity(0)))
        summary = _summarise(world, staging)
        shutil.rmtree(staging / "_chunks")
        (staging / "parameters.json").unlink()
        _write_json(staging / "world.json", summary)
        if out.is_dir():
            out.rmdir()
        staging.rename(out)
    except OSError as error:
        reason = "no space left on the device" if error.errno == errno.ENOSPC else f"{error.strerror or error}"
        raise UserError(f"--out {out}: can't write the world: {reason}; the part done is kept in {staging}") from error
    return summary


def read_summary(out: Path) -> dict[str, Any]:
    """`world.json` of a complete world.

    Raises:
        UserError: there is no complete world at `out`.
    """
    path = Path(out) / "world.json"
    if not path.is_file():
        raise UserError(f"{out}: no world.json; write a world there with `genrank world --out {out}`")
    return dict(json.loads(path.read_text()))


# ---------------------------------------------------------------------- folders


def _existing(out: Path, world: World) -> dict[str, Any] | None:
    """The summary of the same world if `out` holds it; None if `out` is free."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / "world.json").is_file():
        raise UserError(f"--out {out}: the folder holds something that is no world; give an empty or new folder")
    summary = read_summary(out)
    there, wanted = summary["parameters"], world.parameters()
    differing = sorted(k for k in {*there, *wanted} if there.get(k) != wanted.get(k))
    if differing:
        detail = ", ".join(
            f"{k} {there.get(k)!r} instead of {wanted.get(k)!r}" for k in differing[:3] if _short(there, wanted, k)
        )
        raise UserError(f"--out {out}: holds a world with other {', '.join(differing)}{f' ({detail})' if detail else ''}; "
                        "give another folder or remove this one")  # fmt: skip
    return summary


def _short(there: dict[str, Any], wanted: dict[str, Any], key: str) -> bool:
    return not isinstance(there.get(key), dict) and not isinstance(wanted.get(key), dict)


def _open_staging(staging: Path, world: World) -> None:
    """Keep what a killed run of the same parameters finished; drop what another left."""
    marker = staging / "parameters.json"
    if staging.exists() and not (marker.is_file() and json.loads(marker.read_text()) == world.parameters()):
        shutil.rmtree(staging)
    if not staging.exists():
        staging.mkdir(parents=True)
        _write_json(marker, world.parameters())
    (staging / "_chunks").mkdir(exist_ok=True)
    for source in SOURCES:
        for day in range(world.days):
            (staging / source / f"dt={world.dt(day)}").mkdir(parents=True, exist_ok=True)


def _write_json(path: Path, value: object) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.rename(path)


def _write_parquet(table: pa.Table, staging: Path, source: str, dt: str, part: int) -> None:
    path = staging / source / f"dt={dt}" / f"part-{part:05d}.parquet"
    # Dictionaries only where values repeat: building one of times or ids doubles the time to write.
    words = [column.name for column in table.schema if pa.types.is_string(column.type)]
    pq.write_table(table, path, compression="zstd", compression_level=1, use_dictionary=words, row_group_size=262_144)


# ---------------------------------------------------------------------- chunks


def _write_chunks(world: World, staging: Path, workers: int) -> None:
    todo = [chunk for chunk in range(world.chunks) if not (staging / "_chunks" / f"{chunk}.json").is_file()]
    done = (world.chunks - len(todo)) * world.days
    with progress_bar("world", world.chunks * world.days, unit="chunk-day") as bar:
        bar.advance(done)
        for days in _run(world, staging, todo, min(workers, len(todo))):
            bar.advance(days)


def _run(world: World, staging: Path, todo: list[int], workers: int) -> Iterator[int]:
    """Simulate chunks, yielding how many chunk-days have been finished since the last."""
    if workers <= 1:
        catalogue = Catalogue(world.seed, world.preferences, world.items, world.days)
        for chunk in todo:
            for _ in _write_chunk(world, catalogue, staging, chunk):
                yield 1
        return
    context = multiprocessing.get_context("spawn")
    ticks: Any = context.Queue()
    with ProcessPoolExecutor(workers, context, _start_worker, (world, ticks)) as pool:
        running = {pool.submit(_work, staging, chunk) for chunk in todo}
        while running:
            finished, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in finished:
                try:
                    future.result()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
            count = 0
            with contextlib.suppress(Exception):
                while True:
                    count += ticks.get_nowait()
            yield count


_worker: tuple[World, Catalogue, Callable[[int], None]]


def _start_worker(world: World, ticks: Any) -> None:
    global _worker
    _worker = world, Catalogue(world.seed, world.preferences, world.items, world.days), ticks.put


def _work(staging: Path, chunk: int) -> None:
    world, catalogue, tick = _worker
    for _ in _write_chunk(world, catalogue, staging, chunk):
        tick(1)


def _write_chunk(world: World, catalogue: Catalogue, staging: Path, chunk: int) -> Iterator[int]:
    """Simulate a chunk day by day, yielding each finished day; its JSON, written last, says that all its files are there."""
    first = chunk * world.chunk_users
    n = min(world.chunk_users, world.users - first)
    people = Population(world.seed, world.preferences, world.traffic, catalogue, chunk, n)
    simulation = Chunk(world.seed, world.preferences, world.traffic, catalogue, people, chunk, world.start_ms)
    pending: dict[tuple[str, int], list[dict[str, Array]]] = {}
    planted: dict[str, dict[str, dict[str, int]]] = {source: {} for source in EVENT_LOGS}
    for day in range(world.days):
        dt = world.dt(day)
        people.live(world.seed, chunk, day)
        _write_parquet(_users_table(world, people, simulation, first, day), staging, "users", dt, chunk)
        events = simulation.day(day)
        for source in EVENT_LOGS:
            r = rng(world.seed, source, chunk, day)
            rows = plant(r, world.defects, getattr(events, source))
            arrived = (rows["partition_ts"] - world.start_ms) // DAY_MS
            for later in range(day, min(world.days, int(arrived.max(initial=-1)) + 1)):
                chosen = arrived == later
                if chosen.any():
                    pending.setdefault((source, later), []).append({k: v[chosen] for k, v in rows.items()})
            today = pending.pop((source, day), [{name: values[:0] for name, values in rows.items()}])
            columns = {name: np.concatenate([part[name] for part in today]) for name in rows}
            counts = np.bincount(columns["kind"], minlength=len(KINDS))
            planted[source][dt] = {kind: int(count) for kind, count in zip(KINDS, counts, strict=True) if count}
            _write_parquet(_events_table(source, columns, first), staging, source, dt, chunk)
        yield day
    roles = {
        "bots": (people.bots + first + FIRST_USER_ID).tolist(),
        "hot": (people.hot + first + FIRST_USER_ID).tolist(),
    }
    _write_json(staging / "_chunks" / f"{chunk}.json", {"planted": planted, "users": n, **roles})


def _summarise(world: World, staging: Path) -> dict[str, Any]:
    """Mark every day complete and add the chunks' counts up."""
    catalogue = Catalogue(world.seed, world.preferences, world.items, world.days)
    planted: dict[str, dict[str, dict[str, int]]] = {
        s: {world.dt(d): {} for d in range(world.days)} for s in EVENT_LOGS
    }
    bots: list[int] = []
    hot: list[int] = []
    for chunk in range(world.chunks):
        detail = json.loads((staging / "_chunks" / f"{chunk}.json").read_text())
        bots, hot = bots + detail["bots"], hot + detail["hot"]
        for source, by_day in detail["planted"].items():
            for dt, counts in by_day.items():
                total = planted[source][dt]
                for kind, count in counts.items():
                    total[kind] = total.get(kind, 0) + count
    for source in SOURCES:
        for day in range(world.days):
            (staging / source / f"dt={world.dt(day)}" / "_SUCCESS").touch()
    return {
        "parameters": world.parameters(),
        "rows": {s: {dt: sum(counts.values()) for dt, counts in by_day.items()} for s, by_day in planted.items()},
        "planted": planted,
        "bots": bots,
        "hot_users": hot,
        "cold_items": {
            world.dt(day): [catalogue.listed(day - 1) + FIRST_ITEM_ID, catalogue.listed(day) + FIRST_ITEM_ID - 1]
            for day in range(1, world.days)
        },
    }


# ---------------------------------------------------------------------- tables


def _words(words: tuple[str, ...] | list[str], codes: Array, null: Array | None = None) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32(), mask=null), pa.array(list(words))).cast(
        pa.string()
    )


def _events_table(source: str, columns: dict[str, Array], first: int) -> pa.Table:
    """Rows in order of arrival, ids as users know them, nulls where the kind says so."""
    order = np.argsort(columns["order"], kind="stable")
    columns = {name: values[order] for name, values in columns.items()}
    kind = columns["kind"]

    def null(name: str) -> Array:
        return np.asarray(kind == KINDS.index(name))

    user_id = columns["user"].astype(np.int64) + first + FIRST_USER_ID
    table: dict[str, pa.Array] = {"user_id": pa.array(user_id, mask=null("null_user"))}
    if "item" in columns:
        item = columns["item"].astype(np.int64)
        item += FIRST_ITEM_ID * (item < UNKNOWN_ITEM)
        table["item_id"] = pa.array(item, mask=null("null_item"))
    if "user_request" in columns:
        table["request_id"] = pa.array(user_id * 10_000_000 + columns["user_request"])
    if "brand" in columns:
        table["brand"] = pa.array(columns["brand"].astype(np.int64))
    table["ts"] = pa.array(columns["ts"], mask=null("null_ts"))
    table["arrival_ts"] = pa.array(columns["arrival_ts"], mask=null("null_arrival"))
    if source == "exposures":
        table["position"] = pa.array(columns["position"])
        table["scene"] = _words(SCENES, columns["scene"])
        table["device"] = _words(DEVICES, columns["device"])
        table["price"] = pa.array(columns["price"])
        table["click_probability"] = pa.array(columns["click_probability"])
        table["purchase_probability"] = pa.array(columns["purchase_probability"])
    for name in ("dwell_ms", "quantity", "amount"):
        if name in columns:
            table[name] = pa.array(columns[name])
    if source == "follows":
        table["action"] = _words(("unfollow", "follow"), columns["action"].astype(np.int8))
    return pa.table(table)


def _users_table(world: World, people: Population, simulation: Chunk, first: int, day: int) -> pa.Table:
    """Who was known at the day's start."""
    known = np.flatnonzero(people.registered <= day)
    followed = simulation.followed[known]
    offsets = np.concatenate([[0], np.cumsum(followed.sum(1))]).astype(np.int32)
    registered = world.start_ms + people.registered[known].astype(np.int64) * DAY_MS
    return pa.table(
        {
            "user_id": pa.array(known + first + FIRST_USER_ID, pa.int64()),
            "age": _words(AGES, people.age[known]),
            "gender": _words(GENDERS, people.gender[known]),
            # One user in fifty has none on record.
            "city": _words(CITIES, people.city[known], (known + first) % 50 == 7),
            "membership": _words(MEMBERSHIPS, people.membership[known]),
            "device": _words(DEVICES, people.device[known]),
            "registered_ts": pa.array(registered),
            "followed_brands": pa.ListArray.from_arrays(
                pa.array(offsets), pa.array(np.nonzero(followed)[1], pa.int64())
            ),
        }
    )


def _write_items(world: World, staging: Path) -> None:
    """What was on sale on each day; new items appear on their day, without a rating for three."""
    catalogue = Catalogue(world.seed, world.preferences, world.items, world.days)
    offsets = np.concatenate([[0], np.cumsum([len(tags) for tags in catalogue.tags])]).astype(np.int32)
    tags = pa.ListArray.from_arrays(pa.array(offsets), pa.array([tag for tags in catalogue.tags for tag in tags]))
    for day in range(world.days):
        n = catalogue.listed(day)
        price, discount = catalogue.price(day), catalogue.discount(day)
        young = catalogue.created[:n] > day - 3
        table = pa.table(
            {
                "item_id": pa.array(np.arange(n, dtype=np.int64) + FIRST_ITEM_ID),
                "category": _words(CATEGORIES, catalogue.category[:n]),
                "brand": pa.array(catalogue.brand[:n], pa.int64()),
                "seller": pa.array(catalogue.seller[:n], pa.int64()),
                "price": pa.array(price.astype(np.float32)),
                "list_price": pa.array(np.round(price / discount, 2).astype(np.float32)),
                "rating": pa.array(catalogue.rating[:n], mask=young),
                "title_length": pa.array(catalogue.title_length[:n]),
                "tags": tags.slice(0, n),
                "created_ts": pa.array(world.start_ms + catalogue.created[:n].astype(np.int64) * DAY_MS),
            }
        )
        _write_parquet(table, staging, "items", world.dt(day), 0)

"""`check` on real files: a sound world without a finding, then one planted defect at a time."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrank.schemas import (
    Candidates,
    Categorical,
    CrossFeature,
    Dynamic,
    Enumerated,
    EventLog,
    Events,
    EventSequence,
    FixedBuckets,
    Hashed,
    Identity,
    Label,
    MultiValued,
    Numeric,
    Schema,
    Snapshot,
    UserError,
)
from genrank.schemas.review.check import Checked, check

EVENT = {"user_id": "int64", "item_id": "int64", "ts": "int64"}
DAYS = ("2026-01-01", "2026-01-02", "2026-01-03")
ROWS = 400


def schema(**vocabularies: object) -> Schema:
    given = {
        "item_id": Identity(size=100),
        "tab": Enumerated(values=("home", "search")),
        "category": Hashed(size=1000),
    } | vocabularies
    return Schema(
        name="little",
        sources=(
            EventLog(
                name="exposures",
                path="exposures/dt={dt}",
                columns={**EVENT, "tab": "string", "price": "float32", "clicked": "int32"},
                dedup=("user_id", "item_id", "ts"),
                post_exposure=("clicked",),
            ),
            EventLog(name="buys", path="buys/dt={dt}", columns=EVENT),
            Snapshot(
                name="items",
                path="items/dt={dt}",
                key="item_id",
                columns={"item_id": "int64", "category": "string", "tags": "list<int64>"},
                max_age="1d",
            ),
        ),
        sequences=(
            EventSequence(
                name="history",
                events=(Events(source="buys"),),
                features=(Categorical(name="item_id", vocabulary=given["item_id"], dim=4),),
            ),
        ),
        candidates=Candidates(
            features=(
                Categorical(name="tab", vocabulary=given["tab"], dim=4),
                Categorical(name="category", column="items.category", vocabulary=given["category"], dim=4),
                MultiValued(name="tags", column="items.tags", vocabulary=Hashed(size=1000), dim=4, max_values=3),
                Numeric(name="price", transform=FixedBuckets(boundaries=(10, 50))),
                CrossFeature(name="buys_7d", op="count", source="buys", keys=("item_id",), window="7d"),
            )
        ),
        labels=(Label(name="click", column="clicked"), Label(name="buy", source="buys", window="1d")),
    )


def start(dt: str) -> int:
    return int(datetime.fromisoformat(dt).replace(tzinfo=UTC).timestamp() * 1000)


def day_of(source: str, dt: str) -> dict[str, pa.Array]:
    """One sound day of a source."""
    draw = random.Random(f"{source}{dt}")
    if source == "items":
        return {
            "item_id": pa.array(range(100)),
            "category": pa.array([f"c{i % 7}" for i in range(100)]),
            "tags": pa.array([[i, i + 1] for i in range(100)], pa.list_(pa.int64())),
        }
    shown = random.Random(dt)
    pairs = [(shown.randrange(50), shown.randrange(100), start(dt) + i * 1000) for i in range(ROWS)]
    if source == "buys":
        pairs = [(u, i, ts + 60_000) for u, i, ts in pairs[::10]]
    users, items, ts = zip(*pairs, strict=True)
    own = {"user_id": pa.array(users), "item_id": pa.array(items), "ts": pa.array(ts)}
    if source == "exposures":
        own |= {
            "tab": pa.array([draw.choice(["home", "search"]) for _ in pairs]),
            "price": pa.array([draw.uniform(1, 100) for _ in pairs], pa.float32()),
            "clicked": pa.array([draw.randrange(2) for _ in pairs], pa.int32()),
        }
    return own


def write(root: Path, source: str, dt: str, columns: dict[str, pa.Array]) -> Path:
    folder = root / source / f"dt={dt}"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "part-0.parquet", row_group_size=100)
    return folder


@pytest.fixture
def world(tmp_path: Path) -> Path:
    for source in ("exposures", "buys", "items"):
        for dt in DAYS:
            write(tmp_path, source, dt, day_of(source, dt))
    return tmp_path


def test_a_sound_world_has_no_finding(world: Path) -> None:
    checked = check(schema(), world)
    assert checked.findings == [] and checked.ok
    assert checked.days == dict.fromkeys(("exposures", "buys", "items"), (DAYS[0], DAYS[-1], 3))
    stats = {(c.source, c.column): c for c in checked.columns}
    assert stats["exposures", "tab"].distinct == 2 and stats["exposures", "tab"].rows == ROWS
    assert (stats["items", "tags"].low, stats["items", "tags"].high, stats["items", "tags"].distinct) == (
        "0",
        "100",
        101,
    )


def changed(source: str, **columns: Callable[[pa.Array], pa.Array | None]) -> Callable[[Path], None]:
    """Rewrites the newest day of a source with some columns changed; None drops one."""

    def plant(root: Path) -> None:
        own = day_of(source, DAYS[-1])
        for name, change in columns.items():
            made = change(own.pop(name))
            if made is not None:
                own[name] = made
        write(root, source, DAYS[-1], own)

    return plant


def nulls(share: float) -> Callable[[pa.Array], pa.Array]:
    return lambda array: pa.array(
        [None if i < share * len(array) else v for i, v in enumerate(array.to_pylist())], array.type
    )


def remove(*days: str) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        for day in days:
            folder = root / day
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()

    return plant


DEFECTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a missing day": (
        remove("buys/dt=2026-01-02"),
        "warning: buys: missing days: 2026-01-02",
    ),
    "a snapshot too old": (
        remove("items/dt=2026-01-02"),
        "warning: items: missing days: 2026-01-02; the newest before serves; 2 days without one is longer than max_age 1d, so attributes are missing",
    ),
    "a snapshot that ends early": (
        remove("items/dt=2026-01-02", "items/dt=2026-01-03"),
        "error: items: ends at 2026-01-01 and serves until 2026-01-02 (max_age 1d), exposures go on to 2026-01-03: attributes are missing from then on",
    ),
    "a snapshot that begins late": (
        remove("items/dt=2026-01-01"),
        "warning: items: begins at 2026-01-02, exposures at 2026-01-01: attributes are missing before",
    ),
    "an event log that ends early": (
        remove("buys/dt=2026-01-03"),
        "warning: buys: ends at 2026-01-02, exposures at 2026-01-03",
    ),
    "no day at all": (
        remove(*(f"buys/dt={dt}" for dt in DAYS)),
        "error: buys: no day lies at 'buys/dt={dt}' under ",
    ),
    "no folder": (
        lambda root: (root / "buys").rename(root / "bought"),
        "error: buys: there is no folder ",
    ),
    "an empty day": (
        lambda root: (root / "buys" / f"dt={DAYS[-1]}" / "part-0.parquet").unlink(),
        "holds no Parquet file",
    ),
    "a thin day": (
        lambda root: write(
            root, "exposures", DAYS[1], {k: v.slice(0, 5) for k, v in day_of("exposures", DAYS[1]).items()}
        ),
        "warning: exposures: 2026-01-02 has 5 rows, the median day 400",
    ),
    "a torn file": (
        lambda root: (root / "buys" / f"dt={DAYS[-1]}" / "part-0.parquet").write_bytes(b"PAR1 torn"),
        "can't be read as Parquet (",
    ),
    "a column gone": (
        changed("exposures", price=lambda _: None),
        "error: exposures.price: ",
    ),
    "a column of another type": (
        changed("exposures", user_id=lambda a: a.cast(pa.string())),
        "error: exposures.user_id: string in ",
    ),
    "nulls everywhere": (
        changed("exposures", tab=nulls(1)),
        "warning: exposures.tab: null in every row of 2026-01-03, and candidates.tab reads it",
    ),
    "users unknown": (
        changed("exposures", user_id=nulls(0.5)),
        "error: exposures.user_id: null in 50.0% of 2026-01-03; such rows are quarantined, more than max_quarantine_rate 5%",
    ),
    "seconds for milliseconds": (
        changed("exposures", ts=lambda a: pa.array([v // 1000 for v in a.to_pylist()])),
        'error: exposures.ts: read as ms, times of 2026-01-03 lie around 1970; they look like time_unit="s"',
    ),
    "seconds of long ago": (
        changed("exposures", ts=lambda a: pa.array([v - 10_000 * 86_400_000 for v in a.to_pylist()])),
        "error: exposures.ts: 100.0% of 2026-01-03 lies outside its day and lateness 3d",
    ),
    "times as text": (
        changed("exposures", ts=lambda a: a.cast(pa.string())),
        "write the times as Parquet timestamps, or as integers since 1970, and declare that",
    ),
    "another day's times": (
        changed("exposures", ts=lambda a: pa.array([v - 10 * 86_400_000 for v in a.to_pylist()])),
        "error: exposures.ts: 100.0% of 2026-01-03 lies outside its day and lateness 3d",
    ),
    "duplicates": (
        lambda root: write(
            root,
            "exposures",
            DAYS[-1],
            {k: pa.concat_arrays([v, v.slice(0, 100)]) for k, v in day_of("exposures", DAYS[-1]).items()},
        ),
        "warning: exposures: 20.0% of 2026-01-03 are duplicates (equal on user_id, item_id, ts); the first of each is kept",
    ),
    "a key twice": (
        changed("items", item_id=lambda a: pa.array([0, *a.to_pylist()[1:-1], 0])),
        "warning: items.item_id: 1.0% of the rows of 2026-01-03 repeat a key; one row a key is kept",
    ),
    "keys that don't join": (
        changed("items", item_id=lambda a: pa.array([v + 1_000_000 for v in a.to_pylist()])),
        "error: exposures.item_id: 100.0% of 2026-01-03 find no row in items of 2026-01-03: the keys never meet",
    ),
    "keys that join half the time": (
        changed("items", item_id=lambda a: pa.array([v if v % 2 else v + 1000 for v in a.to_pylist()])),
        "find no row in items of 2026-01-03: their attributes are missing",
    ),
    "long lists": (
        changed("items", tags=lambda a: pa.array([list(range(9))] * len(a), pa.list_(pa.int64()))),
        "warning: candidates.tags: 100.0% of items.tags hold more than max_values 3; up to 9",
    ),
    "values not enumerated": (
        changed("exposures", tab=lambda a: pa.array(["feed" if i < 100 else v for i, v in enumerate(a.to_pylist())])),
        "warning: candidates.tab: 25.0% of exposures.tab are not enumerated ('feed'); they read the unknown row",
    ),
    "buckets that don't split": (
        changed("exposures", price=lambda a: pa.array([1000.0] * len(a), pa.float32())),
        "warning: candidates.price: 100.0% of exposures.price fall in one of 3 buckets; move the boundaries, or use QuantileBuckets",
    ),
    "nothing to learn": (
        changed("exposures", clicked=lambda a: pa.array([0] * len(a), pa.int32())),
        "error: label click: all 400 values of clicked are zero: nothing to learn",
    ),
    "a label that never matches": (
        changed("buys", user_id=lambda a: pa.array([v + 1000 for v in a.to_pylist()])),
        "warning: label buy: 0.0% of buys of 2026-01-03 match an exposure of that day on user_id, item_id",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_found(world: Path, defect: str) -> None:
    plant, report = DEFECTS[defect]
    plant(world)
    checked = check(schema(), world)
    lines = [str(finding) for finding in checked.findings]
    assert any(report in line for line in lines), lines
    assert checked.ok == (not any(line.startswith("error") for line in lines))
    assert len(lines) <= 3, lines


VOCABULARIES = {
    "ids beyond Identity": (
        {"item_id": Identity(size=50)},
        "of buys.item_id lie outside Identity(size=50): ",
    ),
    "buckets too few": (
        {"category": Hashed(size=2), "item_id": Hashed(size=10)},
        "warning: history.item_id: 33 different values of buys.item_id in 10 buckets: 97% share theirs with another",
    ),
    "capacity too small": (
        {"item_id": Dynamic(capacity=10)},
        "warning: history.item_id: 33 values of buys.item_id are admitted in one day's sample, capacity 10: rows are evicted at once",
    ),
}


@pytest.mark.parametrize("case", VOCABULARIES)
def test_cardinality_is_held_against_the_vocabulary(world: Path, case: str) -> None:
    given, report = VOCABULARIES[case]
    lines = [str(finding) for finding in check(schema(**given), world).findings]
    assert any(report in line for line in lines), lines


def test_a_sample_is_bounded_and_spread_over_files(world: Path) -> None:
    more = {k: v.slice(0, 50) for k, v in day_of("exposures", DAYS[-1]).items()}
    pq.write_table(pa.table(more), world / "exposures" / f"dt={DAYS[-1]}" / "part-1.parquet")
    checked: Checked = check(schema(), world, sample_rows=120)
    assert next(c for c in checked.columns if c.source == "exposures").rows == 120


def test_a_data_root_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        check(schema(), tmp_path / "nowhere")

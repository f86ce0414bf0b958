"""Compacted past days: the same samples to the bit, read from fewer and smaller files."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genrank.pipelines import hot_keys
from genrank.pipelines.build import BuildConfig, build
from genrank.pipelines.clean import clean
from genrank.pipelines.compaction.plan import aligned_runs
from genrank.pipelines.compaction.records import Compacted
from genrank.pipelines.compaction.uses import tile_uses
from genrank.pipelines.documents import Layout
from genrank.pipelines.engine import Piece, Step
from genrank.pipelines.local_engine import LocalEngine, Stored
from genrank.pipelines.status import status
from genrank.schemas import CrossFeature, Schema
from genrank.schemas.checked_json import with_checksum
from tests.pipelines.oracle import DAY, Oracle, zone_of
from tests.pipelines.test_oracle import compare
from tests.pipelines.worlds import full_schema, read_samples, write_late_click, write_world

pytestmark = pytest.mark.usefixtures("plain_gate")


def long_schema() -> Schema:
    """Windows and look-backs of many days, of every op; several windows share keys, and some edges lie inside a day."""
    base = full_schema()
    longer = {"item_ctr": "9d", "item_long": "200h", "pair_recency": "10d", "item_dwell_sum": "5d", "user_shown": "8d"}
    longer |= {"user_category": "7d", "last_position": "9d", "items_seen": "9d", "item_users": "8d", "all_today": "6d"}
    longer |= {"item_morning": "8d", "user_tags": "8d", "word_ctr": "9d"}
    features = [
        feature.replace(window=longer.get(feature.name, feature.window))
        if isinstance(feature, CrossFeature)
        else feature
        for feature in base.candidates.features
    ]
    # Keys that all exposures share, with every way of merging events.
    everyone = {"keys": (), "window": "9d", "source": "clicks"}
    features += [
        CrossFeature(name="all_users", op="distinct", value="user", **everyone),
        CrossFeature(name="all_dwell", op="sum", value="dwell", where="dwell > 2", **everyone),
        CrossFeature(name="all_newest", op="last", value="dwell", **everyone),
        CrossFeature(name="all_rate", op="rate", per="exposures", prior=0.5, strength=3, **everyone),
    ]
    sequences = [s.replace(lookback="8d", max_length=5) if s.scope == "history" else s for s in base.sequences]
    return base.replace(candidates=base.candidates.replace(features=tuple(features)), sequences=tuple(sequences))


def one_by_one(
    schema: Schema, root: Path, days: list[str], out: str = "out", buckets: Sequence[int | None] = (2,)
) -> None:
    for dt, number in zip(days, itertools.cycle(buckets)):
        build(BuildConfig(schema, root / "data", root / out, dt, dt, buckets=number))


def made(out: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted((out / "blocks").glob("*/dt=*/*/block.json"))]


def same_days(root: Path, days: list[str], out: str, other: str) -> None:
    for dt in days:
        one, two = (repr(sorted(read_samples(root / o, dt), key=itemgetter("sample_id"))) for o in (out, other))
        assert one == two, dt


@settings(max_examples=1, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 10**6),
    users=st.integers(1, 4),
    items=st.integers(1, 5),
    days=st.integers(9, 13),
    # Within the days of the former is one of 25 hours, of the latter one of 23.
    first=st.sampled_from(["2025-10-22", "2026-03-24"]),
)
def test_days_that_follow_each_other_equal_the_oracle(
    small_compaction: None, seed: int, users: int, items: int, days: int, first: str
) -> None:
    schema = long_schema().replace(utc_offset="Europe/Berlin")
    with TemporaryDirectory() as folder:
        root = Path(folder)
        zone = zone_of(schema.utc_offset)
        dts = write_world(root / "data", seed, users, items, days, per_day=20, first_day=first, zone=zone)
        # Days of other sizes read each other's partials, tiles and histories.
        one_by_one(schema, root, dts, buckets=(2, 4, 3, None, 1))
        oracle = Oracle(schema, root / "data", dts[-1], Oracle(schema, root / "none", dts[-1], 0).start(dts[-1]) + DAY)
        for dt in dts[-3:]:
            expected, found = oracle.samples(dt), {s["user_id"]: s for s in read_samples(root / "out", dt)}
            assert expected.keys() == found.keys()
            for user, sample in expected.items():
                compare(schema, sample, found[user])
        # Alone, without a day before it, the last day has no blocks to read.
        build(BuildConfig(schema, root / "data", root / "alone", dts[-1], dts[-1], buckets=2))
        assert not made(root / "alone")
        same_days(root, dts[-1:], "out", "alone")


def test_one_by_one_equals_at_once_and_any_day_again(tmp_path: Path) -> None:
    """With blocks of the real sizes."""
    schema = long_schema()
    days = write_world(tmp_path / "data", seed=51, users=4, items=4, days=15, per_day=20)
    one_by_one(schema, tmp_path, days)
    build(BuildConfig(schema, tmp_path / "data", tmp_path / "once", days[0], days[-1], buckets=2))
    same_days(tmp_path, days, "out", "once")
    found = made(tmp_path / "out")
    assert {len(block["covers"]) for block in found if "-by-" in str(block["use"])} >= {1, 4}  # type: ignore[arg-type]
    assert any("history" in str(block["use"]) for block in found)
    before = len(found)
    for dt in (days[12],):
        build(BuildConfig(schema, tmp_path / "data", tmp_path / "out", dt, dt, force=True, buckets=2))
    same_days(tmp_path, days, "out", "once")
    assert len(made(tmp_path / "out")) == before

    # Blocks are nothing but what partials say: without them the same day comes out, and they are made again.
    shutil.rmtree(tmp_path / "out" / "blocks")
    build(BuildConfig(schema, tmp_path / "data", tmp_path / "out", days[-1], days[-1], force=True))
    same_days(tmp_path, days[-1:], "out", "once")
    assert made(tmp_path / "out")


def test_a_folder_that_an_earlier_release_began_with_other_buckets_grows(
    small_compaction: None, tmp_path: Path
) -> None:
    """Its partials' keys hold the number in `layout.json`, and its tiles and histories say no number."""
    schema = long_schema()
    days = write_world(tmp_path / "data", seed=55, users=4, items=4, days=8, per_day=20)
    notes = tmp_path / "out" / "partials"
    notes.mkdir(parents=True)
    Layout(3).write(notes / "layout.json")
    one_by_one(schema, tmp_path, days[:-2], buckets=(3,))
    for record in (tmp_path / "out" / "blocks").glob("*/dt=*/*/block.json"):
        block = Compacted.read(record.parent)
        assert block and block.buckets == 3
        record.write_text(with_checksum(block.model_dump_json(exclude={"buckets"})))
    before = {path: path.stat().st_mtime_ns for path in notes.rglob("*.parquet")}
    one_by_one(schema, tmp_path, days[-2:], buckets=(None,))
    assert before.items() <= {path: path.stat().st_mtime_ns for path in notes.rglob("*.parquet")}.items()
    build(BuildConfig(schema, tmp_path / "data", tmp_path / "once", days[-2], days[-1], buckets=1))
    same_days(tmp_path, days[-2:], "out", "once")


def test_a_day_opens_no_partial_behind_a_block(tmp_path: Path) -> None:
    base = long_schema()
    one = [f for f in base.candidates.features if not isinstance(f, CrossFeature) or f.name == "item_ctr"]
    schema = base.replace(candidates=base.candidates.replace(features=tuple(one)))
    days = write_world(tmp_path / "data", seed=52, users=5, items=4, days=18, per_day=40)
    one_by_one(schema, tmp_path, days[:-1])
    build(BuildConfig(schema, tmp_path / "data", tmp_path / "whole", days[-1], days[-1], buckets=2))
    # Inside the window of the last day, and before the newest snapshot of its histories.
    behind = list((tmp_path / "out" / "partials" / "clicks" / f"dt={days[12]}").glob("*/*.parquet"))
    assert behind
    for path in behind:
        path.unlink()
    one_by_one(schema, tmp_path, days[-1:])
    same_days(tmp_path, days[-1:], "out", "whole")


def test_a_late_row_behind_a_block_is_seen(small_compaction: None, tmp_path: Path) -> None:
    schema = long_schema()
    days = write_world(tmp_path / "data", seed=53, users=3, items=3, days=9, per_day=20)
    one_by_one(schema, tmp_path, days)
    write_late_click(tmp_path, days[3], arrives=days[5])
    found = status(schema, tmp_path / "data", tmp_path / "out")
    stale = [day.dt for day in found if day.state == "stale"]
    assert stale and all(f"clicks {days[3]}" in day.reason for day in found if day.dt in days[4:])
    one_by_one(schema, tmp_path, days)
    assert {day.state for day in status(schema, tmp_path / "data", tmp_path / "out")} == {"up to date"}
    build(BuildConfig(schema, tmp_path / "data", tmp_path / "once", days[0], days[-1], buckets=2))
    same_days(tmp_path, days, "out", "once")
    # Blocks that cover the partial as it was serve nobody any more.
    outdated = clean(tmp_path / "out", dry_run=True).paths
    assert any("blocks" in path.parts for path in outdated)
    clean(tmp_path / "out")
    assert made(tmp_path / "out")
    assert build(BuildConfig(schema, tmp_path / "data", tmp_path / "out", days[0], days[-1])).days == []
    build(BuildConfig(schema, tmp_path / "data", tmp_path / "out", days[-1], days[-1], force=True))
    same_days(tmp_path, days, "out", "once")


@given(st.integers(0, 500), st.integers(1, 200))
def test_runs_of_days_are_made_up_of_aligned_blocks(start: int, days: int) -> None:
    found = list(aligned_runs(range(start, start + days)))
    assert [day for block in found for day in block] == list(range(start, start + days))
    assert all(len(block) in (1, 4, 16) and block.start % len(block) == 0 for block in found)
    assert len(found) <= 12 + days // 16


def test_blocks_hold_what_a_schema_asks_and_no_other_schemas_are_read() -> None:
    """A new feature on old keys needs other tiles where they lack what it asks, a new window doesn't."""
    count = CrossFeature(name="a", op="count", source="clicks", keys=("item_id",), window="7d")

    def tiles(*cross: CrossFeature) -> set[str]:
        base = full_schema()
        plain = [f for f in base.candidates.features if not isinstance(f, CrossFeature)]
        schema = base.replace(candidates=base.candidates.replace(features=(*plain, *cross)))
        return {use.name(schema) for use in tile_uses(schema)}

    assert tiles(count) == tiles(count, count.replace(name="b", window="30d"))
    others: list[dict[str, str]] = [
        {"op": "recency"},
        {"op": "last", "value": "dwell"},
        {"op": "sum", "value": "dwell"},
    ]
    for more in (*others, {"where": "dwell > 3"}):
        assert tiles(count).isdisjoint(tiles(count, count.replace(name="b", **more)))
    assert tiles(count) < tiles(count, count.replace(name="b", op="distinct", value="user"))


class Watching(LocalEngine):
    """Notes how many exposures each slot of cross features gets of the key sets whose keys are no lists, which ask once an element."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def exchange(self, title: str, frames: Sequence[list[Stored]], slots: int, step: Step) -> list[Stored]:
        def watched(slot: int, tables: dict[str, pa.Table]) -> Iterable[Piece]:
            for tag, rows in tables.items():
                kind, _, keys = tag.partition(":")
                if kind == "queries" and not {"tags", "items.words"} & set(keys.split(",")):
                    self.asked.append(rows.num_rows)
            return step(slot, tables)

        return super().exchange(title, frames, slots, watched if title.startswith("cross features") else step)


def test_a_key_that_all_exposures_share_is_cut_in_slices_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = write_world(tmp_path / "data", seed=54, users=9, items=2, days=2, per_day=1200)
    whole, sliced = Watching(), Watching()
    config = BuildConfig(long_schema(), tmp_path / "data", tmp_path / "whole", days[1], days[1], buckets=6)
    found = build(config, whole).candidates
    monkeypatch.setattr(hot_keys, "HOT_ROWS", found // 5)
    build(replace(config, out=tmp_path / "sliced"), sliced)
    assert max(whole.asked) == found
    assert max(sliced.asked) < 0.7 * found
    same_days(tmp_path, days[1:], "whole", "sliced")

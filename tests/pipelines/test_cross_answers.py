"""Cross features by operation, from tiles, and by way of their keys' slots, against their definition event by event."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrank.pipelines import cross_features
from genrank.pipelines.columns import needed
from genrank.pipelines.compaction import sizes
from genrank.pipelines.compaction.plan import ReadPlan
from genrank.pipelines.compaction.uses import TileUse, tile_uses
from genrank.pipelines.cross_feature_ops import evaluation_of
from genrank.pipelines.cross_feature_routing import CrossFeatureRouter
from genrank.pipelines.cross_features import KeySet, key_sets
from genrank.pipelines.engine import SlotPiece, gather, joined
from genrank.pipelines.merge_scan import Keys, mix
from genrank.schemas import CrossFeature, Schema
from genrank.schemas.base import DAY_MS
from genrank.schemas.ids import MISSING_ID
from tests.pipelines.cross_events import (
    DAYS,
    STEP,
    Event,
    Held,
    by_definition,
    events,
    features_at,
    features_at_lists,
    partial_of,
    schema_of,
)

BY_ITEM = schema_of(*features_at("item_id"))
# Keys that hold a feature as of the day's start aren't cut in slices: none of the items' does.
OF_ITEMS = tuple(feature for feature in features_at("item_id") if feature.as_of == "exposure")
OF_TAGS = (*features_at_lists("tags"), *features_at_lists("tags", "user_id"))
EVERYWHERE = schema_of(*OF_ITEMS, *features_at("user_id"), *features_at(), *OF_TAGS)


def held(schema: Schema, found: Sequence[Event], buckets: int = 1) -> Held:
    """Rows of both logs, all days present."""
    columns = needed(schema)
    rows = {source.name: partial_of(schema, source.name, found, columns[source.name]) for source in schema.sources}
    return Held(schema, {}, buckets, rows)


def is_value(feature: CrossFeature, value: float | int, expected: float | int | None) -> bool:
    if expected is None:
        return value == MISSING_ID if feature.stored == "id" else np.isnan(value)
    if feature.half_life:
        # Terms of both signs cancel: the error is relative to the largest there may be, 300 of an amount of 4.
        return bool(abs(value - expected) <= np.spacing(np.float32(abs(expected))) + 1200 * 4 * np.finfo(float).eps)
    return value == (expected if feature.stored == "id" else np.float32(expected))


def check(
    key_set: KeySet, schema: Schema, found: Sequence[Event], asked: Sequence[tuple[int, int]], rows: dict[str, pa.Table]
) -> None:
    """The answers at (item, time) from `rows` are those of all events."""
    item, ts = (np.array([each[at] for each in asked], np.int64) for at in (0, 1))
    start = ts // DAY_MS * DAY_MS
    answers = dict(cross_features.answer(key_set, schema, Keys(mix(item)), ts, start, rows))
    for feature in key_set.features:
        moments = start if feature.as_of == "window_start" else ts
        for value, of, at in zip(answers[feature.name].to_pylist(), item.tolist(), moments.tolist(), strict=True):
            expected = by_definition(feature, found, {"item_id": of}, at)
            assert is_value(feature, value, expected), (feature.name, value, expected)


def asked_on(*days: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    """(item, time) on some days."""
    moment = st.builds(
        lambda step, late: step * STEP + late,
        st.integers(days[0] * 4, days[-1] * 4 + 3),
        st.sampled_from([0, 1, STEP // 2]),
    )
    return st.lists(st.tuples(st.integers(1, 2), moment), min_size=8, max_size=12)


@settings(max_examples=20)
@given(events(), asked_on(*range(DAYS)))
def test_every_operation_by_its_definition(found: list[Event], asked: list[tuple[int, int]]) -> None:
    reader = held(BY_ITEM, found)
    for key_set in key_sets(BY_ITEM):
        plans = {TileUse(log, key_set): ReadPlan((), tuple(range(DAYS))) for log in key_set.windows(BY_ITEM)}
        rows = {use.source: table for use, table in reader.events(plans, 0).items()}
        check(key_set, BY_ITEM, found, asked, rows)


@settings(max_examples=20)
@given(events(), asked_on(DAYS - 2, DAYS - 1), st.integers(1, 40))
def test_days_merged_on_the_way_answer_alike(found: list[Event], asked: list[tuple[int, int]], chunk: int) -> None:
    """Whatever a task holds at a time, and with whole runs of days as one row per key."""
    first, last = DAYS - 2, DAYS - 1
    reader = held(BY_ITEM, found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "CHUNK", chunk)
        for key_set in key_sets(BY_ITEM):
            plans = {}
            for log in key_set.windows(BY_ITEM):
                runs = cross_features.ranges_of_tiles(key_set, BY_ITEM, BY_ITEM.event_log(log), first, last)
                plans[TileUse(log, key_set)] = ReadPlan(
                    (), tuple(range(DAYS)), runs=tuple(runs), settled=first * DAY_MS
                )
            merged = reader.events(plans, 0)
            rows = {use.source: table for use, table in merged.items()}
            check(key_set, BY_ITEM, found, asked, rows)


def test_many_rows_become_few() -> None:
    """What the tests above hold to be exact does merge: a day's clicks of an item are a row per condition and presence of values."""
    found = [Event("clicks", 1, 1, DAY_MS * (DAYS - 4) + at, 2.0, 1, at) for at in range(500)]
    reader = held(BY_ITEM, found)
    (key_set,) = (one for one in key_sets(BY_ITEM) if not one.distinct)
    log = BY_ITEM.event_log("clicks")
    rows = reader.events({TileUse("clicks", key_set): ReadPlan((), tuple(range(DAYS)))}, 0)[TileUse("clicks", key_set)]
    tile = cross_features.tile(key_set, log, rows, DAY_MS * (DAYS - 4), DAY_MS * (DAYS - 2))
    assert rows.num_rows == 500 and tile.num_rows == 1
    assert tile.column("merged").to_pylist() == [500]


def sent_to(pieces: Sequence[SlotPiece], slot: int) -> dict[str, pa.Table]:
    return gather(piece for piece in pieces if piece.slot == slot)


@settings(max_examples=12)
@given(events(most=120), st.integers(1, 4), st.integers(1, 4), st.dictionaries(st.integers(1, 2), st.integers(1, 4)))
def test_by_way_of_the_keys_slots(found: list[Event], buckets: int, slots: int, hot: dict[int, int]) -> None:
    """However many buckets and slots of keys there are, and into however many slices of time a frequent key is cut."""
    days = (DAYS - 2, DAYS - 1)
    reader = held(EVERYWHERE, found, buckets)
    cut = {mix(np.array([item], np.int64)).item(): number for item, number in hot.items()}
    tags = [key_set.tag for key_set in key_sets(EVERYWHERE) if key_set.keys in (("item_id",), ("tags",))]
    plans = {use: ReadPlan((), tuple(range(DAYS))) for use in tile_uses(EVERYWHERE)}
    router = CrossFeatureRouter(EVERYWHERE, buckets, days, reader, plans, dict.fromkeys(tags, cut), slots)
    routed = list(joined(piece for bucket in range(buckets) for piece in router.route(bucket)))
    answered = list(
        joined(
            piece
            for slot in range(buckets + slots)
            if (tables := sent_to(routed, slot))
            for piece in router.answer_queries(slot, tables)
        )
    )
    shown = 0
    for bucket in range(buckets):
        columns = needed(EVERYWHERE)["exposures"]
        exposures = reader.load("exposures", days, bucket, ["u", "ts", *(column.name for column in columns)])
        if not exposures.num_rows:
            continue
        users = np.unique(exposures.column("u").to_numpy())
        values = router.features(exposures, bucket, sent_to(answered, bucket), users)
        shown += exposures.num_rows
        for feature in (one for one in EVERYWHERE.candidates.features if isinstance(one, CrossFeature)):
            for value, row in zip(values[feature.name].to_pylist(), exposures.to_pylist(), strict=True):
                of = {"user_id": [row["u"]], "item_id": [row["id(item_id)"]], "tags": row["set(tags)"] or [None]}
                at = row["ts"] // DAY_MS * DAY_MS if feature.as_of == "window_start" else row["ts"]
                each = [
                    by_definition(feature, found, dict(zip(feature.keys, keys, strict=True)), at)
                    for keys in itertools.product(*(of[key] for key in feature.keys))
                ]
                there = [one for one in each if one is not None]
                reduce = {"mean": statistics.fmean, "sum": sum, "max": max, "min": min}[feature.reduction]
                expected = reduce(there) if there else None
                assert is_value(feature, value, expected), (feature.name, value, expected)
    assert shown == sum(event.log == "exposures" and event.ts // DAY_MS in days for event in found)


@pytest.mark.parametrize("feature", features_at("item_id"), ids=lambda feature: feature.name)
def test_what_an_operation_gives_without_events_is_known_from_what_it_gives_with_some(feature: CrossFeature) -> None:
    """The gate counts how often a feature saw an event by its values alone."""
    event = Event("clicks", 1, 1, DAY_MS, 3.0, 2)
    at = event.available + 1
    none = by_definition(feature, [], {"item_id": 1}, at)
    some = by_definition(feature, [event], {"item_id": 1}, at)
    missing, dtype = (MISSING_ID, np.int64) if feature.stored == "id" else (np.nan, np.float32)
    stored = np.array([missing if value is None else value for value in (none, some)], dtype)
    assert evaluation_of(feature).saw_events(feature, stored).tolist() == [False, True]

"""Standing blocks answer as the build's scan does, however their events are split; so do timelines, and conditions seen to hold do hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from genrank.pipelines import cross_features
from genrank.pipelines.arrays import frame_of
from genrank.pipelines.column_roles import Column
from genrank.pipelines.columns import compute, needed
from genrank.pipelines.cross_features import key_sets
from genrank.pipelines.merge_scan import Keys
from genrank.pipelines.online.conditions import bounds_of, surely_met
from genrank.pipelines.online.crossed import CrossFeatures, stored
from genrank.pipelines.online.standing import Block
from genrank.pipelines.online.timelines import SequenceCuts
from genrank.pipelines.partials import partial_schema
from genrank.schemas.ids import MISSING_ID
from tests.pipelines.worlds import HOUR, full_schema

SCHEMA = full_schema()
COLUMNS = needed(SCHEMA)
PARTIALS = {s.name: partial_schema(SCHEMA, s, COLUMNS[s.name]) for s in SCHEMA.sources}
KEY_SETS = key_sets(SCHEMA)
MOMENTS = st.integers(0, 9 * 24).map(lambda at: at * HOUR)
"""On the hour, so that times, windows' edges and arrivals meet."""


def rows_of(log: str, events: list[tuple[int, int, int, int, bool]]) -> pa.Table:
    """Rows of a log's partial: of each event (user, ts, lag, value, flag); ids in the order given."""
    user, ts, lag, value, flag = (np.array(own) for own in zip(*events, strict=True)) if events else (np.zeros(0),) * 5
    columns: dict[str, pa.Array] = {}
    for field in PARTIALS[log]:
        if field.name == "u":
            own: Any = user
        elif field.name in ("ts", "arrived"):
            own = ts + (lag if field.name == "arrived" else 0)
        elif field.name == "id":
            own = np.arange(len(events))[::-1]
        elif field.type == pa.bool_():
            own = flag.astype(bool)
        elif pa.types.is_floating(field.type):
            own = np.where(value == 0, np.nan, value / 10)
        elif pa.types.is_list(field.type):
            columns[field.name] = pa.array([list(range(int(v) % 4)) for v in value], field.type)
            continue
        else:
            own = np.where(value == 0, MISSING_ID, value % 3)
        columns[field.name] = pa.array(own).cast(field.type)
    return pa.table(columns, schema=PARTIALS[log])


EVENT = st.tuples(
    st.integers(1, 3), MOMENTS, st.sampled_from([0, 0, HOUR, 30 * HOUR, 200 * HOUR]), st.integers(0, 6), st.booleans()
)
EVENTS = st.lists(EVENT, max_size=12)


@given(
    EVENTS,
    EVENTS,
    st.integers(0, 12),
    st.lists(st.tuples(st.integers(0, 5), MOMENTS), min_size=1, max_size=5),
    st.sampled_from(range(len(KEY_SETS))),
)
def test_blocks_answer_as_the_scan_of_all_events(first: Any, second: Any, cut: int, asked: Any, which: int) -> None:
    """Counts, sums, means, distinct values, extremes, recency, last values and rates; ties, late arrivals, keys without events."""
    key_set = KEY_SETS[which]
    crossed = CrossFeatures(SCHEMA, PARTIALS, key_set)
    tables = {log: rows_of(log, own) for log, own in zip(crossed.logs, (first, second), strict=False)}
    events = {
        log: cross_features.events_at_keys(key_set, SCHEMA.event_log(log), table).combine_chunks()
        for log, table in tables.items()
    }
    of_events = np.concatenate([table.column("key").to_numpy() for table in events.values()] + [np.arange(6)])
    keys = of_events[[at % len(of_events) for at, _ in asked]]
    ts = np.array([moment for _, moment in asked])
    start = ts // (24 * HOUR) * 24 * HOUR
    wanted = dict(cross_features.answer(key_set, SCHEMA, Keys(keys), ts, start, events))
    blocks = {
        log: [own for part in (table.slice(0, cut), table.slice(cut)) if (own := crossed.block(log, part))]
        for log, table in tables.items()
    }
    found = stored(list(crossed.answers(blocks, keys, ts, start)))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        own = found[name]
        value = value.cast(own.type)  # where a key is a list, in float64 until all of its ids are known
        assert own.to_numpy().tobytes() == value.to_numpy().tobytes(), (name, own, value)


@given(
    EVENTS,
    EVENTS,
    st.integers(0, 12),
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
    MOMENTS,
    st.sampled_from(SCHEMA.sequences),
)
def test_timelines_in_parts_are_cut_as_one(
    first: Any, second: Any, cut: int, users: list[int], moment: int, sequence: Any
) -> None:
    cuts = SequenceCuts(SCHEMA, PARTIALS, sequence)
    tables = {log: rows_of(log, own) for log, own in zip(sorted(cuts.logs), (first, second), strict=True)}
    whole = cuts.timeline(tables)
    parts = [cuts.timeline({log: own.slice(*of) for log, own in tables.items()}) for of in ((0, cut), (cut,))]
    start, last = np.full(len(users), moment // (24 * HOUR) * 24 * HOUR), np.full(len(users), moment)
    want = cuts.cut([whole] if whole else [], np.array(users), start, last)
    for_parts = cuts.cut([part for part in parts if part], np.array(users), start, last)
    assert want[0].tolist() == for_parts[0].tolist()
    assert {n: repr(a.to_pylist()) for n, a in want[1].items()} == {
        n: repr(a.to_pylist()) for n, a in for_parts[1].items()
    }
    for at, user in enumerate(users):
        alone = cuts.cut([part for part in parts if part], np.array([user]), start[:1], last[:1])
        own = {name: leaf.slice(want[0][at], want[0][at + 1] - want[0][at]) for name, leaf in want[1].items()}
        assert {n: repr(a.to_pylist()) for n, a in alone[1].items()} == {n: repr(a.to_pylist()) for n, a in own.items()}


CONDITIONS = [
    "price > 0",
    "price >= 3 AND position < 100 and item_id IS NOT NULL",
    "price > 0.5",
    "price > 0 or ts > 5",
    "NOT price > 0",
    "(position <= 16777215)",
]


@given(
    st.lists(
        st.tuples(
            st.none() | st.sampled_from([float("nan"), -0.0, 0.0, 3.0, 1e300]),
            st.none() | st.integers(-1, 100),
            st.none() | st.text(max_size=1),
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(CONDITIONS),
)
def test_conditions_seen_to_hold_do(rows: Any, condition: str) -> None:
    log = SCHEMA.exposures
    price, position, item = zip(*rows, strict=True)
    declared = {
        "price": pa.array(price, pa.float64()),
        "position": pa.array(position, pa.int32()),
        "item_id": pa.array(item, pa.string()),
        "ts": pa.array([9] * len(rows), pa.int64()),
    }
    check = Column("flag", condition, sql=True)
    met = compute(frame_of(pa.table(declared)), log, (check,))[check.name]
    assert not surely_met(bounds_of(log, condition), declared) or met.true_count == len(rows)


def test_which_conditions_are_seen() -> None:
    log, there = (
        SCHEMA.exposures,
        {"price": pa.array([3.5]), "position": pa.array([99], pa.int32()), "item_id": pa.array(["a"])},
    )
    assert [surely_met(bounds_of(log, condition), there) for condition in CONDITIONS] == [
        True,
        True,
        False,
        False,
        False,
        True,
    ]


def test_what_a_block_holds_is_counted_once() -> None:
    crossed = CrossFeatures(SCHEMA, PARTIALS, next(k for k in KEY_SETS if k.keys == ("item_id",) and not k.distinct))
    block = crossed.block("clicks", rows_of("clicks", [(1, HOUR * at, 0, 1 + at % 5, True) for at in range(1000)]))
    assert isinstance(block, Block)
    assert block.rows.nbytes < block.nbytes < 12 * block.rows.nbytes

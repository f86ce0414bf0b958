"""Online features are the batch build's to the bit: every kind of feature, seeded users and moments, events from partials and as they come."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrank.pipelines.build import build
from genrank.pipelines.column_roles import Column
from genrank.pipelines.columns import cross_features, feature_column
from genrank.pipelines.columns import needed as columns_needed
from genrank.pipelines.config import BuildConfig
from genrank.pipelines.cross_features import answer, at_keys, events_at_keys, hashed_keys, key_sets, of_exposures
from genrank.pipelines.days import day_number
from genrank.pipelines.merge_scan import Keys
from genrank.pipelines.online.features import OnlineFeatures
from genrank.pipelines.partials import partial_schema
from genrank.pipelines.sources import read_rows
from genrank.schemas import Candidates, EventLog, Label, Schema, Snapshot, Sql, UserError
from genrank.schemas.base import ARROW_TYPES
from genrank.schemas.ids import hash_string
from genrank.schemas.manifest import sample_files
from genrank.serving.request_contract import RequestContract
from genrank.serving.stored_requests import requests_of
from tests.pipelines.worlds import HOUR, full_schema, write_world

SHOWN = ("user_id", "ts", "item_id", "request_id", "position", "price", "tags")
"""Columns of the exposures that are known when they are shown."""


def raw(data: Path, schema: Schema, source: str, dt: str) -> pa.Table:
    files = sorted((data / source / f"dt={dt}").glob("*.parquet"))
    groups = ((file, range(pq.read_metadata(file).num_row_groups)) for file in files)
    return pa.concat_tables([read_rows(schema.source(source), str(file), own) for file, own in groups])


def stored(out: Path, schema: Schema, dt: str) -> Iterator[dict[str, Any]]:
    for file in sample_files(out / "samples", dt):
        yield from requests_of(pq.read_table(file), RequestContract(schema), "request").to_pylist()


def exposures_of(row: dict[str, Any], shown: list[dict[str, Any]]) -> pa.Table:
    """The raw rows of a stored request's candidates, in its order."""
    by_key = {
        (
            each["user_id"],
            each["ts"],
            each["item_id"] and hash_string(each["item_id"]),
            hash_string(each["request_id"]),
        ): each
        for each in shown
    }
    own = row["candidates"]
    keys = zip(own["ts"], own["item"], own["request"], strict=True)
    rows = [by_key[row["user_id"], *key] for key in keys]
    types = {"tags": pa.list_(pa.string()), "position": pa.int32()}
    return pa.table({name: pa.array([each[name] for each in rows], types.get(name)) for name in SHOWN})


@pytest.mark.parametrize("seed", range(3))
def test_requests_are_what_the_build_stored(tmp_path: Path, seed: int) -> None:
    schema, data, out = full_schema(), tmp_path / "data", tmp_path / "out"
    days = write_world(data, seed=seed, days=4)
    build(BuildConfig(schema, data, out, days[-1], days[-1], recompute_users=0))
    rows = list(stored(out, schema, days[-1]))
    shown = raw(data, schema, "exposures", days[-1]).to_pylist()
    loaded = OnlineFeatures.load(schema, out, days[-1])
    live = OnlineFeatures.load(schema, out, days[-1], live_from=days[-1])
    for log in ("exposures", "clicks", "orders"):
        events = raw(data, schema, log, days[-1]).sort_by(schema.event_log(log).time)
        for at in range(0, events.num_rows, 7):
            live.add(log, events.slice(at, 7), days[-1])
        live.add(log, events.slice(3, 9), days[-1])  # once more
    of_rows = [row["candidates"] for row in rows]
    varied = [f.name for f in cross_features(schema) if len({repr(v) for own in of_rows for v in own[f.name]}) > 1]
    assert len(varied) >= 12, "a comparison of missing values alone would show nothing"
    for features in (loaded, live):
        for row in rows:
            (found,) = features.request(exposures_of(row, shown), row["sample_id"]).to_pylist()
            for column, value in row.items():
                for leaf, values in value.items() if isinstance(value, dict) else [(column, value)]:
                    own = found[column][leaf] if isinstance(value, dict) else found[column]
                    assert repr(own) == repr(values), (features is live, row["sample_id"], column, leaf)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Schema, Path, Path, list[str]]:
    """A schema of every kind of feature, logs, what was built of them, and the days."""
    schema, root = full_schema(), tmp_path_factory.mktemp("online")
    days = write_world(root / "data", seed=5, days=4, per_day=90)
    build(BuildConfig(schema, root / "data", root / "out", days[-2], days[-1], recompute_users=0))
    return schema, root / "data", root / "out", days


def same(one: pa.RecordBatch, other: pa.RecordBatch) -> bool:
    """Whether all values are the same; a NaN is."""
    return repr(one.to_pylist()) == repr(other.to_pylist())


def seen_by(event: dict[str, Any], log: str) -> int:
    """Epoch ms at which an event of the world is there to be read."""
    at: int = {"exposures": "ts", "orders": "ts"}.get(log) and event["ts"] * (1000 if log == "orders" else 1)
    if log == "clicks":
        at = round(max(event["at"], event["arrived"] or event["at"]).timestamp() * 1000)
    return at


def test_events_added_as_they_arrive_are_what_the_build_saw(
    world: tuple[Schema, Path, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request is helped by an event from its future, and none waits for one from its past: at each moment only what has arrived
    by then was added. Tiers are so small that rows move from one to the next."""
    monkeypatch.setattr("genrank.pipelines.online.state.TIERS", (9, 3))
    schema, data, out, days = world
    live = OnlineFeatures.load(schema, out, days[-1], live_from=days[-1])
    shown = raw(data, schema, "exposures", days[-1]).to_pylist()
    arriving = []
    for log in ("exposures", "clicks", "orders"):
        table = raw(data, schema, log, days[-1])
        known = [each is not None for each in table.column(schema.event_log(log).time).to_pylist()]
        table = table.filter(pa.array(known))
        arriving += [(seen_by(row, log), log, table.slice(at, 1)) for at, row in enumerate(table.to_pylist())]
    arriving.sort(key=lambda each: each[0])
    rows = sorted(stored(out, schema, days[-1]), key=lambda row: max(row["candidates"]["ts"]))
    added = compared = 0
    for row in rows:
        while added < len(arriving) and arriving[added][0] < max(row["candidates"]["ts"]):
            live.add(arriving[added][1], arriving[added][2], days[-1])
            added += 1
        if len(set(row["candidates"]["ts"])) > 1:
            continue  # Of several moments: exposures of the earlier ones would have had to be asked then.
        (found,) = live.request(exposures_of(row, shown), row["sample_id"]).to_pylist()
        assert repr(found) == repr({name: row[name] for name in found}), row["sample_id"]
        compared += 1
    assert compared > 8 and added > len(arriving) / 2


def test_what_comes_later_changes_nothing(world: tuple[Schema, Path, Path, list[str]]) -> None:
    """An event that was added before it is available is not seen, nor is one of the request's own millisecond."""
    schema, _, out, days = world
    features = OnlineFeatures.load(schema, out, days[-2])
    noon = schema.local_days.start(day_number(days[-1])) + 12 * HOUR
    asked = {"user_id": 1, "ts": noon, "item_id": ["i0", "i1", "i0"], "request_id": "r", "position": 1, "price": 2.0}
    before = features.request(asked)

    def click(at: int, arrived: int) -> pa.Table:
        types = schema.event_log("clicks").columns
        own = {"user": 1, "at": at, "arrived": arrived, "item_id": "i0", "dwell": 7.0, "kind": "deep"}
        return pa.table({name: pa.array([own[name]], ARROW_TYPES[types[name]]) for name in types})

    delay = 2000
    for at, arrived in ((noon, noon), (noon + 5, noon + 5), (noon - HOUR, noon - delay), (noon - HOUR, noon + HOUR)):
        assert features.add("clicks", click(at, arrived), days[-1]) == []
        assert same(features.request(asked), before)
    assert features.add("clicks", click(noon - 2 * HOUR, noon - delay - 1), days[-1]) == []
    after = features.request(asked)
    assert not same(after, before)
    assert features.add("clicks", click(noon - 2 * HOUR, noon - delay - 1), days[-1]) == []
    assert same(features.request(asked), after), "one event, read twice, counts once"
    later = features.request(asked | {"ts": noon + 2 * HOUR}).to_pylist()[0]
    assert len(later["realtime"]["ts"]) == len(after.to_pylist()[0]["realtime"]["ts"]) + 4


class Kept(OnlineFeatures):
    """Keeps what it was made of, so that a test can ask the build's own functions about it."""

    def __init__(self, schema: Schema, rows: Any, snapshots: Any) -> None:
        super().__init__(schema, rows, snapshots)
        self.loaded = rows

    def by_the_build(self, asked: pa.Table, day: int) -> dict[str, pa.Array]:
        """Every candidate's columns, normalized and scanned as the build does."""
        schema = self.schema
        found, reasons = self._normalizer(day).rows(schema.exposures, asked, day)
        assert found is not None and not reasons
        start = schema.local_days.start(day)
        values: dict[str, pa.Array] = {"ts": found.rows.column("ts")}
        for key_set in key_sets(schema):
            events = {
                log: events_at_keys(key_set, schema.event_log(log), self.loaded[log]).combine_chunks()
                for log in key_set.windows(schema)
            }
            shown = at_keys(key_set, found.rows)
            keys, _ = hashed_keys(key_set, shown)
            ts = shown.column("ts").to_numpy()
            answers = dict(answer(key_set, schema, Keys(keys), ts, np.full(len(ts), start), events))
            values |= of_exposures(key_set, answers, found.rows)
        for feature in schema.candidates.features:
            if column := feature_column(feature):
                values[feature.name] = found.rows.column(column.name)
        return values


@pytest.fixture(scope="module")
def kept(world: tuple[Schema, Path, Path, list[str]]) -> Kept:
    schema, _, out, days = world
    return Kept.load(schema, out, days[-1])


CANDIDATE = st.tuples(
    st.sampled_from([f"i{at}" for at in range(6)] + ["new", ""]),
    st.sampled_from([0.0, 1.25, 9.99]),
    st.none() | st.lists(st.none() | st.sampled_from("abc"), max_size=3),
)


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(st.integers(1, 8), st.integers(0, 24 * 60 - 1), st.lists(CANDIDATE, min_size=1, max_size=4)),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([0, 1]),
)
def test_any_request_is_what_the_build_computes(kept: Kept, world: Any, of: Any, back: int) -> None:
    """Users and items that nobody saw, moments at which something happened and others, missing values; alone and several at once."""
    schema, _, _, days = world
    day = day_number(days[-1])
    asked = []
    for at, (user, minute, candidates) in enumerate(of):
        item, price, tags = (list(own) for own in zip(*candidates, strict=True))
        # Every second one of the day before, where the draw says so: a batch may span days.
        ts = schema.local_days.start(day - (back if at % 2 else 0)) + minute * 60_000
        asked.append(
            pa.table(
                {
                    "user_id": pa.array([user] * len(item)),
                    "ts": pa.array([ts] * len(item)),
                    "item_id": pa.array(item, pa.string()),
                    "request_id": pa.array([f"r{at}"] * len(item)),
                    "position": pa.array([1] * len(item), pa.int32()),
                    "price": pa.array(price, pa.float64()),
                    "tags": pa.array(tags, pa.list_(pa.string())),
                }
            )
        )
    together = kept.requests(asked)
    for at, table in enumerate(asked):
        alone = kept.request(table, str(at))
        assert same(alone, together.slice(at, 1))
        found = alone.to_pylist()[0]["candidates"]
        own_day = schema.local_days.day(table.column("ts")[0].as_py())
        for name, values in kept.by_the_build(table, own_day).items():
            assert repr(found[name]) == repr(values.to_pylist()), name


def test_what_mappings_and_batches_refuse(kept: Kept, world: Any) -> None:
    schema, _, _, days = world
    start = schema.local_days.start(day_number(days[-1]))
    one = {"user_id": 1, "ts": start + 5, "item_id": ["i1", "i2"], "request_id": "r", "position": 1, "price": 2.0}
    by_table = pa.table({"item_id": ["i1", "i2"], **{n: [v] * 2 for n, v in one.items() if n != "item_id"}})
    assert same(kept.request(one), kept.request(by_table))
    assert kept.requests([one, one], ["a", "b"]).column("sample_id").to_pylist() == ["a", "b"]
    for wrong, message in (
        ({"item_id": []}, "at least one candidate"),
        ({"price": [1.0]}, "price has 1 values and item_id 2"),
        ({"prize": 1.0}, "has no column 'prize'"),
        ({"position": "first"}, "position is declared int32"),
        ({"price": [1.0, -1.0]}, "not valid: price >= 0"),
        ({"user_id": None}, "user_id is null"),
        ({"ts": [start, start - 1]}, "several users or days"),
    ):
        with pytest.raises(UserError, match=message):
            kept.request(one | wrong)
        with pytest.raises(UserError, match=f"requests.1.: .*{message}"):
            kept.requests([one, one | wrong, one])
    with pytest.raises(UserError, match="2 requests with 1 sample_ids"):
        kept.requests([one, one], ["a"])
    with pytest.raises(UserError, match="0 requests"):
        kept.requests([])
    with pytest.raises(UserError, match="of different types"):
        kept.requests([by_table, by_table.set_column(0, "item_id", pa.array([1, 2]))])


def test_partials_of_another_release_are_refused(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    schema, _, out, days = world
    own = columns_needed(schema)
    wanted = own | {"orders": (*own["orders"], Column("amount", "nothing"))}
    monkeypatch.setattr("genrank.pipelines.online.features.needed", lambda _: wanted)
    with pytest.raises(UserError, match=r"partials of 'orders' .* another release .* --force"):
        OnlineFeatures.load(schema, out, days[-1])


def test_a_request_sees_all_events_of_an_add_or_none(world: Any) -> None:
    schema, _, out, days = world
    features = OnlineFeatures.load(schema, out, days[-1], live_from=days[-1])
    noon = schema.local_days.start(day_number(days[-1])) + 12 * HOUR
    size, adds = 8, 12
    asked = {"user_id": 77, "ts": noon, "item_id": "i0", "request_id": "r", "position": 1, "price": 2.0}

    def batch(number: int) -> pa.Table:
        rows = [asked | {"ts": noon - 1000 + number * size + at, "request_id": f"{number}-{at}"} for at in range(size)]
        return pa.Table.from_pylist(rows)

    def add() -> None:
        for number in range(adds):
            features.add("exposures", batch(number), days[-1])

    adding = threading.Thread(target=add)
    adding.start()
    seen: list[tuple[int, int]] = []
    while not seen or seen[-1][0] < adds * size:
        over = not adding.is_alive()
        (row,) = features.request(asked).to_pylist()
        seen.append((int(row["candidates"]["user_shown"][0]), len(row["realtime"]["ts"])))
        assert not over or seen[-1][0] == adds * size
    adding.join()
    assert all(count % size == 0 and length == min(count, 40) for count, length in seen), seen


def test_sql_over_a_snapshot_fails_for_the_keys_that_ask() -> None:
    """SQL over a snapshot alone is evaluated for all keys before a request asks; one whose value fits nowhere harms no other's."""
    log = EventLog(name="exposures", path="e/dt={dt}", columns={"user_id": "int64", "item_id": "int64", "ts": "int64"})
    items = Snapshot(name="items", path="i/dt={dt}", key="item_id", columns={"item_id": "int64", "stock": "int64"})
    worth = Sql(name="worth", expression="items.stock * 4611686018427387904", type="float32")
    schema = Schema(
        name="worth",
        sources=(log, items),
        candidates=Candidates(features=(worth,)),
        labels=(Label(name="y", column="ts"),),
    )
    partials = {s.name: partial_schema(schema, s, columns_needed(schema)[s.name]) for s in schema.sources}
    own = {"u": [1, 2], "ts": [0, 0], "arrived": [0, 0], "id": [0, 0], "raw(stock)": [1, 4]}
    table = pa.table({field.name: pa.array(own[field.name], field.type) for field in partials["items"]})
    features = OnlineFeatures(schema, {"exposures": partials["exposures"].empty_table()}, {"items": {20_000: table}})

    def request(items: list[int]) -> Any:
        return features.request({"user_id": 7, "ts": 20_000 * 24 * HOUR, "item_id": items}).to_pylist()[0][
            "candidates"
        ]["worth"]

    assert repr(request([1, 3])) == repr([2.0**62, float("nan")])
    with pytest.raises(UserError, match="beyond int64 in 1 rows"):
        request([1, 2])


def test_what_it_refuses(tmp_path: Path) -> None:
    schema, data, out = full_schema(), tmp_path / "data", tmp_path / "out"
    days = write_world(data, seed=1, days=3)
    build(BuildConfig(schema, data, out, days[-1], days[-1], recompute_users=0))
    features = OnlineFeatures.load(schema, out, days[-1])
    start = schema.local_days.start(day_number(days[-1]))
    one = {"user_id": 1, "ts": start + 5, "item_id": "i1", "request_id": "r", "position": 1, "price": 2.0, "tags": []}

    def request(*changes: dict[str, Any]) -> pa.RecordBatch:
        return features.request(pa.Table.from_pylist([one | change for change in changes]))

    assert request({}, {"item_id": "i2"}).num_rows == 1
    with pytest.raises(UserError, match="at least one candidate"):
        request()
    with pytest.raises(UserError, match="several users or days"):
        request({}, {"user_id": 2})
    with pytest.raises(UserError, match="item_id is null; the build would quarantine it"):
        request({"item_id": None}, {})
    with pytest.raises(UserError, match="not valid: price >= 0"):
        request({"price": -1.0})
    with pytest.raises(UserError, match="has no time"):
        request({"ts": None}, {})
    with pytest.raises(UserError, match="no published samples"):
        OnlineFeatures.load(schema, out, "2031-01-01")
    assert features.add(
        "clicks",
        pa.table({"user": [None], "at": [0]}, pa.schema({"user": pa.int64(), "at": pa.timestamp("ms")})),
        days[-1],
    )
    with pytest.raises(UserError, match="is a snapshot"):
        features.add("users", pa.table({"user_id": [1]}), days[-1])
    np.testing.assert_equal(len(list((out / "samples").iterdir())), 1)

"""Histories that go on: the scores of whole samples, whatever arrives, drops out or is corrected; and what stands against appending is real."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_samples import BOUNDARIES, demo_schema

import genrank.schemas as s
from genrank.model.ranker import Ranker
from genrank.model.registry import choose_model
from genrank.schemas.ids import hash_string
from genrank.serving.engine import Engine
from genrank.serving.programs import ExportedEncoder, save_programs
from genrank.serving.sample_rows import SampleRows, request_schema
from genrank.serving.user_cache import UserCache
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.plan import make_plan

DAY = 86_400_000
FIRST = 20_000 * DAY
DEMO = demo_schema()
STILL = demo_schema(user=s.UserGroup(features=DEMO.user.features[:3]))
"""Its user features don't move with the window."""
LONGEST = next(q.max_length for q in STILL.sequences if q.name == "history")
CITIES = [hash_string(name) for name in ("oslo", "rome", "kyoto")]
APPENDING = {"visibility": "causal", "positions": "oldest", "ages": "false", "time_buckets": "0"}
MODELS: dict[str, tuple[str, dict[str, str]]] = {
    "hstu": ("hstu-tiny", {}),
    "hstu in a window": ("hstu-tiny", {"window": "7"}),
    "hstu with actions": ("hstu-tiny", {"history_loss": "0.1"}),
    "mtgr by sequence": ("mtgr-tiny", {"norm_groups": "sequence"}),
}


@functools.cache
def model_of(name: str, schema: s.Schema = STILL, **changes: str) -> Ranker:
    torch.manual_seed(0)
    embeddings = Embeddings(make_plan(schema), backend="torch", boundaries=BOUNDARIES)
    model = choose_model(name, changes).build(embeddings).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


@dataclass
class User:
    """One user's log, and the request that it makes at a moment."""

    number: int
    draw: random.Random
    events: list[dict[str, Any]] = field(default_factory=list)
    """In the order in which they became available."""
    city: int = 0

    def acts(self, available: int) -> None:
        self.events.append(
            {
                "item_id": self.draw.randrange(500),
                "watched": self.draw.random(),
                "price": float("nan") if self.draw.random() < 0.1 else self.draw.uniform(1, 90),
                "ts": available - self.draw.randrange(5_000_000),
                "type": self.draw.randrange(2),
                "available": available,
            }
        )

    def asks(self, at: int) -> dict[str, Any]:
        """The row of a request: what was available before its day is history, the newest events of it; the rest is realtime."""
        draw, start = random.Random(at), at // DAY * DAY
        history = [e for e in self.events if e["available"] < start][-LONGEST:]
        realtime = [e for e in self.events if start <= e["available"] < at]
        seen = sorted(e["available"] for e in realtime)
        count = draw.randint(1, 3)
        own = {"item_id": [draw.randrange(500) for _ in range(count)], "age": [at - DAY] * count}
        own |= {name: [draw.uniform(0, 50) for _ in range(count)] for name in ("price", "clicks_1h", "ctr", "cents")}
        return {
            "sample_id": f"{self.number}/{at}",
            "user_id": self.number,
            "window_start": start,
            "window_end": start + DAY,
            "user": {"city": CITIES[self.city % len(CITIES)], "age": 31.0, "tags": [1, 2 + self.number]},
            "history": columns(history, ("item_id", "watched", "price", "ts", "type")),
            "realtime": columns(realtime, ("item_id", "ts", "available")) | {"type": [0] * len(realtime)},
            "candidates": own
            | {"last_item": [7] * count, "ts": [at] * count, "request": [1] * count, "item": own["item_id"]},
            "mask": {
                "candidate_sees": [len(seen)] * count,
                "realtime_sees": [sum(other < a for other in seen) for a in seen],
            },
        }


def columns(events: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, list[Any]]:
    return {name: [e[name] for e in events] for name in names}


def batch_of(rows: list[dict[str, Any]], schema: s.Schema = STILL) -> Batch:
    wanted = request_schema(schema)
    found = pa.RecordBatch.from_pylist([{name: row[name] for name in wanted.names} for row in rows], schema=wanted)
    return SampleRows(schema).batch(found)


def difference(engine: Engine, batch: Batch) -> float:
    """The largest, of logits, between cached and whole."""
    with torch.inference_mode():
        got, wanted = engine.logits(batch), engine.model(batch)
    return max(float((got[task] - wanted[task]).abs().max() / (1 + wanted[task].abs().max())) for task in wanted)


ROUNDING = 2e-5
"""Relative, of float32 logits: the same sums of some hundred terms in another order, through two layers (epsilon is 6e-8)."""


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=2)
@given(seed=st.integers(0, 2**31))
def test_cached_equals_uncached_whatever_arrives_over_days(name: str, seed: int) -> None:
    """Five days of two users: events, requests in batches, now and then one of an earlier moment, a corrected event, a changed profile."""
    draw = random.Random(seed)
    model_name, changes = MODELS[name]
    model = model_of(model_name, **APPENDING, **changes)
    cache = UserCache(1 << 30, storage="float32")
    engine = Engine(model, "c", micro_batch=draw.choice([0, 2]), cache=cache)
    assert engine.appends, engine.append_obstacles
    users = [User(number, draw) for number in range(2)]
    for day in range(5):
        moments = sorted(FIRST + day * DAY + draw.randrange(DAY) for _ in range(draw.randint(2, 14)))
        for at in moments:
            draw.choice(users).acts(at)
        if draw.random() < 0.3 and (events := draw.choice(users).events):
            draw.choice(events)["price"] = 3.5
        if draw.random() < 0.2:
            draw.choice(users).city += 1
        for _ in range(2):
            ats = [FIRST + day * DAY + draw.randrange(DAY) - DAY * (draw.random() < 0.15) for _ in users]
            rows = [user.asks(at) for user, at in zip(users, ats, strict=True)]
            assert difference(engine, batch_of(rows[: draw.randint(1, 2)])) < ROUNDING
    counts = cache.counts
    assert counts.hits + counts.extended + counts.misses >= 10 and counts.hits + counts.extended > 0
    assert counts.rebuilt <= counts.misses and len(cache) <= 2


def test_of_a_history_that_goes_on_new_events_alone_pass_through_the_encoder() -> None:
    model = model_of("hstu-tiny", **APPENDING)
    cache = UserCache(1 << 30, storage="float32")
    engine = Engine(model, "c", cache=cache)
    user = User(1, random.Random(0))
    for at in range(10):
        user.acts(FIRST + at)
    ask = FIRST + DAY + 1_000
    assert difference(engine, batch_of([user.asks(ask)])) < ROUNDING
    assert (cache.counts.misses, cache.counts.extended, cache.counts.appended) == (1, 0, 0)
    for at in range(4):
        user.acts(FIRST + DAY + at)
    assert difference(engine, batch_of([user.asks(ask)])) < ROUNDING
    assert (cache.counts.hits, cache.counts.appended) == (1, 4), "realtime events"
    user.acts(FIRST + 2 * DAY)
    rows: list[int] = []
    encode, extend = model.encoder.user_state, model.encoder.extend
    model.encoder.user_state = lambda *given: pytest.fail("encoded anew")  # type: ignore[method-assign, assignment]
    model.encoder.extend = lambda state, later, *rest: rows.append(len(later.x)) or extend(state, later, *rest)  # type: ignore[method-assign]
    try:
        engine.logits(batch_of([user.asks(ask + DAY)]))
    finally:
        del model.encoder.user_state, model.encoder.extend
    assert encode and rows == [5], "four events that were realtime are history now, and there is one of today"
    assert (cache.counts.misses, cache.counts.extended, cache.counts.appended) == (1, 1, 9)
    assert difference(engine, batch_of([user.asks(ask + DAY)])) < ROUNDING
    assert (cache.counts.hits, len(cache)) == (2, 1)
    before = cache.bytes
    assert difference(engine, batch_of([user.asks(ask)])) < ROUNDING, "a late request of the day before"
    assert cache.bytes == before and cache.counts.hits == 3, "what it lacks stays"


def test_when_the_oldest_event_drops_out_the_state_is_computed_anew() -> None:
    model = model_of("hstu-tiny", **APPENDING)
    cache = UserCache(1 << 30, storage="float32")
    engine = Engine(model, "c", cache=cache)
    user = User(1, random.Random(1))
    for at in range(LONGEST - 1):
        user.acts(FIRST + at)
    for day, counted in ((1, (1, 0, 0)), (2, (1, 1, 0)), (3, (2, 1, 1))):
        assert difference(engine, batch_of([user.asks(FIRST + day * DAY + 9)])) < ROUNDING
        assert (cache.counts.misses, cache.counts.extended, cache.counts.rebuilt) == counted
        user.acts(FIRST + day * DAY + 10)


@pytest.mark.parametrize(
    ("changes", "schema", "said"),
    [
        ({"visibility": "targets"}, STILL, "visibility=causal"),
        ({"visibility": "dynamic"}, STILL, "visibility=causal"),
        ({"positions": "newest"}, STILL, "positions=oldest"),
        ({"ages": "true"}, STILL, "ages=false"),
        ({"window": "3", "full_tail": "9"}, STILL, "full_tail=0"),
        ({"time_buckets": "16"}, STILL, "time_buckets=0"),
        ({}, DEMO, "user.weekday moves with the window"),
    ],
)
def test_what_stands_against_appending_would_give_wrong_scores(
    changes: dict[str, str], schema: s.Schema, said: str
) -> None:
    """Such a model computes each window anew; made to append, it scores otherwise than in one pass."""
    model = model_of("hstu-tiny", schema, **{**APPENDING, **changes})
    user = User(1, random.Random(2))
    differences = {}
    for forced in (False, True):
        user.events.clear()
        user.draw.seed(2)
        cache = UserCache(1 << 30, storage="float32")
        engine = Engine(model, "c", cache=cache)
        assert any(said in line for line in engine.append_obstacles) and not engine.appends
        engine.appends = forced
        found = []
        for day in range(1, 5):
            for at in range(6):
                user.acts(FIRST + day * DAY + at)
            row = user.asks(FIRST + day * DAY + 100)
            row["user"] |= {"tenure": FIRST - DAY}
            found.append(difference(engine, batch_of([row], schema)))
        differences[forced] = max(found)
        assert cache.counts.extended == (3 if forced else 0)
    assert differences[False] < ROUNDING < 10 * ROUNDING < differences[True]


def test_a_history_of_the_newest_events_does_not_append() -> None:
    engine = Engine(model_of("hstu-tiny", **APPENDING, history="5"), "c", cache=UserCache(1 << 20))
    assert not engine.appends and "--set history=0" in engine.append_obstacles[0]
    assert (
        Engine(model_of("mtgr-tiny"), "c", cache=UserCache(1 << 20))
        .append_obstacles[0]
        .startswith("under visibility=dynamic")
    )


def test_the_programs_of_an_export_append_too(tmp_path: Path) -> None:
    model = model_of.__wrapped__("hstu-tiny", **APPENDING)
    users = [User(number, random.Random(number)) for number in range(3)]
    for user in users:
        for at in range(6):
            user.acts(FIRST + at)
            user.acts(FIRST + DAY + at)
    first = batch_of([user.asks(FIRST + DAY + 1_000) for user in users])
    with torch.inference_mode():
        save_programs(model.encoder, model.tokenizer(first), tmp_path / "encoder")
    following = batch_of([user.asks(FIRST + 2 * DAY + 1_000) for user in users[:2]])
    with torch.inference_mode():
        wanted = model(following)
    model.encoder = ExportedEncoder(model.encoder.config, tmp_path / "encoder")
    engine = Engine(model, "c", cache=UserCache(1 << 30, storage="float32"))
    assert engine.appends and difference(engine, first) < ROUNDING
    with torch.inference_mode():
        got = engine.logits(following)
    assert engine.cache is not None and engine.cache.counts.extended == 2
    for task, logits in wanted.items():
        torch.testing.assert_close(got[task], logits, rtol=ROUNDING, atol=ROUNDING)

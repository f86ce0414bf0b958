"""Candidates in parts and users that are kept: the scores of whole samples, however requests are cut and whatever arrives when."""

from __future__ import annotations

import functools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_samples import BOUNDARIES, demo_schema, random_table

from genrank.model.encoders import ENCODERS, split
from genrank.model.ranker import Ranker
from genrank.model.registry import choose_model
from genrank.schemas.errors import UserError
from genrank.serving.engine import Engine
from genrank.serving.history_append import UserRows
from genrank.serving.programs import has_programs
from genrank.serving.user_cache import Entry, Key, Layers, UserCache
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.plan import make_plan
from genrank.tokenization.sample_columns import SampleColumns
from genrank.tokenization.views import view_of

NAMES = [next((name for name in spec.presets if name.endswith("-tiny")), next(iter(spec.presets))) for spec in ENCODERS]
KEPT = {
    "mtgr": ("mtgr-tiny", {}),
    "mtgr by sequence": ("mtgr-tiny", {"norm_groups": "sequence", "time_buckets": "16"}),
    "hstu": ("hstu-tiny", {}),
    "hstu causal in a window": ("hstu-tiny", {"visibility": "causal", "window": "7", "full_tail": "2"}),
}
SCHEMA = demo_schema()


@functools.cache
def model_of(name: str, **changes: str) -> Ranker:
    torch.manual_seed(0)
    embeddings = Embeddings(make_plan(SCHEMA), backend="torch", boundaries=BOUNDARIES)
    model = choose_model(name, changes).build(embeddings).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


@functools.cache
def view(name: str, seed: int = 0):
    """Samples of eight user-days."""
    stored = SampleColumns(SCHEMA).stored_rows([random_table(SCHEMA, "2026-01-01", 8, seed=seed)])
    return view_of(stored, SCHEMA, name)


def batch_of(name: str, samples: list[int], seed: int = 0) -> Batch:
    return view(name, seed).batch(np.array(samples))


def assert_same(got: dict, wanted: dict, tolerance: float = 2e-5) -> None:
    for task in wanted:
        torch.testing.assert_close(got[task], wanted[task], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=2)
@given(size=st.integers(1, 40), seed=st.integers(0, 3))
def test_scores_depend_on_no_micro_batch_no_order_and_no_other_candidate(name: str, size: int, seed: int) -> None:
    model = model_of(name)
    batch = batch_of("user_day", list(range(5)), seed)
    with torch.inference_mode():
        wanted = model(batch)
        assert_same(Engine(model, "c", micro_batch=size).logits(batch), wanted)
        sequence, candidates = split(model.tokenizer(batch))
        state = model.encoder.user_state(sequence)
        whole = model.encoder.score(state, candidates)
        some = torch.randperm(len(candidates.owner))[:size]
        few = candidates.take(some)
        torch.testing.assert_close(model.encoder.score(state, few), whole[some], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", KEPT)
@settings(max_examples=4)
@given(seed=st.integers(0, 2**31))
def test_cached_equals_uncached_whatever_arrives_when(name: str, seed: int) -> None:
    """Requests of a day in any order and in any batches: later ones have more realtime events, earlier ones fewer."""
    draw = random.Random(seed)
    model_name, changes = KEPT[name]
    model = model_of(model_name, **changes)
    cache = UserCache(1 << 30, storage="float32")
    engine = Engine(model, "c", micro_batch=draw.choice([0, 1, 3]), cache=cache)
    samples = list(range(len(view("request", seed % 3))))
    draw.shuffle(samples)
    samples = samples[:16]
    while samples:
        # Of one user at most one request a batch sees an entry as it was before the batch; both are right.
        some, samples = samples[: draw.randint(1, 4)], samples[4:]
        batch = batch_of("request", some, seed % 3)
        with torch.inference_mode():
            assert_same(engine.logits(batch), model(batch))
    assert cache.counts.hits + cache.counts.misses > 0


def test_a_hit_reads_no_history_and_appends_what_is_new() -> None:
    model = model_of("mtgr-tiny")
    cache = UserCache(1 << 30, storage="float32")
    engine = Engine(model, "c", cache=cache)
    requests = view("request")
    user = max(set(requests.row.tolist()), key=lambda row: requests.realtime[requests.row == row].max())
    of_user = sorted((int(requests.realtime[i]), i) for i in range(len(requests)) if requests.row[i] == user)
    engine.logits(batch_of("request", [of_user[0][1]]))
    assert (cache.counts.hits, cache.counts.misses, cache.counts.appended) == (0, 1, of_user[0][0])
    histories = []
    own = model.tokenizer.embeddings
    plain = own.forward

    def noted(batch, groups=None, norms=None):
        found = plain(batch, groups, norms)
        histories.append("history" in found)
        return found

    own.forward = noted
    try:
        engine.logits(batch_of("request", [of_user[-1][1]]))
    finally:
        del own.forward
    assert histories == [False]
    assert (cache.counts.hits, cache.counts.misses, cache.counts.appended) == (1, 1, of_user[-1][0])
    assert of_user[-1][0] > of_user[0][0], "the day has events between the two requests"


@pytest.mark.parametrize(("storage", "bound"), [("bf16", 0.05), ("int8", 0.05)])
def test_fewer_bits_cost_little_and_scores_depend_on_no_hit(storage, bound: float) -> None:
    model = model_of("mtgr-tiny")
    cache = UserCache(1 << 30, storage=storage)
    engine = Engine(model, "c", cache=cache)
    batch = batch_of("user_day", [0, 1, 2])
    with torch.inference_mode():
        first, again, whole = engine.logits(batch), engine.logits(batch), model(batch)
    assert cache.counts.hits == 3
    assert_same(again, first, 1e-5)
    assert_same(first, whole, bound)
    plain = UserCache(1 << 30, storage="float32")
    Engine(model, "c", cache=plain).logits(batch)
    assert cache.bytes[0] < 0.65 * plain.bytes[0]


def test_an_entry_of_another_history_or_checkpoint_is_not_used() -> None:
    model, other = model_of("mtgr-tiny"), model_of("mtgr-tiny", time_buckets="16")
    cache = UserCache(1 << 30, storage="float32")
    batch = batch_of("user_day", [0])
    Engine(model, "c", cache=cache).logits(batch)
    changed = batch_of("user_day", [0])
    changed.groups["history"].ts.sub_(60_000)
    with torch.inference_mode():
        assert_same(Engine(model, "c", cache=cache).logits(changed), model(changed))
        assert_same(Engine(other, "d", cache=cache).logits(changed), other(changed))
    assert (cache.counts.hits, cache.counts.misses) == (0, 3)
    changed.groups["history"].ts.add_(60_000)
    assert len(cache) == 2
    cache.drop("c")
    assert len(cache) == 1


def test_what_cannot_be_scored_in_parts_is_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"micro-batches: with divisor=\"length\".*--set divisor=visible"):
        Engine(model_of("mtgr-tiny", divisor="length"), "c", micro_batch=8)
    with pytest.raises(
        UserError, match=r"micro-batches: with listwise=true the candidates of a request see each other"
    ):
        Engine(model_of("mtgr-tiny", listwise="true"), "c", micro_batch=8, cache=UserCache(1))
    with pytest.raises(UserError, match=r"user cache: Longer keeps no state.*Use micro-batches"):
        Engine(model_of("longer-tiny"), "c", cache=UserCache(1))
    with pytest.raises(UserError, match="Dlrm has no user state"):
        Engine(model_of("dlrm"), "c", micro_batch=8)
    with pytest.raises(UserError, match="give one of them at least 1"):
        UserCache(0)


def test_listwise_users_are_kept_and_requests_scored_whole() -> None:
    """A request of a user-day is scored by its own candidates: as in its own sample, where all of them are."""
    model = model_of("mtgr-tiny", listwise="true")
    assert not has_programs(model.encoder)
    engine = Engine(model, "c", cache=UserCache(1 << 30, storage="float32"))
    samples = list(range(len(view("request"))))[:12]
    for some in (samples[:5], samples[3:]):
        batch = batch_of("request", some)
        with torch.inference_mode():
            assert_same(engine.logits(batch), model(batch))
    days = batch_of("user_day", list(range(8)))
    day, requests = days.user.repeat_interleave(days.candidates.lengths), view("request")
    with torch.inference_mode():
        whole = model(days)
        for sample in samples:
            one = batch_of("request", [sample])
            mine = (day == one.user[0]) & (days.request == one.request[0])
            assert_same(model(one), {task: logit[mine] for task, logit in whole.items()})
    assert len(requests) > len(days)


def test_listwise_needs_whole_requests() -> None:
    plan = [make_plan(SCHEMA.replace(candidates=SCHEMA.candidates.replace(**change))) for change in (
        {"request": None}, {"negative_keep_rate": 0.5},
    )]  # fmt: skip
    for own, message in zip(plan, ("give Candidates.request=", "set negative_keep_rate to 1"), strict=True):
        embeddings = Embeddings(own, backend="torch", boundaries=BOUNDARIES)
        with pytest.raises(UserError, match=f"listwise=true: .*{message}"):
            choose_model("mtgr-tiny", {"listwise": "true"}).build(embeddings)


# ---------------------------------------------------------------------- bounded memory


def entry_of(size: int) -> Entry:
    none = UserRows({}, np.zeros((0, 0), np.uint8))
    return Entry(none, Layers([], [], torch.zeros(size // 8, dtype=torch.int64)), Layers([], [], torch.zeros(0)))


@given(
    operations=st.lists(st.tuples(st.integers(0, 9), st.sampled_from([8, 80, 160, 400]), st.booleans()), max_size=60),
    limits=st.sampled_from([(400, 0), (400, 400), (100, 800), (0, 400)]),
)
def test_memory_is_bounded_and_the_least_recently_used_goes_first(operations, limits) -> None:
    cache = UserCache(*limits)
    recent: list[int] = []
    cpu = torch.device("cpu")
    for user, size, is_get in operations:
        key = Key("c", user, 0)
        if is_get:
            found = cache.get(key, cpu)
            assert found is None or user in recent
        else:
            cache.put(key, entry_of(size))
            found = cache.get(key, cpu)
            if size <= max(limits):
                assert found is not None and found.bytes == size
        if found is not None:
            recent = [u for u in recent if u != user] + [user]
        assert cache.bytes[0] <= limits[0] and cache.bytes[1] <= limits[1]
        kept = [u for u in recent if any(Key("c", u, 0) in tier for tier in cache._tiers)]
        assert cache.bytes == tuple(sum(e.bytes for e in tier.values()) for tier in cache._tiers)
        recent = kept
    device = [key.user for key in cache._tiers[0]]
    assert device == [u for u in recent if u in device], "in the order of their use"

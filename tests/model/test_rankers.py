"""Every model on real batches: what a candidate may see, and the baselines against loops."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from genrank.model.baselines.context import segment_sum
from genrank.model.baselines.counts import Counts
from genrank.model.baselines.popularity import read_exposures
from genrank.model.baselines.sasrec import Sasrec
from genrank.model.config import samples_folder
from genrank.model.registry import MODELS, choose_model
from genrank.schemas import UserError
from genrank.tokenization.arrangement import arrange
from genrank.tokenization.batch import Batch, Ragged
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.plan import make_plan
from genrank.tokenization.quantiles import fit_moments
from genrank.tokenization.reader import SampleReader

SMALL = ["mtgr-tiny", "hstu-tiny", "dlrm", "din", "dcn", "sasrec"]
DAY = "2026-01-01"


@pytest.fixture(scope="module")
def batch(schema, samples) -> Batch:
    reader = SampleReader(samples_folder(samples), schema, [DAY], token_budget=1500, shuffle=False, prefetch=0)
    return next(iter(reader))


def make(name: str, schema, seed: int = 0):
    from random_samples import BOUNDARIES

    torch.manual_seed(seed)
    embeddings = Embeddings(make_plan(schema), backend="torch", boundaries=BOUNDARIES)
    for table in embeddings.tables.tables.values():
        table.weight.mul_(30)  # at 0.02 no feature would move a logit visibly
    return choose_model(name).build(embeddings, ["click", "watch"]).eval()


def changed(batch: Batch, group: str, rows: torch.Tensor) -> Batch:
    """The batch with other values of every feature in some rows of a group."""
    batch = copy.deepcopy(batch)
    leaves = batch.groups[group].features
    for name, leaf in leaves.items():
        if isinstance(leaf, Ragged):
            continue
        leaf[rows] = (leaf[rows] + 1) % 2 if name == "type" else leaf[rows] + 1
    return batch


@pytest.mark.parametrize("name", SMALL)
def test_a_candidate_sees_its_past_and_neither_future_nor_rivals(name: str, schema, batch: Batch) -> None:
    model = make(name, schema)
    before = model(batch)["click"]
    assert before.shape == batch.item.shape
    owner = torch.repeat_interleave(batch.candidates.lengths)
    events = batch.groups["realtime"]
    place = torch.arange(len(events.ts)) - torch.repeat_interleave(events.offsets[:-1], events.lengths)
    sample = torch.repeat_interleave(events.lengths)
    chosen = [int(i) for i in torch.unique(torch.stack([(owner == b).nonzero()[0, 0] for b in owner.unique()]))]
    threshold = torch.zeros(len(batch), dtype=torch.int64)
    threshold[owner[chosen]] = batch.candidate_sees[chosen].long()
    future = place >= threshold[sample]
    assert future.any() and not future.all()
    # Realtime features but a sequence's own time gaps are free; gaps look backward only.
    after = model(changed(batch, "realtime", future))["click"]
    torch.testing.assert_close(after[chosen], before[chosen], rtol=1e-4, atol=1e-5)
    assert (after - before).abs().max() > 1e-4, "no candidate saw any change: the test shows nothing"
    rivals = torch.ones(len(owner), dtype=torch.bool)
    rivals[chosen] = False
    after = model(changed(batch, "candidates", rivals))["click"]
    torch.testing.assert_close(after[chosen], before[chosen], rtol=1e-4, atol=1e-5)
    assert (after[rivals] - before[rivals]).abs().max() > 1e-4
    for group in ("user", "history"):
        rows = torch.ones(len(batch.groups[group].ts), dtype=torch.bool)
        assert (model(changed(batch, group, rows))["click"] - before).abs().max() > 1e-4, f"{group} is ignored"


@pytest.mark.parametrize("name", SMALL)
def test_a_score_does_not_depend_on_its_batch(name: str, schema, samples, batch: Batch) -> None:
    model = make(name, schema)
    together = model(batch)["watch"]
    alone = SampleReader(samples_folder(samples), schema, [DAY], token_budget=1, shuffle=False, prefetch=0)
    parts = []
    for single in alone:
        parts.append(model(single)["watch"])
        if sum(map(len, parts)) >= len(together):
            break
    torch.testing.assert_close(torch.cat(parts), together, rtol=1e-3, atol=1e-4)


def test_dlrm_interacts_as_a_loop_over_features_would(schema, batch: Batch, monkeypatch) -> None:
    import genrank.model.baselines.dlrm

    monkeypatch.setattr(genrank.model.baselines.dlrm, "INTERACTIONS", 7 * 40**2)  # several pieces a batch
    dlrm = make("dlrm", schema)
    seen = dlrm.context.pooled(batch, dlrm.context(batch))
    vectors = []
    for group in dlrm.groups:
        fields = dlrm.fields[f"of_{group}"]
        torch.nn.init.normal_(fields.bias)
        weights = [each for stack in fields.weights for each in stack]
        columns = dlrm.embeddings.layout[group].values()
        for own, weight, bias in zip(columns, weights, fields.bias, strict=True):
            vectors.append(seen[group][:, own] @ weight + bias)
    dots = [(a * b).sum(1) for i, a in enumerate(vectors) for b in vectors[i + 1 :]]
    expected = dlrm.heads(dlrm.top(torch.cat([*vectors, torch.stack(dots, 1)], 1)))
    for task, logit in dlrm(batch).items():
        torch.testing.assert_close(logit, expected[task], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["mtgr-tiny", "hstu-tiny"])
@pytest.mark.parametrize(
    ("settings", "first", "second"),
    [
        ({"visibility": "dynamic"}, "known", "known"),
        ({"visibility": "targets"}, "known", "position"),
        ({"visibility": "causal"}, "position", "position"),
    ],
)
def test_who_sees_whom_is_a_field(name: str, settings: dict, first: str, second: str, schema, batch: Batch) -> None:
    """User tokens see up to `first`, history tokens up to `second`; candidates always what came before their exposure."""
    from random_samples import BOUNDARIES

    embeddings = Embeddings(make_plan(schema), backend="torch", boundaries=BOUNDARIES)
    tokens = choose_model(name, settings).build(embeddings, ["click"]).tokenizer(batch)
    layout = arrange(schema, batch).layout
    for group, sees in ((0, getattr(layout, first)), (1, getattr(layout, second)), (3, layout.known + layout.sees)):
        rows = tokens.group_ids == group
        assert rows.any() and torch.equal(tokens.end[rows].long(), sees[rows]) and not tokens.begin[rows].any()


def test_a_window_is_a_field_of_hstu(schema, batch: Batch) -> None:
    from random_samples import BOUNDARIES

    embeddings = Embeddings(make_plan(schema), backend="torch", boundaries=BOUNDARIES)
    settings = {"visibility": "causal", "window": "3"}
    tokens = choose_model("hstu-tiny", settings).build(embeddings, ["click"]).tokenizer(batch)
    assert int((tokens.end - tokens.begin).max()) == 3
    with pytest.raises(UserError, match="the dynamic mask has no window"):
        choose_model("hstu-tiny", {**settings, "visibility": "dynamic"}).build(embeddings, ["click"])
    with pytest.raises(UserError, match="window: no such field"):
        choose_model("mtgr-tiny", {"window": "3"})


def test_din_attends_as_a_loop_over_pairs_would(schema, batch: Batch) -> None:
    model = make("din", schema)
    unit, context = model.unit, model.context
    x = context(batch)
    candidate = model.candidate(x["candidates"])
    owner = context.owner(batch)
    events = torch.cat([model.events[n](x[n]) for n in context.sequences])
    offsets, of, rows = context.pairs(batch, owner)
    got = segment_sum(unit(candidate, events, of, rows), offsets)
    history, realtime = batch.groups["history"], batch.groups["realtime"]
    own = {"history": model.events["history"](x["history"]), "realtime": model.events["realtime"](x["realtime"])}
    for c in range(0, len(owner), 3):
        b = int(owner[c])
        seen = list(own["history"][history.offsets[b] : history.offsets[b + 1]])
        first = int(realtime.offsets[b])
        seen += list(own["realtime"][first : first + int(batch.candidate_sees[c])])
        total = torch.zeros_like(candidate[c])
        for e in seen:
            hidden = unit.of_event(e) + unit.of_candidate(candidate[c]) + unit.of_product(e * candidate[c])
            total = total + unit.weight(unit.activation(hidden)) * e
        torch.testing.assert_close(got[c], total, rtol=1e-4, atol=1e-5)


def test_sasrec_without_events_still_scores(schema, batch: Batch) -> None:
    model = make("sasrec", schema)
    assert isinstance(model, Sasrec)
    lonely = dataclasses.replace(
        batch, groups=dict(batch.groups), candidate_sees=torch.zeros_like(batch.candidate_sees)
    )
    for name in ("history", "realtime"):
        group = batch.groups[name]
        none = torch.zeros(0, dtype=torch.int64)
        lonely.groups[name] = group.take(none, torch.zeros_like(group.offsets))
    assert torch.isfinite(model(lonely)["click"]).all()


def test_counts_equal_a_loop(schema, samples) -> None:
    g = np.random.default_rng(0)
    user, item = g.integers(0, 5, 400), g.integers(100, 110, 400)
    label, weight = g.integers(0, 2, 400).astype(float), g.choice([0.0, 1.0, 2.0], 400)
    counts = Counts(user, item, label, weight, strength=3.0)
    base = (label * weight).sum() / weight.sum()
    for i, u in ((103, 2), (109, 4), (5000, 1), (103, 77)):
        mine = item == i
        rate = ((label * weight)[mine].sum() + 3 * base) / (weight[mine].sum() + 3)
        both = mine & (user == u)
        pair = ((label * weight)[both].sum() + 3 * rate) / (weight[both].sum() + 3)
        assert counts.popularity(np.array([i]))[0] == pytest.approx(rate)
        assert counts.user_item(np.array([u]), np.array([i]))[0] == pytest.approx(pair)
    day = read_exposures(samples_folder(samples), schema, [DAY])
    assert set(day.labels) == {"click"}
    assert 0 < Counts(day.user, day.item, day.labels["click"], day.weights["click"]).base < 1
    empty = Counts(user[:0], item[:0], label[:0], weight[:0])
    assert empty.popularity(np.array([1]))[0] == 0 and empty.user_item(np.array([1]), np.array([1]))[0] == 0


def test_settings_change_a_preset_and_mistakes_are_named() -> None:
    chosen = choose_model("mtgr-tiny", {"divisor": "length", "dropout": "0", "head.hidden": "[8]", "alpha": "null"})
    config, head = chosen.config, chosen.head
    assert (config.divisor, config.dropout, config.alpha, head.hidden) == ("length", 0.0, None, (8,))
    assert choose_model("mtgr-tiny", {"divisor": "512"}).config.divisor == 512
    for name, settings, message in (
        ("mtgr", {}, "did you mean mtgr-"),
        ("din", {"dims": "3"}, "did you mean dim"),
        ("mtgr-tiny", {"layers": "many"}, "--set layers=many"),
        ("mtgr-tiny", {"head.kind": "tree"}, "--set head.kind=tree"),
    ):
        with pytest.raises(UserError, match=message):
            choose_model(name, settings)
    assert set(SMALL) <= set(MODELS)


def test_mmoe_heads_train(schema, batch: Batch) -> None:
    from random_samples import BOUNDARIES

    embeddings = Embeddings(make_plan(schema), backend="torch", boundaries=BOUNDARIES)
    model = choose_model("mtgr-tiny", {"head.kind": "mmoe"}).build(embeddings, ["click", "watch"])
    sum(v.sum() for v in model(batch).values()).backward()
    assert all(p.grad is not None for p in model.heads.parameters())


def test_din_with_features_at_one_scale_reads_them_so(schema, samples, batch: Batch) -> None:
    torch.manual_seed(0)
    from random_samples import BOUNDARIES

    embeddings = Embeddings(make_plan(schema), backend="torch", boundaries=BOUNDARIES)
    model = choose_model("din", {"feature_norm": "true"}).build(embeddings, ["click"]).eval()
    model.prepare(samples_folder(samples), [DAY])
    moments = fit_moments(samples_folder(samples), schema, [DAY])
    raw, scaled = embeddings(batch), model.context(batch)
    for group, layout in embeddings.layout.items():
        for name, columns in layout.items():
            own, was = scaled[group][:, columns].double(), raw[group][:, columns].double()
            if f"{group}.{name}" in moments:
                mean, deviation = moments[f"{group}.{name}"]
                wanted = torch.stack([(was[:, 0] - mean) / deviation * (1 - was[:, 1]), was[:, 1]], 1)
            else:
                wanted = was / (was.square().mean(1, keepdim=True) + 1e-8).sqrt()
            torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["din", "dlrm", "dcn", "sasrec"])
def test_a_baselines_operations_are_those_that_pytorch_counts(name: str, schema, batch: Batch) -> None:
    model = make(name, schema).train()
    with FlopCounterMode(display=False) as counter:
        model(batch)
    with FlopCounterMode(display=False) as tables:  # AutoDis: what every model reads
        model.embeddings(batch)
    assert model.counts_flops
    assert model.take_flops() == 3 * (counter.get_total_flops() - tables.get_total_flops()) > 0
    assert model.take_flops() == 0

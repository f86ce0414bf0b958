"""Retrieval from sequences: what is learned and how it is judged, each against what a loop over samples gives."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from genrank.model.catalogue import catalogue
from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.documents import ModelIdentity
from genrank.model.encoders.self_attention import SelfAttention, SelfAttentionConfig
from genrank.model.evaluate import evaluate, load_model
from genrank.model.registry import choose_model, recorded_model
from genrank.model.report import write_report
from genrank.model.retriever import Retriever
from genrank.model.tasks.retrieval import find, found_ranks
from genrank.model.trainer import train
from genrank.tokenization import visibility
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.plan import make_plan
from genrank.tokenization.reader import SampleReader
from genrank.tokenization.tokens import Tokenizer
from genrank.tokenization.wants import Wants

from .retrieval_cases import DAYS, ITEMS, shop, write_walk
from .sequence_cases import batch_of, draw_sample
from .test_sequence_encoders import layer_norm, transformer

SMALL = {"dim": "16", "layers": "1", "heads": "1", "dropout": "0", "input_dropout": "0", "cutoffs": "[1, 5]"}
SEQUENCES = {**SMALL, "learn_responses": "true", "catalogue": "events", "exclude_seen": "true"}


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 users a day."""
    return write_walk(tmp_path_factory.mktemp("few"), users=(30, 30))


def retriever(name: str = "sasrec-retrieval", seed: int = 0, **settings: str) -> Retriever:
    torch.manual_seed(seed)
    embeddings = Embeddings(make_plan(shop()), backend="torch")
    for table in embeddings.tables.tables.values():
        table.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return Retriever(embeddings, choose_model(name, settings).config).eval()


def batch(samples: Path, day: str) -> Batch:
    return next(iter(SampleReader(samples / "samples", shop(), [day], shuffle=False, prefetch=0, token_budget=10**6)))


def rows(samples: Path, day: str) -> list[dict]:
    return [
        r for f in (samples / "samples" / f"dt={day}").rglob("*.parquet") for r in pq.ParquetFile(f).read().to_pylist()
    ]


def brute_ranks(scores: list[list[float]], targets: list[int], hidden: list[set[int]]) -> list[int]:
    """From 1; ties stand before; what is hidden is never found."""
    ranks = []
    for own, target, seen in zip(scores, targets, hidden, strict=True):
        better = [n for n, score in enumerate(own) if n not in seen and score >= own[target]]
        ranks.append(len(own) if target in seen else len(better))
    return ranks


@pytest.mark.parametrize("exclude", [False, True])
def test_ranks_are_those_of_a_loop_over_all_unseen_items(walk: Path, exclude: bool) -> None:
    model = retriever(**{**SEQUENCES, "exclude_seen": str(exclude).lower()})
    items = catalogue(walk / "samples", shop(), DAYS, model.events)
    got = list(found_ranks(model, shop(), walk / "samples", DAYS[1:], items, 40))
    known = items.tolist()
    vectors = torch.nn.functional.normalize(model.item_vectors(items), dim=-1)
    states, _ = model.states(batch(walk, DAYS[1]))
    stored = rows(walk, DAYS[1])
    ends = torch.tensor([len(row["history"]["item_id"]) for row in stored]).cumsum(0) - 1
    queries = torch.nn.functional.normalize(states[ends], dim=-1)
    targets = [known.index(row["candidates"]["item"][1]) for row in stored]
    seen = [{known.index(i) for i in row["history"]["item_id"]} if exclude else set() for row in stored]
    expected = brute_ranks((queries @ vectors.T).tolist(), targets, seen)
    assert torch.cat([each.ranks for each in got]).tolist() == expected
    assert torch.cat([each.own for each in got]).tolist() == targets
    # Popularity: responses and events of the training day.
    counts = Counter(
        i for row in rows(walk, DAYS[0]) for i in [*row["history"]["item_id"], row["candidates"]["item"][1]]
    )
    popular = brute_ranks([[counts[i] for i in known]] * len(stored), targets, seen)
    found = find(model, shop(), walk / "samples", DAYS[1:], trained=DAYS[:1])
    assert found.rows["popularity"]["mrr"].value == pytest.approx(sum(1 / r for r in popular) / len(popular))
    assert found.rows["model"]["hr@5"].value == pytest.approx(sum(r <= 5 for r in expected) / len(expected))
    assert found.rows["model"]["ndcg@5"].value == pytest.approx(
        sum(1 / math.log2(r + 1) for r in expected if r <= 5) / len(expected)
    )


def test_an_item_of_the_own_history_is_never_found(tmp_path: Path) -> None:
    """A walk of 3 in a catalogue of 6 comes back after two steps."""
    model = retriever(**SEQUENCES)
    items = catalogue(write_walk(tmp_path, users=(4, 4)) / "samples", shop(), DAYS, model.events)
    stored = batch(tmp_path, DAYS[1])
    history = stored.groups["history"]
    stored.groups["history"].features["item_id"][history.offsets[1:] - 2] = stored.item[1::2]
    reader = type("Reader", (), {"__init__": lambda self, *_, **__: None, "__iter__": lambda self: iter([stored])})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genrank.model.tasks.retrieval.SampleReader", reader)
        (found,) = found_ranks(model, shop(), tmp_path / "samples", DAYS[1:], items, 100)
        assert found.ranks.tolist() == [len(items)] * 4
        got = find(model, shop(), tmp_path / "samples", DAYS[1:], trained=DAYS[:1])
    assert got.rows["popularity"]["hr@5"].value == 0 and got.rows["popularity"]["mrr"].value == pytest.approx(
        1 / len(items)
    )


def test_the_catalogue_of_sequences_is_all_that_was_met(walk: Path) -> None:
    met = {
        i for day in DAYS for row in rows(walk, day) for i in [*row["history"]["item_id"], *row["candidates"]["item"]]
    }
    assert catalogue(walk / "samples", shop(), DAYS, ("history", "item_id")).tolist() == sorted(met)
    assert len(catalogue(walk / "samples", shop(), DAYS)) < len(met)


@pytest.mark.parametrize("name", ["sasrec-retrieval", "hstu-retrieval-tiny"])
@pytest.mark.parametrize("tied", ["true", "false"])
def test_the_loss_is_over_every_next_item_and_the_response(walk: Path, name: str, tied: str, monkeypatch) -> None:
    """With every item a negative it is the cross entropy over the catalogue."""
    model = retriever(name, **{**SEQUENCES, "tied": tied, "sampling": "uniform", "log_q": "false"})
    everything = torch.arange(ITEMS)
    monkeypatch.setattr(model, "_from_catalogue", lambda queries: (everything, None))
    stored = batch(walk, DAYS[0])
    states, _ = model.states(stored)
    vectors = torch.nn.functional.normalize(model.item_vectors(everything), dim=-1)
    expected, count, at = 0.0, 0, 0
    for row in rows(walk, DAYS[0]):
        path = [*row["history"]["item_id"], row["candidates"]["item"][1]]
        for target in path[1:]:
            logits = torch.nn.functional.normalize(states[at], dim=-1) @ vectors.T / 0.05
            expected += (torch.logsumexp(logits, 0) - logits[target]).item()
            count, at = count + 1, at + 1
    assert at == len(states) and model.query_count(stored).tolist() == [count]
    assert model(stored)["next_item"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("sampling", ["uniform", "in_batch"])
def test_every_query_has_negatives_of_its_own_drawn_evenly(walk: Path, sampling: str, monkeypatch) -> None:
    model = retriever(**{**SEQUENCES, "sampling": sampling, "per_query": "true", "negatives": "50"})
    model.prepare(walk / "samples", DAYS[:1])
    given: dict[str, Tensor] = {}

    def noted(queries: Tensor, *_: Tensor, **named: Tensor) -> Tensor:
        given.update(named)
        return queries.sum()

    monkeypatch.setattr("genrank.model.retriever.sampled_softmax", noted)
    stored = batch(walk, DAYS[0])
    torch.manual_seed(0)
    model(stored)
    queries = int(model.query_count(stored))
    assert given["chosen"].shape == (queries, 50) and len(given["positive_ids"]) == queries
    drawn = given["negative_ids"][given["chosen"]]
    assert len({tuple(row) for row in drawn.tolist()}) == queries
    if sampling == "uniform":
        counts = torch.bincount(torch.searchsorted(model.items, drawn.flatten()), minlength=len(model.items))
        mean = drawn.numel() / len(model.items)
        assert (counts - mean).abs().max() < 5 * math.sqrt(mean)
        log_q = given["negative_log_q"]
        assert log_q.unique().tolist() == pytest.approx([math.log(50 / len(model.items))])
        # A catalogue too large to look up whole: the same draws of those met alone.
        model.items = torch.arange(10**6, 2 * 10**6)
        ids, chosen = model._from_catalogue(7)
        assert chosen is not None and chosen.shape == (7, 50)
        assert 300 < len(ids) <= 350 and sorted(set(chosen.flatten().tolist())) == list(range(len(ids)))
        assert 1.2e6 < ids[chosen].double().mean() < 1.8e6
    else:
        met = Counter(
            i for row in rows(walk, DAYS[0]) for i in [*row["history"]["item_id"], row["candidates"]["item"][1]]
        )
        share = torch.tensor([met[i] for i in range(ITEMS)]) / sum(met.values())
        got = torch.bincount(drawn.flatten(), minlength=ITEMS) / drawn.numel()
        assert (got - share).abs().max() < 0.01


def test_a_tied_item_is_what_its_id_adds_to_a_token(walk: Path) -> None:
    model = retriever("hstu-retrieval-tiny", **{**SEQUENCES, "tied": "true"})
    names = [name for name, _ in model.named_parameters()]
    assert not any(name.startswith(("item.", "query.")) for name in names)
    stored = batch(walk, DAYS[0])
    before, ids = model.tokenizer(stored).x, stored.groups["history"].features["item_id"]
    first = int(ids[0])
    ids[0] = (first + 7) % ITEMS
    change = model.tokenizer(stored).x - before
    vectors = model.item_vectors(torch.tensor([(first + 7) % ITEMS, first]))
    moved = change.abs().sum(1).nonzero().squeeze(1)
    assert len(moved) == 1
    torch.testing.assert_close(change[moved[0]], vectors[0] - vectors[1], rtol=1e-4, atol=1e-5)
    assert model.states(stored)[0].shape == (len(ids), 16)


def test_from_the_oldest_a_later_event_changes_no_token(walk: Path) -> None:
    """What an append-only cache of a user's tokens needs."""
    embeddings = Embeddings(make_plan(shop()), backend="torch")

    def prefix_stays(**fields: object) -> bool:
        torch.manual_seed(0)
        tokenizer = Tokenizer(embeddings, 16, Wants(visibility.causal, **fields))
        stored = batch(walk, DAYS[0])
        whole = tokenizer(stored)
        history = stored.groups["history"]
        kept = torch.cat(
            [torch.arange(a, b - 1) for a, b in zip(history.offsets[:-1], history.offsets[1:], strict=True)]
        )
        shorter = history.take(kept, torch.nn.functional.pad((history.lengths - 1).cumsum(0), (1, 0)))
        # The window moves on, too.
        cut = dataclasses.replace(
            stored, groups={**stored.groups, "history": shorter}, window_start=stored.window_start - 86_400_000
        )
        before = tokenizer(cut)
        histories = [t.x[t.group_ids == visibility.HISTORY] for t in (whole, before)]
        return torch.equal(histories[0][kept], histories[1])

    assert prefix_stays(positions="oldest", ages=False)
    assert not prefix_stays(positions="newest", ages=False)
    assert not prefix_stays(positions="oldest", ages=True)


def test_a_long_history_s_last_position_is_trained_with_its_response(walk: Path) -> None:
    """It is where evaluation asks; counted from the newest, without responses, it never has a next event."""

    def trained(**settings: str) -> bool:
        model = retriever("hstu-retrieval-tiny", **{**SEQUENCES, "qk_dim": "8", "v_dim": "8", **settings}).train()
        stored = batch(walk, DAYS[0])
        model(stored)["next_item"].backward()
        weight = model.tokenizer.positions["of_history"].weight
        longest = int(stored.groups["history"].lengths.max())
        newest = settings["positions"] == "newest"
        return bool(weight.grad[0 if newest else longest - 1].abs().sum() > 0)

    assert not trained(positions="newest", learn_responses="false")
    assert not trained(positions="oldest", learn_responses="false")
    assert trained(positions="oldest", learn_responses="true")


def test_self_attention_is_the_equations() -> None:
    torch.manual_seed(0)
    config = SelfAttentionConfig(dim=8, layers=2, heads=2, ffn=1)
    encoder = SelfAttention(config).double().eval()
    samples = [draw_sample(seed, 8) for seed in range(4)]
    tokens = batch_of(samples)
    got = encoder(tokens, torch.arange(len(tokens.x)))
    at = 0
    for sample in samples:
        n = len(sample.group)
        visible = torch.tensor([[j < end or j == i for j in range(n)] for i, end in enumerate(sample.end)])
        x = sample.x
        for layer in encoder.layers:
            x = transformer(layer, x, torch.arange(n), visible, config.heads, layer_norm)
        torch.testing.assert_close(got[at : at + n], layer_norm(x, encoder.norm))
        at += n
    encoder.recompute = True
    torch.testing.assert_close(encoder.train(False)(tokens, torch.arange(3)), got[:3])


def test_sasrec_learns_a_planted_rule_from_sequences(tmp_path: Path) -> None:
    samples = write_walk(tmp_path, users=(100, 40))
    config = TrainConfig(
        schema=shop(), samples=samples, dates=DAYS[:1], out=tmp_path / "run", model="sasrec-retrieval", epochs=12, token_budget=500,
        settings={**SEQUENCES, "dim": "32", "tied": "true", "per_query": "true", "sampling": "uniform", "negatives": "16", "log_q": "false"},
        lr=5e-3, sparse_lr=0.1, warmup_steps=0, decay="none", spike_factor=0, device="cpu",
    )  # fmt: skip
    train(config)
    result = evaluate(EvaluateConfig(run=config.out, samples=samples, dates=DAYS[1:], device="cpu", bootstrap=0))
    assert result.tasks["next_item"]["model"]["hr@1"].value > 0.8, result.tasks
    written = pq.read_table(config.out / "predictions" / f"dt={DAYS[1]}.parquet", partitioning=None).to_pylist()
    assert {row["user_id"]: row["item"] for row in written} == {
        row["user_id"]: row["candidates"]["item"][1] for row in rows(samples, DAYS[1])
    }
    assert sum(row["rank"] == 1 for row in written) / len(written) == result.tasks["next_item"]["model"]["hr@1"].value
    shutil.copytree(config.out, tmp_path / "again")
    own = json.loads((tmp_path / "again" / "config.json").read_text())
    (tmp_path / "again" / "config.json").write_text(json.dumps({**own, "lr": 0.1}))
    write_report([config.out, tmp_path / "again"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "queries are drawn for both models at once" in page and "+0.0000" in page
    loaded = load_model(config.out).model
    assert isinstance(loaded, Retriever) and loaded.config.tied


def test_a_checkpoint_of_before_has_no_new_choice() -> None:
    old = recorded_model(
        ModelIdentity(name="hstu-retrieval-tiny", settings={}, fields={"dim": "64", "negatives": "512"})
    )
    config = old.config
    assert (config.tied, config.per_query, config.learn_responses, config.exclude_seen) == (False,) * 4
    assert (config.catalogue, config.positions, config.ages, config.input_dropout) == (
        "candidates",
        "newest",
        True,
        0.0,
    )

"""The loss at every event of a history: against a reference that hides by cutting off, on samples as `genrank build` lays them out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from genrank.model.config import TrainConfig, samples_folder
from genrank.model.encoders import Hstu
from genrank.model.interface import ADDED_LOSS
from genrank.model.losses import loss_sums
from genrank.model.ranker import Ranker
from genrank.model.registry import choose_model
from genrank.model.trainer import train
from genrank.schemas.derive.tables import TYPE
from genrank.schemas.errors import UserError
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.event_actions import known_before, type_ranges
from genrank.tokenization.jagged_tokens import Tokens
from genrank.tokenization.plan import make_plan
from genrank.tokenization.reader import SampleReader

SETTINGS = {"history_loss": "0.5", "visibility": "causal", "dropout": "0", "dim": "16", "qk_dim": "8", "v_dim": "8"}


@pytest.fixture(scope="module")
def batch(schema, samples: Path) -> Batch:
    folder = samples_folder(samples)
    return next(iter(SampleReader(folder, schema, ["2026-01-01"], token_budget=500, shuffle=False, prefetch=0)))


def ranker(schema, **settings: str) -> Ranker:
    from random_samples import BOUNDARIES

    torch.manual_seed(0)
    embeddings = Embeddings(make_plan(schema), backend="torch", boundaries=BOUNDARIES)
    model = choose_model("hstu-tiny", {**SETTINGS, **settings}).build(embeddings, ["click", "watch"])
    assert isinstance(model, Ranker)
    return model.train()


def upto(tokens: Tokens, row: int) -> Tokens:
    """The sample that a row is of, as it was before anything behind the row was there."""
    sample = int(torch.searchsorted(tokens.offsets, row, right=True)) - 1
    rows = slice(int(tokens.offsets[sample]), row + 1)
    count = rows.stop - rows.start
    return dataclasses.replace(
        tokens, x=tokens.x[rows], offsets=torch.tensor([0, count], dtype=torch.int32), group_ids=tokens.group_ids[rows],
        begin=tokens.begin[rows], end=tokens.end[rows], timestamps=tokens.timestamps[rows], max_length=count,
        lengths=torch.tensor([count]), event_types=None, candidate_rows=torch.tensor([count - 1]),
    )  # fmt: skip


def test_every_event_is_predicted_from_what_came_before_its_action(schema, batch: Batch) -> None:
    """Loss and gradients, of parameters and of tokens, equal those of an encoder that gets each event's sample cut off behind its first
    token: nothing of the action nor of anything later can reach the prediction."""
    model = ranker(schema)
    tokens = model.tokenizer(batch)
    assert tokens.event_types is not None
    every, some = tokens.event_types, torch.arange(len(tokens.x)) % 5 == 0
    tokens = dataclasses.replace(tokens, event_types=torch.where(some, every, -1))
    encoder = model.encoder.double()
    assert isinstance(encoder, Hstu)
    assert model.event_heads is not None and tokens.event_types is not None
    heads = model.event_heads.double()
    x = tokens.x.detach().double().requires_grad_()
    tokens = dataclasses.replace(tokens, x=x)
    leaves = [x, *heads.parameters(), *(p for p in encoder.parameters() if p.requires_grad)]
    got = heads(encoder(tokens, torch.arange(len(x))), tokens.event_types)
    ranges = {name: types for name, types in type_ranges(schema).items() if len(types) > 1}
    wanted, events = x.new_zeros(()), 0
    for row, kind in enumerate(torch.where(some, every, -1).tolist()):
        for name, types in ranges.items():
            if kind in types:
                logits = heads.heads[f"of_{name}"](encoder(upto(tokens, row)))[0]
                wanted = wanted - (logits[kind - types.start] - logits.exp().sum().log())
                events += 1
    assert events > 20
    torch.testing.assert_close(got, wanted)
    for a, b in zip(
        torch.autograd.grad(got, leaves, allow_unused=True, materialize_grads=True),
        torch.autograd.grad(wanted, leaves, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)  # 1/n is a float32


def test_tokens_of_an_event(schema, batch: Batch) -> None:
    """By perturbation: the first token reads what is known before, the second the type and all else; a candidate sees both."""
    model = ranker(schema)
    assert known_before(schema, "history") == {"item_id", "price", "gap", "hour"}
    layout, projection = model.embeddings.layout["history"], model.tokenizer.projections["of_history"]
    matrix = model.embeddings(batch)["history"].detach()
    whole = projection(matrix).unflatten(0, (-1, 2))
    for name, columns in layout.items():
        moved = matrix.clone()
        moved[:, columns] += 1
        changed = (projection(moved).unflatten(0, (-1, 2)) != whole).any(2).any(0).tolist()
        known = name in known_before(schema, "history")
        assert changed == [known, not known], name
    assert TYPE in layout and "watched" in layout
    tokens = model.tokenizer(batch)
    assert tokens.event_types is not None
    of_events = (tokens.group_ids == 1) | (tokens.group_ids == 2)
    rows = of_events.nonzero().squeeze(1)
    assert (tokens.event_types[rows[::2]] >= 0).all() and (tokens.event_types[rows[1::2]] == -1).all()
    assert (tokens.event_types[~of_events] == -1).all()
    first = batch.groups["history"].features[TYPE]
    assert tokens.event_types[tokens.group_ids == 1][::2].tolist() == first.tolist()
    interleaved = schema.replace(sequences=(schema.sequences[0].replace(interleave=("price",)), *schema.sequences[1:]))
    assert known_before(interleaved, "history") == {"item_id", "gap", "hour"}


def test_it_adds_its_gradient_and_no_value(schema, batch: Batch) -> None:
    model = ranker(schema)
    own = schema.replace(labels=tuple(label for label in schema.labels if label.name in ("click", "watch")))
    output = model(batch)
    sums = choose_model("hstu-tiny").task(own).loss_sums(output, batch)
    plain = loss_sums(output, batch.labels, batch.weights, own.labels)
    assert all(sums[name].item() == pytest.approx(plain[name].item(), rel=1e-6) for name in plain)
    weight = [*model.encoder.parameters(), *model.event_heads.parameters()]
    got = torch.autograd.grad(sums["click"], weight, retain_graph=True, allow_unused=True)
    both = plain["click"] + output[ADDED_LOSS] / own.labels[0].weight
    for a, b in zip(got, torch.autograd.grad(both, weight, allow_unused=True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert set(model.eval()(batch)) == {"click", "watch"}


def test_shortened_histories_keep_events_whole(schema, batch: Batch) -> None:
    model = ranker(schema, stochastic_length="1.2", max_history="60", keep="random")
    assert model.encoder.config.event_tokens == 2
    whole = model.tokenizer(batch)
    tokens = model.encoder.shorten(whole)
    assert len(tokens.x) < len(whole.x) and tokens.event_types is not None
    history = tokens.event_types[tokens.group_ids == 1]
    assert (history[::2] >= 0).all() and (history[1::2] == -1).all()
    assert model(batch)[ADDED_LOSS].isfinite()


def test_it_trains(schema, samples: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        schema=schema, samples=samples, dates=("2026-01-01",), out=tmp_path / "run", model="hstu-tiny", settings=SETTINGS,
        token_budget=300, max_steps=2, device="cpu",
    )  # fmt: skip
    assert train(config).steps == 2


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("hstu-tiny", {"history_loss": "1"}, "by way of the user tokens; set visibility=causal too"),
        (
            "mtgr-tiny",
            {"history_loss": "1"},
            "under visibility=dynamic an event's prediction would read its own action",
        ),
        ("ultra-hstu-tiny", {"history_loss": "1", "visibility": "causal"}, "truncated; give 0"),
        ("hstu-retrieval-tiny", {"history_loss": "1"}, "learns from every event as it is"),
    ],
)
def test_what_would_leak_or_be_of_no_use_is_refused(model: str, settings: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_model(model, settings)


def test_events_of_one_type_are_refused(schema) -> None:
    history = schema.sequences[0]
    with pytest.raises(UserError, match="history, realtime has events of one type"):
        ranker(schema.replace(sequences=(history.replace(events=history.events[:1]), *schema.sequences[1:])))

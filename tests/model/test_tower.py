"""A tower beside the encoder: by its equations in float64, and a candidate's token without numbers."""

from __future__ import annotations

import copy

import pytest
import torch

from genrank.model.config import samples_folder
from genrank.model.encoders.mtgr import PAPER
from genrank.model.interface import AUXILIARY
from genrank.model.losses import loss_sums
from genrank.model.ranker import Ranker
from genrank.model.registry import choose_model
from genrank.schemas import UserError
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.plan import make_plan
from genrank.tokenization.reader import SampleReader


@pytest.fixture(scope="module")
def batch(schema, samples) -> Batch:
    reader = SampleReader(samples_folder(samples), schema, ["2026-01-01"], token_budget=1500, shuffle=False, prefetch=0)
    return next(iter(reader))


def ranker(schema, settings: dict[str, str]) -> Ranker:
    from random_samples import BOUNDARIES

    torch.manual_seed(0)
    embeddings = Embeddings(make_plan(schema), backend="torch", boundaries=BOUNDARIES)
    model = choose_model("mtgr-tiny", settings).build(embeddings, ["click", "watch"]).eval()
    assert isinstance(model, Ranker)
    return model


def test_heads_read_the_encoder_and_the_tower(schema, batch: Batch) -> None:
    model = ranker(schema, {**PAPER, "tower": "[7, 5]"})
    logits = model(batch)
    features = model.tokenizer.features(batch)
    vectors = model.encoder(model.tokenizer(batch)).double()
    weights = {name: weight.double() for name, weight in model.state_dict().items() if weight.is_floating_point()}
    owner = [b for b, n in enumerate(batch.candidates.lengths.tolist()) for _ in range(n)]
    for row, sample in enumerate(owner):
        x = weights["tower.candidate.bias"] + weights["tower.user.bias"]
        for group, own, at in (("candidates", "candidate", row), ("user", "user", sample)):
            for name, columns in model.embeddings.layout[group].items():
                x = x + weights[f"tower.{own}.weights.of_{name}"] @ features[group][at, columns].double()
        x = x.clamp(min=0)
        x = (weights["tower.rest.0.weight"] @ x + weights["tower.rest.0.bias"]).clamp(min=0)
        joined = torch.cat([vectors[row], x])
        for task, own in logits.items():
            hidden = (weights[f"heads.towers.{task}.0.weight"] @ joined + weights[f"heads.towers.{task}.0.bias"]).clamp(
                min=0
            )
            wanted = weights[f"heads.towers.{task}.2.weight"] @ hidden + weights[f"heads.towers.{task}.2.bias"]
            torch.testing.assert_close(own[row].double(), wanted[0], rtol=1e-4, atol=1e-5)


def test_a_token_without_numbers_leaves_them_to_the_tower(schema, batch: Batch) -> None:
    model = ranker(schema, {**PAPER, "tower": "[8]", "candidate_numbers": "false"})
    before, logits = model.tokenizer(batch).x, model(batch)["click"]
    numbers = [f.name for f in schema.candidates.features if f.number_transform]
    other = copy.deepcopy(batch)
    for name in numbers:
        if name in other.candidates.features:
            other.candidates.features[name] += 3
    torch.testing.assert_close(model.tokenizer(other).x, before, rtol=0, atol=0)
    assert (model(other)["click"] - logits).abs().max() > 1e-4
    whole = ranker(schema, dict(PAPER))
    assert (whole.tokenizer(other).x - whole.tokenizer(batch).x).abs().max() > 1e-4


def test_numbers_that_nothing_would_read_are_refused() -> None:
    with pytest.raises(UserError, match=r"--set candidate_numbers=false: .*set tower=\[128,64\] too"):
        choose_model("mtgr-tiny", {"candidate_numbers": "false", "tower": "[]"})


def test_the_encoders_own_loss_adds_its_gradient_and_no_value(schema, batch: Batch) -> None:
    model = ranker(schema, {**PAPER, "tower": "[8]", "encoder_loss": "0.3", "dropout": "0"}).train()
    own = schema.replace(labels=tuple(label for label in schema.labels if label.name in ("click", "watch")))
    task = choose_model("mtgr-tiny").task(own)
    logits = model(batch)
    assert set(logits) == {"click", "watch", AUXILIARY + "click", AUXILIARY + "watch"}
    sums = task.loss_sums(logits, batch)
    plain = loss_sums(logits, batch.labels, batch.weights, own.labels)
    assert all(sums[name].item() == pytest.approx(plain[name].item(), rel=1e-6) for name in plain)
    parameters = [*model.encoder.parameters(), *model.encoder_heads.parameters(), *model.tower.parameters()]
    got = torch.autograd.grad(sum(sums.values()), parameters, retain_graph=True, allow_unused=True)
    second = model.encoder_heads(model.encoder(model.tokenizer(batch)))
    both = sum(plain.values()) + 0.3 * sum(loss_sums(second, batch.labels, batch.weights, own.labels).values())
    wanted = torch.autograd.grad(both, parameters, allow_unused=True)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert set(model.eval()(batch)) == {"click", "watch"}


def test_shallower_layers_losses_add_their_gradient_and_no_value(schema, batch: Batch) -> None:
    from random_samples import BOUNDARIES

    torch.manual_seed(0)
    chosen = choose_model(
        "tokenmixer-tiny", {"layers": "3", "residual_every": "1", "shallow_loss": "0.3", "dropout": "0"}
    )
    own = schema.replace(labels=tuple(label for label in schema.labels if label.name in ("click", "watch")))
    embeddings = Embeddings(make_plan(own), backend="torch", boundaries=BOUNDARIES)
    model = chosen.build(embeddings, ["click", "watch"]).train()
    logits = model(batch)
    assert {name for name in logits if name.startswith(AUXILIARY)} == {
        f"{AUXILIARY}{depth}/{name}" for depth in (0, 1) for name in ("click", "watch")
    }
    sums = chosen.task(own).loss_sums(logits, batch)
    plain = loss_sums(logits, batch.labels, batch.weights, own.labels)
    assert all(sums[name].item() == pytest.approx(plain[name].item(), rel=1e-6) for name in plain)
    parameters = [*model.encoder.parameters(), *model.shallow_heads.parameters()]
    got = torch.autograd.grad(sum(sums.values()), parameters, retain_graph=True, allow_unused=True)
    both = sum(plain.values())
    for heads, vector in zip(
        model.shallow_heads, model.encoder(model.tokenizer(batch)).split(model.encoder.config.dim, 1)[1:], strict=True
    ):
        both = both + 0.3 * sum(loss_sums(heads(vector), batch.labels, batch.weights, own.labels).values())
    for a, b in zip(got, torch.autograd.grad(both, parameters, allow_unused=True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert set(model.eval()(batch)) == {"click", "watch"}


def test_a_second_loss_without_a_tower_is_refused() -> None:
    with pytest.raises(UserError, match=r"--set encoder_loss=0.5: .*set tower=\[128,64\] too"):
        choose_model("hstu-tiny", {"encoder_loss": "0.5"})

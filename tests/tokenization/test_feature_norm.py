"""Features at one scale: against a float64 loop over features, on the moments a brute-force pass finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from random_samples import BOUNDARIES, demo_schema, write_random_samples

from genrank.schemas.transforms import Dense, Log1p
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.feature_norm import EPS, FeatureNorm
from genrank.tokenization.plan import make_plan
from genrank.tokenization.projections import Projection
from genrank.tokenization.quantiles import fit_moments
from genrank.tokenization.reader import SampleReader
from genrank.tokenization.tokens import Tokenizer
from genrank.tokenization.wants import Wants

DAY = "2026-01-01"
SCHEMA = demo_schema()
NUMBERS = {
    f"{group}.{feature.name}"
    for group, features in SCHEMA.groups()
    for feature in features
    if isinstance(feature.number_transform, Dense | Log1p)
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_samples(tmp_path_factory.mktemp("samples"), SCHEMA, [DAY])


@pytest.fixture(scope="module")
def batch(root: Path) -> Batch:
    return next(iter(SampleReader(root, SCHEMA, [DAY], token_budget=10**6, shuffle=False)))


@pytest.fixture
def embeddings() -> Embeddings:
    return Embeddings(make_plan(SCHEMA), backend="torch", boundaries=BOUNDARIES)


def test_moments_are_those_of_the_present_transformed_values(root: Path, batch: Batch, embeddings: Embeddings) -> None:
    fitted = fit_moments(root, SCHEMA, [DAY])
    assert fitted.keys() == NUMBERS
    with torch.no_grad():
        matrices = embeddings.eval()(batch)
    for name, (mean, deviation) in fitted.items():
        group, feature = name.split(".")
        columns = matrices[group][:, embeddings.layout[group][feature]].double().numpy()
        present = columns[columns[:, 1] == 0, 0]
        np.testing.assert_allclose(mean, present.mean(), rtol=1e-9)
        np.testing.assert_allclose(deviation, present.std(), rtol=1e-6)


def test_a_constant_number_keeps_its_scale(tmp_path: Path) -> None:
    """Its deviation is 1, not the rounding error of a float64 sum, which would blow any other value up."""
    schema = SCHEMA.replace(
        candidates=SCHEMA.candidates.replace(
            features=tuple(
                f.replace(transform=Dense(shift=0.3, scale=1e-9)) if f.name == "ctr" else f
                for f in SCHEMA.candidates.features
            )
        )
    )
    write_random_samples(tmp_path, schema, [DAY])
    assert fit_moments(tmp_path, schema, [DAY])["candidates.ctr"][1] == 1.0


def test_it_is_the_loop_over_features(root: Path, batch: Batch, embeddings: Embeddings) -> None:
    moments = fit_moments(root, SCHEMA, [DAY])
    with torch.no_grad():
        matrices = embeddings.eval()(batch)
    for group in embeddings.groups:
        norm = FeatureNorm(embeddings, group)
        norm.set_moments(moments)
        x = matrices[group].double()
        wanted = x.clone()
        for name, columns in embeddings.layout[group].items():
            part = x[:, columns]
            if f"{group}.{name}" in NUMBERS:
                mean, deviation = moments[f"{group}.{name}"]
                standard = (part[:, 0] - mean) / deviation
                wanted[:, columns.start] = torch.where(part[:, 1] == 1, torch.zeros_like(standard), standard)
            else:
                wanted[:, columns] = part / (part.square().mean(1, keepdim=True) + EPS).sqrt()
        torch.testing.assert_close(norm.double()(x), wanted, rtol=1e-5, atol=1e-6)


def test_gradients_pass_and_zero_vectors_stay_finite(batch: Batch, embeddings: Embeddings) -> None:
    norm = FeatureNorm(embeddings, "candidates").double()
    x = torch.randn(5, embeddings.width("candidates"), dtype=torch.float64)
    x[2] = 0
    assert norm(x)[2].abs().max() == 0
    x[2] = 1e-3
    assert torch.autograd.gradcheck(norm, x.requires_grad_())


def test_tokens_no_longer_depend_on_a_tables_scale(root: Path, batch: Batch) -> None:
    tokens = []
    for factor in (1.0, 30.0):
        torch.manual_seed(0)
        embeddings = Embeddings(make_plan(SCHEMA), backend="torch", boundaries=BOUNDARIES)
        for merged in embeddings.plan.tables:
            for shard in embeddings.tables.shards(merged.name):
                shard.weight.mul_(factor)
        tokenizer = Tokenizer(embeddings, 24, Wants(feature_norm=True)).eval()
        tokenizer.norms.set_moments(fit_moments(root, SCHEMA, [DAY]))
        tokens.append(tokenizer(batch).x.detach())
    torch.testing.assert_close(tokens[0], tokens[1], rtol=1e-2, atol=1e-3)
    assert tokens[0].abs().max() < 10, "numbers are standardised too"


def test_equal_start_projects_an_id_to_one_direction_in_every_group(embeddings: Embeddings) -> None:
    tokenizer = Tokenizer(embeddings, 24, Wants(equal_start=True))

    def weight(group: str, feature: str) -> torch.Tensor:
        projection = tokenizer.projections[f"of_{group}"]
        assert isinstance(projection, Projection)
        return projection.weights.get_parameter(f"of_{feature}")

    first = weight("history", "item_id")
    for group, feature in (("realtime", "item_id"), ("candidates", "item_id"), ("candidates", "last_item")):
        other = weight(group, feature)
        assert torch.equal(first, other) and first is not other
    assert not torch.equal(weight("history", "hour"), weight("candidates", "hour")), "tables of their own stay apart"

"""From samples to tokens for random schemas of every kind: nothing breaks, and merging changes no bit."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_samples import publish, random_table
from strategies import schemas

from genrank.schemas.schema import Schema
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.features import fitted_features
from genrank.tokenization.plan import make_plan
from genrank.tokenization.quantiles import fit_boundaries
from genrank.tokenization.reader import SampleReader
from genrank.tokenization.tokens import Tokenizer

DAY = "2026-01-03"


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(schemas(max_features=5), st.integers(0, 1000), st.sampled_from(["user_day", "request", "session"]))
def test_reads_embeds_and_learns(schema: Schema, seed: int, view: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        publish(root, schema, DAY, random_table(schema, DAY, 6, seed, max_candidates=5))
        boundaries = fit_boundaries(root, schema, [DAY])
        assert set(boundaries) == {f"{g}.{n}" for g, n, _ in fitted_features(schema)}
        batch = next(iter(SampleReader(root, schema, [DAY], view=view, token_budget=10**9)))  # type: ignore[arg-type]
    found = []
    for merge in (True, False):
        torch.manual_seed(0)
        embeddings = Embeddings(make_plan(schema, merge=merge), backend="torch", boundaries=boundaries)
        for _ in range(2):
            out = embeddings(batch)
            columns = {
                (group, name): matrix[:, at]
                for group, matrix in out.items()
                for name, at in embeddings.layout[group].items()
            }
            loss = sum((x * torch.linspace(-1, 1, x.shape[1])).sum() + x.square().sum() for x in columns.values())
            if isinstance(loss, torch.Tensor) and loss.requires_grad:
                loss.backward()
        found.append(columns)
        tokens = Tokenizer(embeddings, 8)(batch)
        assert tokens.x.isfinite().all() and len(tokens.x) == int(tokens.offsets[-1])
        assert len(tokens.candidate_rows) == len(batch.item)
        assert (tokens.begin >= 0).all() and (tokens.end <= tokens.max_length).all()
    assert found[0].keys() == found[1].keys()
    for name, wanted in found[0].items():
        assert torch.equal(found[1][name], wanted), name
        assert wanted.isfinite().all(), name

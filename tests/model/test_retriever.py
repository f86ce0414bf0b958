"""Retrieval learns a planted rule, and its metrics are over the whole catalogue."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import schemas as s
from model.encoders import HstuConfig
from model.retriever import ItemFrequency, RetrieverConfig, item_feature, train_retriever
from schemas import UserError

ITEMS = 40
DAYS = ("2026-01-01", "2026-01-02")


def shop(**changes):
    item = s.Table(name="item", dim=16, vocabulary=s.Identity(size=ITEMS))
    columns = {"user_id": "int64", "item_id": "int64", "ts": "int64", "clicked": "bool"}
    fields = {
        "name": "shop",
        "sources": (
            s.EventLog(name="exposures", path="e/dt={dt}", columns=columns, post_exposure=("clicked",)),
            s.EventLog(name="clicks", path="c/dt={dt}", columns={k: columns[k] for k in ("user_id", "item_id", "ts")}),
        ),
        "sequences": (
            s.Sequence(
                name="history",
                events=(s.Events(source="clicks"),),
                features=(s.Categorical(name="item_id", table=item),),
                max_length=12,
            ),
        ),
        "candidates": s.Candidates(features=(s.Categorical(name="item_id", table=item),)),
        "labels": (s.Label(name="click", column="clicked"),),
    }
    return s.Schema(**(fields | changes))


@pytest.fixture(scope="module")
def walk(tmp_path_factory) -> Path:
    """Every user walks the catalogue in steps of 3: what comes next is known from the last event. Item 0 is shown to all."""
    from random_samples import day_start, publish

    from schemas.contract import arrow_schema

    schema, root = shop(), tmp_path_factory.mktemp("walk")
    rng = np.random.default_rng(0)
    for day, dt in enumerate(DAYS):
        start, rows = day_start(schema, dt), []
        for user in range(150 if day == 0 else 60):
            n = int(rng.integers(4, 12))
            path = (rng.integers(0, ITEMS) + 3 * np.arange(n + 1)) % ITEMS
            rows.append(
                {
                    "sample_id": f"{user}:{dt}:0",
                    "user_id": user,
                    "window_start": start,
                    "window_end": start + 86_400_000,
                    "user": {},
                    "history": {
                        "item_id": path[:-1].tolist(),
                        "ts": [start - 1000 * (n - i) for i in range(n)],
                        "type": [0] * n,
                    },
                    "candidates": {
                        "item_id": [0, int(path[-1])],
                        "ts": [start, start + 1],
                        "request": [user] * 2,
                        "item": [0, int(path[-1])],
                    },
                    "labels": {"click": [0, 1], "click_weight": [1.0, 1.0]},
                }
            )
        arrow = arrow_schema(schema)
        rows = [{k: v for k, v in row.items() if k in arrow.names} for row in rows]
        publish(root / "samples", schema, dt, pa.Table.from_pylist(rows, arrow))
    return root


def config(root: Path, **changes) -> RetrieverConfig:
    encoder = HstuConfig(dim=32, layers=1, heads=1, qk_dim=16, v_dim=16, position_reach=16, time_buckets=0, dropout=0.0)
    base = RetrieverConfig(
        schema=shop(), samples=root, dates=DAYS[:1], eval_date=DAYS[1], encoder=encoder, item_dim=32, negatives=64,
        epochs=14, token_budget=600, lr=5e-3, sparse_lr=0.1, cutoffs=(1, 5), device="cpu",
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize("sampling", ["in_batch", "uniform"])
def test_a_planted_rule_is_learned_and_an_untrained_model_knows_nothing(walk: Path, sampling: str) -> None:
    _, before = train_retriever(config(walk, epochs=1, lr=0.0, sparse_lr=0.0))
    _, after = train_retriever(config(walk, sampling=sampling))
    assert before["hr@5"] < 0.4
    assert after["hr@1"] > 0.8 and after["mrr"] > 0.85, after
    assert after["hr@1"] <= after["ndcg@5"] <= after["hr@5"]


def test_item_frequency_estimates_shares() -> None:
    frequency = ItemFrequency(torch.device("cpu"))
    frequency.observe(torch.tensor([5, 5, 5, 9]))
    frequency.observe(torch.tensor([9, -(2**62), 5, 5]))
    share = frequency.log_share(torch.tensor([5, 9, -(2**62)])).exp()
    torch.testing.assert_close(share, torch.tensor([5 / 8, 2 / 8, 1 / 8]))


def test_a_schema_that_cannot_retrieve_says_why() -> None:
    schema = shop()
    assert item_feature(schema) == ("item", "history", "item_id")
    with pytest.raises(UserError, match="exactly one history sequence"):
        item_feature(schema.replace(sequences=()))
    own = s.Categorical(name="item_id", vocabulary=s.Identity(size=ITEMS), dim=16)
    with pytest.raises(UserError, match="share it"):
        item_feature(schema.replace(candidates=s.Candidates(features=(own,))))

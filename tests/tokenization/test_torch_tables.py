"""The torch backend's lookups and updates against rowwise Adagrad and Adam written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from random_samples import demo_schema

import genrank.schemas as s
from genrank.tokenization.plan import Plan, make_plan
from genrank.tokenization.table_backend import EPS, StatePlace
from genrank.tokenization.torch_tables import TorchTables

LR = 0.1


def plan_with(optimizer: s.SparseOptimizer) -> Plan:
    """Of the item table alone among tables of its optimizer."""
    items = s.Table(name="item", dim=4, vocabulary=s.Identity(size=10), optimizer=optimizer)
    plain = demo_schema()
    return make_plan(
        demo_schema(
            sequences=(),
            candidates=plain.candidates.replace(features=(s.Categorical(name="item_id", table=items),)),
        )
    )


def reference(
    weight: np.ndarray, steps: list[tuple[list[int], np.ndarray]], optimizer: s.SparseOptimizer
) -> np.ndarray:
    """Rows one by one; a row's gradients of a step are summed first."""
    first, second = np.zeros_like(weight), np.zeros(len(weight))
    rate = LR * optimizer.lr_scale
    for step, (rows, grads) in enumerate(steps, 1):
        for row in sorted(set(rows)):
            grad = sum(g for at, g in zip(rows, grads, strict=True) if at == row) + optimizer.weight_decay * weight[row]
            mean = float((grad * grad).mean())
            if optimizer.kind == "rowwise_adagrad":
                second[row] += mean
                weight[row] -= rate * grad / (math.sqrt(second[row]) + EPS)
            else:
                first[row] = 0.9 * first[row] + 0.1 * grad
                second[row] = 0.999 * second[row] + 0.001 * mean
                corrected = second[row] / (1 - 0.999**step)
                weight[row] -= rate * (first[row] / (1 - 0.9**step)) / (math.sqrt(corrected) + EPS)
    return weight


@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize(
    "optimizer",
    [
        s.SparseOptimizer(),
        s.SparseOptimizer(lr_scale=0.5, weight_decay=0.01),
        s.SparseOptimizer(kind="rowwise_adam", lr_scale=2.0),
    ],
    ids=["adagrad", "adagrad with decay", "adam"],
)
def test_updates_are_the_optimizers(optimizer: s.SparseOptimizer, place: StatePlace) -> None:
    plan = plan_with(optimizer)
    merged = plan.logical["item"][1].name
    tables = TorchTables(plan, torch.device("cpu"), LR, 3, place)
    (shard,) = tables.shards(merged)
    assert shard.first == 0
    before = shard.weight.double().numpy().copy()
    rng = np.random.default_rng(0)
    steps = [(rng.integers(0, 12, 7).tolist(), rng.normal(size=(7, 4))) for _ in range(4)]
    for rows, grads in steps:
        vectors = tables.lookup({merged: torch.tensor(rows)})[merged]
        assert torch.equal(vectors, shard.weight[torch.tensor(rows)])
        vectors.backward(torch.tensor(grads, dtype=torch.float32))
    assert tables.updates(merged) == 4
    np.testing.assert_allclose(shard.weight.numpy(), reference(before, steps, optimizer), rtol=2e-4, atol=2e-6)
    tables.set_updates(merged, 9)
    assert tables.updates(merged) == 9


def test_a_reset_row_starts_as_it_did() -> None:
    plan = plan_with(s.SparseOptimizer())
    merged = plan.logical["item"][1].name
    tables = TorchTables(plan, torch.device("cpu"), LR, 3)
    (shard,) = tables.shards(merged)
    before = shard.weight.clone()
    tables.lookup({merged: torch.tensor([2, 3])})[merged].sum().backward()
    tables.reset(merged, torch.tensor([2]))
    assert torch.equal(shard.weight[2], before[2]) and float(shard.state["second"][2]) == 0
    assert not torch.equal(shard.weight[3], before[3]) and float(shard.state["second"][3]) > 0

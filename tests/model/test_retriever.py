"""Retrieval learns a planted rule, and its metrics are over the whole catalogue."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import genrank.schemas as s
from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.documents import RetrievalEvaluation, as_json
from genrank.model.evaluate import evaluate, load_model
from genrank.model.registry import choose_model
from genrank.model.report import write_report
from genrank.model.retriever import ItemFrequency, Retriever, item_feature
from genrank.model.terminal import print_metrics
from genrank.model.train_step import TrainStep
from genrank.model.trainer import train
from genrank.schemas import UserError

from .retrieval_cases import DAYS, ITEMS, shop, write_walk


@pytest.fixture(scope="module")
def walk(tmp_path_factory) -> Path:
    """150 users a day to train on, 60 to judge on."""
    return write_walk(tmp_path_factory.mktemp("walk"))


def config(root: Path, out: Path, **changes) -> TrainConfig:
    settings = {
        "dim": "32", "layers": "1", "heads": "1", "qk_dim": "16", "v_dim": "16", "position_reach": "16", "time_buckets": "0",
        "dropout": "0", "item_dim": "32", "negatives": "64", "cutoffs": "[1, 5]",
    }  # fmt: skip
    settings |= changes.pop("settings", {})
    base = TrainConfig(
        schema=shop(), samples=root, dates=DAYS[:1], out=out, model="hstu-retrieval-tiny", settings=settings,
        epochs=14, token_budget=600, lr=5e-3, sparse_lr=0.1, warmup_steps=0, decay="none", spike_factor=0, device="cpu",
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def judged(run: TrainConfig, **changes) -> RetrievalEvaluation:
    return evaluate(EvaluateConfig(run=run.out, samples=run.samples, dates=DAYS[1:], device="cpu", **changes))


@pytest.mark.parametrize("sampling", ["in_batch", "uniform"])
def test_a_planted_rule_is_learned_and_popularity_knows_nothing(walk: Path, sampling: str, tmp_path: Path) -> None:
    run = config(walk, tmp_path / "run", settings={"sampling": sampling}, eval_dates=DAYS[1:], patience=20)
    trained = train(run)
    result = judged(run, bootstrap=50)
    assert as_json(result) == json.loads((run.out / "metrics.json").read_text())
    row, popularity = result.tasks["next_item"]["model"], result.tasks["next_item"]["popularity"]
    assert popularity["hr@5"].value < 0.4
    assert row["hr@1"].value > 0.8 and row["mrr"].value > 0.85, row
    assert row["hr@1"].value <= row["ndcg@5"].value <= row["hr@5"].value
    assert row["mrr"].low <= row["mrr"].value <= row["mrr"].high
    assert (result.queries, result.catalogue) == (60, ITEMS)
    best = json.loads((run.out / "checkpoints" / "best.json").read_text())
    assert best["step"] == result.step and trained.steps >= result.step
    print_metrics("retrieval", result)
    write_report([run.out], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert f"{row['mrr'].value:.4f}" in page and f"{popularity['hr@5'].value:.4f}" in page
    assert "60 queries of 40 items" in page and "interval over queries" in page and "and MRR on 2026-01-02" in page
    assert "GAUC" not in page and "item popularity" in page


def test_popularity_ranks_by_responses_on_the_training_days(walk: Path, tmp_path: Path) -> None:
    run = config(walk, tmp_path / "run", max_steps=1)
    train(run)
    import pyarrow.parquet as pq

    def rows(day: str) -> list[dict]:
        return [
            r for f in (walk / "samples" / f"dt={day}").rglob("*.parquet") for r in pq.ParquetFile(f).read().to_pylist()
        ]

    counts = np.zeros(ITEMS, int)
    for row in rows(DAYS[0]):
        counts[row["candidates"]["item"][1]] += 1
    targets = [row["candidates"]["item"][1] for row in rows(DAYS[1])]
    expected = np.mean([1 / (counts >= counts[target]).sum() for target in targets])
    assert judged(run, bootstrap=0).tasks["next_item"]["popularity"]["mrr"].value == pytest.approx(expected)


def test_a_killed_run_goes_on_to_the_bit(walk: Path, tmp_path: Path, monkeypatch) -> None:
    """The items' frequencies and the draws of negatives come along."""
    runs = [
        config(walk, tmp_path / name, epochs=2, checkpoint_every=2, deterministic=True) for name in ("whole", "cut")
    ]
    train(runs[0])
    step = TrainStep.run

    def mortal(self, batches, at):
        if at.step == 3:
            raise KeyboardInterrupt
        return step(self, batches, at)

    monkeypatch.setattr(TrainStep, "run", mortal)
    with pytest.raises(KeyboardInterrupt):
        train(runs[1])
    monkeypatch.setattr(TrainStep, "run", step)
    train(runs[1])
    whole, cut = (load_model(run.out).model for run in runs)
    for (name, a), b in zip(whole.state_dict().items(), cut.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert float(whole.frequency.counts.sum()) > 0
    torch.use_deterministic_algorithms(False)


def test_a_state_knows_nothing_of_later_events(schema, samples: Path) -> None:
    """User tokens stand before the history and are seen by it: they must not pass on what they see."""
    from random_samples import BOUNDARIES

    from genrank.tokenization.embedding import Embeddings
    from genrank.tokenization.plan import make_plan
    from genrank.tokenization.reader import SampleReader

    torch.manual_seed(0)
    embeddings = Embeddings(make_plan(schema), backend="torch", boundaries=BOUNDARIES)
    for table in embeddings.tables.tables.values():
        table.weight.mul_(30)
    model = Retriever(embeddings, choose_model("hstu-retrieval-tiny").config).eval()
    batch = next(iter(SampleReader(samples / "samples", schema, DAYS[:1], shuffle=False, prefetch=0, token_budget=800)))
    before, _ = model.states(batch)
    history = batch.groups["history"]
    last = history.offsets[1:][history.lengths > 0] - 1
    history.features["item_id"][last] += 1
    after, _ = model.states(batch)
    earlier = torch.ones(len(before), dtype=torch.bool)
    earlier[last] = False
    torch.testing.assert_close(after[earlier], before[earlier], rtol=1e-4, atol=1e-5)
    assert (after[last] - before[last]).abs().max() > 1e-3
    with pytest.raises(UserError, match="only causal hides it"):
        Retriever(embeddings, choose_model("hstu-retrieval-tiny", {"visibility": "targets"}).config)


def test_item_frequency_estimates_shares() -> None:
    frequency = ItemFrequency()
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

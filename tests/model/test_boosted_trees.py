"""`--model lightgbm`: a run like any other's, the same trees from the same seed, and one line where the package isn't there."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tokenization"))
from random_samples import demo_schema, write_random_samples

import genrank.schemas as s
from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.evaluate import evaluate, load_model
from genrank.model.report_data import read_runs
from genrank.model.run_dir import training_message
from genrank.model.trainer import train
from genrank.schemas.errors import UserError
from genrank.tokenization.reader import SampleReader

DAYS = ["2026-01-01", "2026-01-02", "2026-01-03"]
SMALL = {"trees": "8", "leaves": "7", "min_data_in_leaf": "5", "threads": "1"}
PLAIN = demo_schema()
SCHEMA = PLAIN.replace(
    candidates=PLAIN.candidates.replace(
        features=(*PLAIN.candidates.features, s.WithinRequest(name="price_rank", of="price", what="rank"))
    )
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    samples = write_random_samples(tmp_path_factory.mktemp("samples"), PLAIN, DAYS, users=60)
    out = tmp_path_factory.mktemp("runs") / "trees"
    return TrainConfig(
        schema=SCHEMA, samples=samples, dates=tuple(DAYS[:2]), eval_dates=(DAYS[2],), out=out, model="lightgbm",
        settings=SMALL, seed=3,
    )  # fmt: skip


def test_without_the_package_one_line_names_the_remedy(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    out = config.out.with_name("refused")
    with pytest.raises(UserError, match=r"--model lightgbm: .*not installed; run `pip install 'genrank\[lightgbm\]'`"):
        train(dataclasses.replace(config, out=out))
    assert not out.exists()


@pytest.mark.parametrize(("flag", "changed"), [("--epochs", {"epochs": 2}), ("--compile", {"compile": True})])
def test_what_only_steps_have_is_refused(config: TrainConfig, flag: str, changed: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"it learns all days at once and takes no {flag}"):
        train(dataclasses.replace(config, out=config.out.with_name("other"), **changed))  # type: ignore[arg-type]


def test_a_run_is_evaluated_reported_and_repeated_like_any_other(config: TrainConfig) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    result = train(config)
    assert result.steps == 1 and set(result.metrics) == {"click", "watch"}
    assert train(config).was_complete
    assert "1 steps over" in training_message(config.out)
    judged = evaluate(EvaluateConfig(run=config.out, samples=config.samples, dates=(DAYS[2],), bootstrap=3))
    for label, each in result.metrics.items():
        for metric, estimate in each.items():
            assert judged.tasks[label]["model"][metric].value == pytest.approx(estimate.value, rel=1e-6)
    assert read_runs([config.out])[0].name == "lightgbm"

    manifest = json.loads((config.out / "checkpoints" / "step-1" / "manifest.json").read_text())
    assert manifest["model"]["fields"]["trees"] == "8" and manifest["model"]["fields"]["lambda_l2"] == "1.0"
    loaded = load_model(config.out)
    batch = next(iter(SampleReader(config.samples, SCHEMA, DAYS[2:], shuffle=False, prefetch=0)))
    scores = loaded.model(batch)
    again = dataclasses.replace(config, out=config.out.with_name("again"))
    train(again)
    for label, values in load_model(again.out).model(batch).items():
        torch.testing.assert_close(values, scores[label], rtol=0, atol=0)
    other = dataclasses.replace(config, out=config.out.with_name("seed"), seed=4)
    train(other)
    assert not torch.equal(load_model(other.out).model(batch)["click"], scores["click"])

    # The click's trees are those of the package itself on the same columns.
    numbers = loaded.model.numbers
    matrix, label, weight = [], [], []
    for read in SampleReader(config.samples, SCHEMA, DAYS[:2], view="user_day", shuffle=False, prefetch=0):
        matrix.append(numbers(read).numpy())
        label.append(read.labels["click"].numpy())
        weight.append(read.weights["click"].numpy())
    keep = np.concatenate(weight) > 0
    parameters = {
        "objective": "binary", "num_leaves": 7, "learning_rate": 0.05, "min_data_in_leaf": 5, "bagging_fraction": 0.8,
        "bagging_freq": 1, "feature_fraction": 0.8, "lambda_l2": 1.0, "seed": 3, "deterministic": True,
        "force_row_wise": True, "verbosity": -1, "num_threads": 1,
    }  # fmt: skip
    data = lightgbm.Dataset(
        np.concatenate(matrix)[keep], np.concatenate(label)[keep], weight=np.concatenate(weight)[keep]
    )
    booster = lightgbm.train(parameters, data, num_boost_round=8)
    expected = booster.predict(numbers(batch).numpy(), raw_score=True)
    np.testing.assert_allclose(scores["click"].numpy(), expected, rtol=1e-5, atol=1e-6)

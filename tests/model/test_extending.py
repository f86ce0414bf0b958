"""A model, an encoder and a task from outside the package train, evaluate and load: what docs/extending.md promises."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.encoders import split
from genrank.model.evaluate import evaluate, load_model
from genrank.model.registry import choose_model
from genrank.model.tasks import TASKS
from genrank.model.terminal import print_metrics
from genrank.model.trainer import train
from genrank.schemas import UserError
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.plan import make_plan
from genrank.tokenization.reader import SampleReader

OUTSIDE = Path(__file__).parent / "outside.py"
DAYS = ("2026-01-01", "2026-01-02")


def config(schema, samples: Path, out: Path, name: str, **changes) -> TrainConfig:
    return TrainConfig(
        **{
            "schema": schema, "samples": samples, "dates": DAYS[:1], "out": out, "model": f"{OUTSIDE}:{name}",
            "token_budget": 500, "max_steps": 24, "log_every": 1, "device": "cpu", "spike_factor": 0, **changes,
        }
    )  # fmt: skip


def judged(run: TrainConfig):
    return evaluate(EvaluateConfig(run=run.out, samples=run.samples, dates=DAYS[1:], bootstrap=0, device="cpu"))


def losses(run: TrainConfig) -> list[float]:
    return [json.loads(line)["loss"] for line in (run.out / "log.jsonl").read_text().splitlines() if "loss" in line]


@pytest.mark.parametrize("name", ["POOL", "ITEM_ONLY"])
def test_a_ranker_from_a_file_trains_evaluates_and_loads(name: str, schema, samples: Path, tmp_path: Path) -> None:
    run = config(schema, samples, tmp_path / "run", name, settings={"hidden": "8", "head.hidden": "[4]"}, epochs=20)
    assert train(run).steps == 24
    before = losses(run)
    assert sum(before[-6:]) < sum(before[:6])
    assert 0 < judged(run).tasks["click"]["model"]["auc"].value < 1
    loaded = load_model(run.out)
    assert loaded.model.heads.towers["click"][0].out_features == 4


def test_its_encoder_in_two_parts_equals_forward(schema, samples: Path) -> None:
    from random_samples import BOUNDARIES

    torch.manual_seed(0)
    embeddings = Embeddings(make_plan(schema), backend="torch", boundaries=BOUNDARIES)
    model = choose_model(f"{OUTSIDE}:POOL").build(embeddings).eval()
    tokens = model.tokenizer(next(iter(SampleReader(samples / "samples", schema, DAYS[:1], shuffle=False, prefetch=0))))
    sequence, candidates = split(tokens)
    got = model.encoder.score(model.encoder.user_state(sequence), candidates)
    torch.testing.assert_close(got, model.encoder(tokens))


def test_a_task_is_one_registry_line(schema, samples: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    run = config(
        schema, samples, tmp_path / "run", "USER_ONLY", eval_dates=DAYS[1:], epochs=9, eval_every=4, patience=9, lr=0.05
    )
    with pytest.raises(UserError, match="there is no task 'dwell'; there are ranking, retrieval"):
        train(run)
    spec = importlib.util.spec_from_file_location("outside_task", OUTSIDE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "outside_task", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(TASKS, "dwell", module.Dwell)
    result = train(run)
    assert losses(run)[-1] < losses(run)[0]
    best = json.loads((run.out / "checkpoints" / "best.json").read_text())
    assert best["metric"] == "minus_mse" and best["value"] >= result.metrics["shown"]["minus_mse"].value
    evaluation = judged(run)
    assert json.loads((run.out / "metrics.json").read_text())["task"] == "dwell"
    print_metrics("mine", evaluation)
    assert "-MSE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("nowhere.py:MODEL", {}, "there is no file .*nowhere.py.* with the path it was trained with"),
        (f"{OUTSIDE}:POND", {}, "has no ModelSpec 'POND'; it has ITEM_ONLY, POOL, USER_ONLY"),
        (f"{OUTSIDE}", {}, "has no ModelSpec ''; it has"),
        (f"{OUTSIDE}:POOL", {"hidden": "0"}, "--set hidden=0: must be at least 1"),
        (f"{OUTSIDE}:POOL", {"dropout": "1"}, "--set dropout=1: give a number from 0 to below 1"),
        (f"{OUTSIDE}:USER_ONLY", {"head.kind": "mmoe"}, "user-only has no heads of labels"),
        ("pool", {}, "no such model; .*path/to/file.py:NAME"),
    ],
)
def test_mistakes_are_named(model: str, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_model(model, settings)


def test_an_error_in_the_file_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1\ny = 1 / 0\n")
    with pytest.raises(UserError, match=r"mine.py:2: ZeroDivisionError"):
        choose_model(f"{tmp_path}/mine.py:MODEL")


def test_compile_and_recompute_are_refused_where_there_is_no_encoder(schema, samples: Path, tmp_path: Path) -> None:
    for flag in ("compile", "recompute"):
        with pytest.raises(UserError, match=f"--{flag} is for models with an encoder.* ItemOnly has none"):
            train(config(schema, samples, tmp_path / "run", "ITEM_ONLY", **{flag: True}))

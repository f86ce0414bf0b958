"""`python -m benchmarks.encoders` trains, judges, writes its table, and does nothing twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import encoders
from genrank.model.encoders import EncoderConfig
from genrank.model.registry import choose_model
from genrank.model.trainer import train
from genrank.schemas import load_schema, to_yaml
from genrank.tokenization.arrangement import token_shape

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_every_case_is_a_model_that_can_be_chosen() -> None:
    schema = load_schema(f"{EXAMPLES}/marketplace/schema.py")
    for case in encoders.cases(encoders.MODELS, ablations=True):
        chosen = choose_model(case.model, case.fields)
        trained_otherwise = case.training or case.settings == encoders.STAGES
        assert not case.change or trained_otherwise or chosen.config != choose_model(case.model).config, case
        if isinstance(chosen.config, EncoderConfig):
            chosen.config.fit(token_shape(schema, chosen.config.wants()))
    assert set(encoders.ABLATIONS) <= set(encoders.MODELS)


def test_the_table(schema, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "schema.yaml").write_text(to_yaml(schema))
    monkeypatch.setattr(encoders, "ABLATIONS", {"rankmixer-tiny": {"no mixing": "mixing=none"}})
    command = [
        "encoders", "--schema", str(tmp_path / "schema.yaml"), "--samples", str(samples), "--dates", "2026-01-01", "--eval-dates",
        "2026-01-02", "--out", str(tmp_path / "out"), "--models", "din", "rankmixer-tiny", "--ablations", "--seeds", "0", "1",
        "--max-steps", "2", "--token-budget", "300",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    encoders.main()
    text = capsys.readouterr().out
    assert "| `din` |" in text and "| - no mixing (`mixing=none`) |" in text and "±" in text
    rows = json.loads((tmp_path / "out" / "encoders.json").read_text())
    assert [len(row["seeds"]) for row in rows] == [2, 2, 2]
    for row in rows:
        for seed in row["seeds"]:
            assert (
                0 < seed["gauc"] < 1
                and seed["trained_flops"] > seed["flops"] > 1000
                and seed["candidates"] > 0
                and seed["parameters"] > 0
            )
    monkeypatch.setattr(encoders, "train", None)  # all is there
    encoders.main()
    assert json.loads((tmp_path / "out" / "encoders.json").read_text()) == rows

    config = encoders.TrainConfig(
        schema=schema, samples=samples, dates=("2026-01-01", "2026-01-02"), out=tmp_path / "one", model="rankmixer-tiny",
        token_budget=300, device="cpu",
    )  # fmt: skip
    monkeypatch.setattr(encoders, "SAMPLED_BATCHES", 1)  # it has few
    few, some, many = (encoders.within(config, flops) for flops in (1e3, 0.95 * all_flops(config), 1e12))
    assert (few.dates, few.max_steps) == (config.dates[1:], 1)
    assert some.dates == config.dates and some.max_steps > 1
    assert many == config


def all_flops(config: encoders.TrainConfig) -> int:
    train(config)
    return json.loads((config.out / "summary.json").read_text())["flops"]

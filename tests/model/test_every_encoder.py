"""Every encoder by name, on samples as `genrank build` lays them out: trained, resumed, evaluated and reported; and no prediction that
depends on what a sample is cut from. A new encoder joins by its line in `model.encoders.ENCODERS`: its smallest preset is taken."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.encoders import ENCODERS, Counts
from genrank.model.encoders.block import parameter_count
from genrank.model.evaluate import evaluate
from genrank.model.registry import choose_model
from genrank.model.report import write_report
from genrank.model.train_step import TrainStep
from genrank.model.trainer import train
from genrank.tokenization.arrangement import token_shape
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.plan import make_plan
from genrank.tokenization.quantiles import fit_boundaries
from genrank.tokenization.reader import SampleReader

NAMES = [next((name for name in spec.presets if name.endswith("-tiny")), next(iter(spec.presets))) for spec in ENCODERS]
DAY = "2026-01-01"


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the trainer may catch it."""


def make_model(name: str, schema, samples: Path, **settings: str):
    torch.manual_seed(0)
    boundaries = fit_boundaries(samples / "samples", schema, [DAY])
    model = choose_model(name, settings).build(Embeddings(make_plan(schema), backend="torch", boundaries=boundaries))
    model.prepare(samples / "samples", [DAY])
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
def test_trained_killed_resumed_evaluated_and_reported(
    name: str, schema, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(
        schema=schema, samples=samples, dates=(DAY,), out=tmp_path / "run", model=name, token_budget=300, max_steps=3,
        log_every=1, checkpoint_every=1, device="cpu", seed=3, recompute=True,
        precision="bf16",
    )  # fmt: skip
    step = TrainStep.run

    def mortal(self, batches, at):
        if at.step == 2:
            raise Killed
        return step(self, batches, at)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "run", mortal)
        with pytest.raises(Killed):
            train(config)
    assert train(config).steps == 3
    rows = [json.loads(line) for line in (config.out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3] and all(math.isfinite(row["loss"]) for row in rows)
    found = evaluate(EvaluateConfig(run=config.out, samples=samples, dates=("2026-01-02",), bootstrap=0))
    assert found.model == name
    write_report([config.out], tmp_path / "report.html")
    assert name in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_views_agree(name: str, schema, samples: Path) -> None:
    """A candidate scores the same in its user's day, its request and alone: the later views hold no other candidate and no later event."""
    model = make_model(name, schema, samples)
    scores: dict[str, dict[tuple[int, ...], torch.Tensor]] = {}
    for view in ("user_day", "request", "exposure"):
        scores[view] = {}
        reader = SampleReader(samples / "samples", schema, [DAY], view=view, shuffle=False, token_budget=400)
        for batch in reader:
            with torch.no_grad():
                logits = torch.stack(list(model(batch).values()), 1)
            user = torch.repeat_interleave(batch.user, batch.candidates.lengths)
            keys = torch.stack([user, batch.request, batch.item, batch.candidates.ts, batch.candidate_sees], 1)
            scores[view] |= {tuple(key): row for key, row in zip(keys.tolist(), logits, strict=True)}
    for view in ("request", "exposure"):
        assert scores[view].keys() == scores["user_day"].keys() and scores[view]
        for key, row in scores[view].items():
            torch.testing.assert_close(row, scores["user_day"][key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_operations_are_counted(name: str, schema, samples: Path) -> None:
    """More events, and more candidates, are more operations; a batch's are those of its parts to a third."""
    config = make_model(name, schema, samples).encoder.config
    one = config.flops(Counts(tokens=1000, pairs=50_000, candidates=50, seen=40_000, samples=10))
    more = config.flops(Counts(tokens=2000, pairs=200_000, candidates=50, seen=80_000, samples=10))
    assert one is not None and more is not None and 0 < one < more


def test_every_preset_can_be_made(schema) -> None:
    """On the meta device: the papers' sizes take no memory."""
    parameters = {}
    for spec in ENCODERS:
        for name, config in spec.presets.items():
            with torch.device("meta"):
                encoder = spec.build(config.fit(token_shape(schema, config.wants())))
            parameters[name] = parameter_count([encoder])
    # OneTrans' paper, section 4.1: 91 and 330 million.
    assert 90e6 < parameters["onetrans-small"] < 93e6 and 320e6 < parameters["onetrans-large"] < 340e6
    for spec in ENCODERS:
        tiny = min((name for name in spec.presets), key=parameters.__getitem__)
        assert parameters[tiny] < 1e6, f"{tiny} is no model for two CPU cores"

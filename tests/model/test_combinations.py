"""Every model learns at every precision, whole or killed and resumed, compiled or not; and AdamW's state resumes where it is kept."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from genrank.model.checkpoint import load_optimizer_state, optimizer_state
from genrank.model.config import TrainConfig
from genrank.model.ranker import EncoderModel
from genrank.model.train_step import TrainStep
from genrank.model.trainer import train
from genrank.schemas.errors import UserError

MODELS = ("mtgr-tiny", "hstu-tiny", "din", "dlrm", "dcn", "sasrec", "hstu-retrieval-tiny")
COMPILED = ("mtgr-tiny", "hstu-tiny", "hstu-retrieval-tiny")
"""What --compile is for has an encoder."""
DIFFERENTIATED = {("hstu-tiny", "bf16", 2), ("hstu-retrieval-tiny", "fp32", None)}
"""Traced, differentiated and partitioned as with C++, but run without, which takes half a minute a case: `test_compiled.test_by_cpp` has it. The other
compiled combinations are traced alone."""
STEPS = 3


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the trainer may catch it."""


def combination(model: str, precision: str, kill_at: int | None, compiled: bool) -> object:
    slow = [pytest.mark.slow] if compiled else []
    name = f"{model}-{precision}" + (f"-resumed after {kill_at}" if kill_at else "") + ("-compiled" if compiled else "")
    return pytest.param(model, precision, kill_at, compiled, id=name, marks=slow)


COMBINATIONS = [
    combination(model, precision, kill_at, compiled)
    for model in MODELS
    for precision in ("fp32", "bf16")
    for kill_at in (None, 1, 2)
    for compiled in (False, True)
    if not compiled or (model in COMPILED and kill_at != 1)
]


@pytest.mark.parametrize(("model", "precision", "kill_at", "compiled"), COMBINATIONS)
def test_three_steps(
    model: str, precision: str, kill_at: int | None, compiled: bool, schema, samples, tmp_path: Path, monkeypatch
) -> None:
    if compiled:
        backend = "aot_eager" if (model, precision, kill_at) in DIFFERENTIATED else "eager"
        monkeypatch.setattr(EncoderModel.compile_dense, "__defaults__", (backend,))
    small = {"layers": "1", "dim": "16", "qk_dim": "8", "v_dim": "8"} if compiled else {}
    if model == "hstu-retrieval-tiny":
        small = {}
    config = TrainConfig(
        schema=schema, samples=samples, dates=("2026-01-01",), out=tmp_path / "run", model=model, settings=small,
        token_budget=300, max_steps=STEPS, precision=precision, compile=compiled, log_every=1, checkpoint_every=1,
        device="cpu", seed=3,
    )  # fmt: skip
    if compiled:
        torch._dynamo.reset()
    if kill_at:
        step = TrainStep.run

        def mortal(self, batches, at):
            if at.step == kill_at:
                raise Killed
            return step(self, batches, at)

        with monkeypatch.context() as patch:
            patch.setattr(TrainStep, "run", mortal)
            with pytest.raises(Killed):
                train(config)
    assert train(config).steps == STEPS
    rows = [json.loads(line) for line in (config.out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3] and all(math.isfinite(row["loss"]) for row in rows)


def test_a_stream_in_bfloat16_learns_and_resumes_exactly(schema, samples, tmp_path: Path) -> None:
    """Beside the stream in float32: losses that are close; and without autocast it is refused."""

    def config(out: str, stream: str, steps: int, precision: str = "bf16") -> TrainConfig:
        return TrainConfig(
            schema=schema, samples=samples, dates=("2026-01-01",), out=tmp_path / out, model="mtgr-tiny",
            settings={"stream": stream}, token_budget=300, max_steps=steps, precision=precision, log_every=1,
            checkpoint_every=1, device="cpu", seed=3,
        )  # fmt: skip

    def losses(out: str) -> list[float]:
        return [json.loads(line)["loss"] for line in (tmp_path / out / "log.jsonl").read_text().splitlines()]

    train(config("whole", "bfloat16", 3))
    train(config("parts", "bfloat16", 2))
    train(config("parts", "bfloat16", 3))
    train(config("float32", "float32", 3))
    assert losses("whole") == losses("parts") != losses("float32")
    assert losses("whole") == pytest.approx(losses("float32"), rel=0.02)
    with pytest.raises(UserError, match="--set stream=bfloat16: without autocast"):
        train(config("refused", "bfloat16", 1, precision="fp32"))


@pytest.mark.parametrize(
    ("options", "home"),
    [({"fused": True}, "meta"), ({"capturable": True}, "meta"), ({"foreach": True}, "cpu"), ({}, "cpu")],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_adamw_finds_its_step_where_it_keeps_it(options: dict[str, bool], home: str) -> None:
    """The meta device stands for a GPU, on which fused AdamW refuses a `step` on the CPU."""
    trained = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(trained.parameters(), fused=True)
    trained(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = optimizer_state(trained, optimizer)

    resumed = nn.Linear(3, 2, device="meta")
    loaded = torch.optim.AdamW(resumed.parameters(), **options)
    load_optimizer_state(resumed, loaded, state)
    for p in resumed.parameters():
        assert loaded.state[p]["step"].device.type == home
        assert loaded.state[p]["exp_avg"].device.type == "meta"


@pytest.mark.parametrize("fused", [False, True])
def test_a_resumed_optimizer_steps_like_one_never_stopped(fused: bool) -> None:
    torch.manual_seed(0)
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    first, second = (torch.optim.AdamW(m.parameters(), fused=fused) for m in (one, other))

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step(one, first)
    other.load_state_dict(one.state_dict())
    load_optimizer_state(other, second, copy.deepcopy(optimizer_state(one, first)))  # as through a file
    step(one, first)
    step(other, second)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert all(second.state[p]["step"] == 2 for p in other.parameters())

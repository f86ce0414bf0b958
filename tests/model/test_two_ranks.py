"""Two processes (gloo) with unequal batches equal one process with all of them: DDP and FSDP2, and checkpoints between them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from genrank.model.checkpoint import load_dense, steps_of
from genrank.model.config import TrainConfig
from genrank.model.evaluate import load_model
from genrank.model.trainer import train
from genrank.schemas import Categorical, Dynamic, Schema

ROOT = Path(__file__).resolve().parents[2]
DAY, NEXT = "2026-01-01", "2026-01-02"

WORKER = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {random!r}, {tests!r}]
import torch
torch.set_num_threads(1)
from test_two_ranks import many_steps, run_of
from genrank.model.trainer import train

samples, folder = Path({samples!r}), Path({folder!r})
for kind in ("ddp", "fsdp"):
    train(run_of(samples, folder / kind, dense_parallel=kind, epochs=2, eval_dates=("2026-01-02",)))
from genrank.model.ranker import EncoderModel
by_default = EncoderModel.compile_dense
EncoderModel.compile_dense = lambda self: by_default(self, "eager")  # The graphs without minutes of C++.
# Shards alone, which are gathered in the midst of what is compiled: whole parameters are compiled as in one process.
train(run_of(samples, folder / "compiled", dense_parallel="fsdp", epochs=2, compile=True))
assert 2 < torch._dynamo.utils.counters["stats"]["unique_graphs"] < 10, torch._dynamo.utils.counters
train(run_of(samples, folder / "short", dense_parallel="fsdp", epochs=1))
train(run_of(samples, folder / "one", dense_parallel="fsdp", epochs=2))

from genrank.tokenization.embedding import Embeddings
begin, dispatched = Embeddings.dispatch, []
Embeddings.dispatch = lambda self, batch: (dispatched.append(batch), begin(self, batch))[1]
for name, ahead in (("sequential", False), ("ahead", True)):
    assert not dispatched
    train(many_steps(folder / "many", folder / name, lookups_ahead=ahead))
assert len(dispatched) > 8, len(dispatched)

# By the clock: rank 0's asks every third minute, rank 1's never does. Then as if killed after the first of these checkpoints.
import itertools
import shutil
from types import SimpleNamespace
import torch.distributed as dist
import genrank.model.checkpoint_manager
minutes = itertools.count() if dist.get_rank() == 0 else itertools.repeat(0)
genrank.model.checkpoint_manager.time = SimpleNamespace(monotonic=lambda: 60 * next(minutes))
clocked = many_steps(folder / "many", folder / "clocked", checkpoint_every=0, checkpoint_minutes=3, keep_checkpoints=99)
train(clocked)
first, *others = genrank.model.checkpoint_manager.steps_of(clocked.out)
dist.barrier()
if dist.get_rank() == 0:
    assert first == 4 and len(others) > 3, (first, others)
    (clocked.out / "summary.json").unlink()
    for step in others:
        shutil.rmtree(clocked.out / "checkpoints" / f"step-{{step}}")
dist.barrier()
train(clocked)
"""


def run_of(samples: Path, out: Path, **changes: Any) -> TrainConfig:
    """One step an epoch, over everything; the gradient is clipped in each."""
    from random_samples import demo_schema

    base = TrainConfig(
        schema=demo_schema(), samples=samples, dates=(DAY,), out=out, token_budget=10**6, settings={"dropout": "0"},
        warmup_steps=0, decay="none", lr=1e-3, clip_norm=0.05, device="cpu", log_every=1,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def many_steps(samples: Path, out: Path, **changes: Any) -> TrainConfig:
    """A dynamic table too small for its ids, checkpoints and evaluations on the way."""
    return run_of(
        samples, out, schema=evicting(), token_budget=100, eval_every=7, eval_dates=(NEXT,), epochs=2, view="user_day",
        **{"checkpoint_every": 4, **changes},
    )  # fmt: skip


def evicting() -> Schema:
    from random_samples import demo_schema

    schema = demo_schema()
    rare = Categorical(name="rare", column="item_id", vocabulary=Dynamic(capacity=60, admit_after=1), dim=8)
    return schema.replace(candidates=schema.candidates.replace(features=(*schema.candidates.features, rare)))


def numbers(run: Path) -> dict[str, torch.Tensor]:
    """Every dense parameter, table row and moment of a run's last checkpoint."""
    step = steps_of(run)[-1]
    loaded = load_model(run, step=step)
    found = {f"dense {name}": value for name, value in loaded.model.state_dict().items()}
    for name, state in load_dense(run / "checkpoints" / f"step-{step}")["optimizer"].items():
        # Moments of the order of squared gradients say nothing under an absolute tolerance.
        found |= {f"moment {name}/{key}": value for key, value in state.items() if key == "exp_avg"}
    for name, table in loaded.model.embeddings.tables.tables.items():
        found |= {f"rows {name}": table.weight, f"rows {name}/second": table.second}
    return found


def same(run: Path, expected: dict[str, torch.Tensor]) -> None:
    got = numbers(run)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            got[name], value, rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{run.name}: {n}: {m}"
        )


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """One process's runs, and those that two processes made of the same samples."""
    pytest.importorskip("torchrec")
    from random_samples import demo_schema, publish, random_table

    folder = tmp_path_factory.mktemp("ranks")
    # Row groups of 25 and 5: the ranks' batches differ by five times. The next day is one row group: a rank has none of it.
    publish(folder / "samples", demo_schema(), DAY, random_table(demo_schema(), DAY, 30), row_group=25)
    publish(folder / "samples", demo_schema(), NEXT, random_table(demo_schema(), NEXT, 12))
    train(run_of(folder, folder / "whole", epochs=2, eval_dates=(NEXT,)))
    train(run_of(folder, folder / "one", epochs=1))
    for day in (DAY, NEXT):
        publish(folder / "many" / "samples", evicting(), day, random_table(evicting(), day, 40), row_group=8)
    script = folder / "worker.py"
    script.write_text(
        WORKER.format(
            root=str(ROOT),
            random=str(ROOT / "tests" / "tokenization"),
            tests=str(ROOT / "tests" / "model"),
            samples=str(folder),
            folder=str(folder),
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "compiled"])
def test_two_ranks_of_unequal_batches_equal_one_rank_of_both(runs: Path, kind: str) -> None:
    same(runs / kind, numbers(runs / "whole"))
    one, two = (rows(runs / name) for name in ("whole", kind))
    if kind == "compiled":  # Without evaluations.
        one = [row for row in one if "loss" in row]
    assert [row["step"] for row in two] == [row["step"] for row in one]
    flops = set()
    for name in ("whole", kind):
        position = load_dense(runs / name / "checkpoints" / "step-2")["position"]
        assert position["total_steps"] == position["step"] == 2
        flops.add(position["flops"])
    assert len(flops) == 1 and flops != {0}
    for a, b in zip(one, two, strict=True):
        if "loss" in a:
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        else:
            assert b["eval"]["click"] == pytest.approx(a["eval"]["click"], rel=1e-3)


def test_a_run_of_one_process_goes_on_with_two(runs: Path) -> None:
    """Resumed between epochs; shards of the dense part are cut from whole tensors, tables sharded over ranks."""
    assert len(load_dense(runs / "one" / "checkpoints" / "step-2")["readers"]) == 2
    same(runs / "one", numbers(runs / "whole"))


def test_a_run_of_two_processes_goes_on_with_one(runs: Path) -> None:
    """Resumed, and as a new run from the checkpoint: both optimizers' states come along."""
    train(run_of(runs, runs / "after", from_checkpoint=runs / "short"))
    train(run_of(runs, runs / "short", epochs=2))
    expected = numbers(runs / "whole")
    same(runs / "short", expected)
    same(runs / "after", expected)


@pytest.mark.parametrize("name", ["ahead", "clocked"])
def test_lookups_ahead_and_checkpoints_by_the_clock_change_nothing(runs: Path, name: str) -> None:
    """To the bit: rows that got a new owner or an update on the way included. The clocked run was resumed, too."""
    sequential, ahead = numbers(runs / "sequential"), numbers(runs / name)
    assert sequential.keys() == ahead.keys()
    for key, value in sequential.items():
        assert torch.equal(ahead[key], value), key
    losses = [[row["loss"] for row in rows(runs / run) if "loss" in row] for run in ("sequential", name)]
    assert losses[0] == losses[1] and len(losses[0]) > 12
    # Ranks of unequal batches: the steps counted before training are those taken.
    last = steps_of(runs / name)[-1]
    assert load_dense(runs / name / "checkpoints" / f"step-{last}")["position"]["total_steps"] == last
    vocabularies = [
        load_model(runs / run).model.embeddings.vocabularies["candidates.rare"] for run in ("sequential", name)
    ]
    assert len(vocabularies[0]) > 50, "nothing was evicted"
    for a, b in zip(*(dataclasses.astuple(v.state()[1]) for v in vocabularies), strict=True):
        assert torch.equal(a, b)


def rows(run: Path) -> list[dict[str, Any]]:
    import json

    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]

"""Two processes (gloo) with unequal batches equal one process with all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

WORKER = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {random!r}]
import torch
torch.set_num_threads(1)
from random_samples import demo_schema
from model.config import TrainConfig
from model.trainer import Trainer
from model.ranks import join_ranks

def dense(trainer):
    return {{n: p.detach().clone() for n, p in trainer.model.named_parameters()}}

config = TrainConfig(
    schema=demo_schema(), samples=Path({samples!r}), dates=("2026-01-01",), out=Path({out!r}), token_budget=10**6,
    settings={{"dropout": "0"}}, warmup_steps=1, lr=1e-3, device="cpu", backend="torchrec" if {size} > 1 else "torch",
)
ranks = join_ranks("cpu")
trainer = Trainer(config, ranks, None)
counts = []
for step in range(2):
    for batches in trainer._steps():
        counts.append([len(b) for b in batches])
        loss, tasks = trainer._step(batches)
        trainer.position.step += 1
rows = {{}}
for table in trainer.embeddings.plan.tables:
    parts = [(s.first, s.weight.clone(), {{k: v.clone() for k, v in s.state.items()}}) for s in trainer.embeddings.tables.shards(table.name)]
    gathered = [p for part in ranks.gather(parts) for p in part]
    whole = torch.zeros(table.rows, table.dim)
    for first, weight, _ in gathered:
        whole[first:first + len(weight)] = weight
    rows[table.name] = whole
if ranks.chief:
    torch.save({{"dense": dense(trainer), "rows": rows, "loss": loss, "tasks": tasks, "counts": counts}}, {out!r} + ".pt")
"""


def launch(size: int, samples: Path, out: Path) -> dict:
    code = WORKER.format(
        root=str(ROOT), random=str(ROOT / "tests" / "tokenization"), samples=str(samples), out=str(out), size=size
    )
    script = out.with_suffix(".py")
    script.write_text(code)
    command = [sys.executable, str(script)]
    if size > 1:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={size}",
            str(script),
        ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(f"{out}.pt", weights_only=True)


def test_two_ranks_of_unequal_batches_equal_one_rank_of_both(schema, tmp_path) -> None:
    pytest.importorskip("torchrec")
    from random_samples import publish, random_table

    # Row groups of 25 and 5: the ranks' batches differ by five times.
    publish(tmp_path / "samples", schema, "2026-01-01", random_table(schema, "2026-01-01", 30), row_group=25)
    one = launch(1, tmp_path, tmp_path / "one")
    two = launch(2, tmp_path, tmp_path / "two")
    assert one["counts"][0] == [30] and two["counts"][0][0] in (25, 5)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert two["tasks"] == pytest.approx(one["tasks"], rel=1e-4)
    for kind in ("dense", "rows"):
        for name, expected in one[kind].items():
            torch.testing.assert_close(
                two[kind][name], expected, rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
            )

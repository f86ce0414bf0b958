"""`genrank train` and `genrank evaluate` as processes: killed by SIGKILL and given again, and bad input's one line and exit status."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_dense, steps_of
from model.evaluate import load_model

ROOT = Path(__file__).resolve().parents[2]
DAY = "2026-01-01"


@pytest.fixture(scope="module")
def schema_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("declared") / "declared.py"
    file.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'tests' / 'tokenization')!r})\n"
        "from random_samples import demo_schema\nschema = demo_schema()\n"
    )
    return file


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "genrank.py"), *map(str, arguments)]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(arguments: list[str]) -> tuple[int, str]:
    process = start(arguments)
    _, errors = process.communicate(timeout=240)
    return process.returncode, errors


def everything(run: Path) -> dict[str, torch.Tensor]:
    """Every number of a run's last checkpoint: parameters, tables, both optimizers."""
    step = steps_of(run)[-1]
    loaded = load_model(run, step=step)
    dense = load_dense(run / "checkpoints" / f"step-{step}")
    found = dict(loaded.model.state_dict())
    for name, state in dense["optimizer"].items():
        found |= {f"{name}/{key}": value for key, value in state.items()}
    for name, table in loaded.model.embeddings.tables.tables.items():
        found |= {f"{name}/weight": table.weight, f"{name}/second": table.second}
    return found


def test_a_process_killed_at_a_random_step_and_started_again_equals_one_never_killed(
    schema_file: Path, samples: Path, tmp_path: Path
) -> None:
    def run(out: Path) -> list[str]:
        return command(
            "train", "--schema", schema_file, "--samples", samples, "--dates", DAY, "--out", out, "--token-budget", 150,
            "--epochs", 4, "--checkpoint-every", 3, "--deterministic", "--device", "cpu", "--seed", 5,
        )  # fmt: skip

    assert finish(run(tmp_path / "whole"))[0] == 0
    last = steps_of(tmp_path / "whole")[-1]
    kill_at = random.randrange(2, last - 3)
    process = start(run(tmp_path / "killed"))
    log = tmp_path / "killed" / "log.jsonl"
    checkpoints = tmp_path / "killed" / "checkpoints"
    while process.poll() is None and not any(step >= kill_at for step in steps_of(checkpoints.parent)):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the process ended before it could be killed"
    assert steps_of(checkpoints.parent)[-1] < last and log.is_file()
    status, errors = finish(run(tmp_path / "killed"))
    assert status == 0, errors
    resumed, expected = everything(tmp_path / "killed"), everything(tmp_path / "whole")
    assert resumed.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(resumed[name], value), f"{name} differs after SIGKILL near step {kill_at}"

"""What release 0.1 wrote is read by this one, and means the same: samples, partials, checkpoints, schemas, fingerprints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from genrank.model.checkpoint import read_manifest
from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.evaluate import evaluate
from genrank.model.trainer import train
from genrank.schemas import load_schema
from genrank.schemas.present.serialization import from_json

ROOT = Path(__file__).resolve().parents[1]
RELEASE = ROOT / "tests" / "fixtures" / "release_0_1"
MODELS = ("mtgr", "din")

FINGERPRINTS = {
    "minimal": ("52d15e40cd79bd48", "d38bdf8df6ba0f29", "adef049066837161"),
    "marketplace": ("21059110b8323564", "69a8fc013c21d74f", "c3afd649abef7b87"),
    "kuairand": ("721c07ae9838c446", "5baa0f6412d5d0de", "b0ac09399a34913b"),
}
"""Of the examples' schemas, as release 0.1 printed them: whole, samples, model."""


@pytest.mark.parametrize("example", FINGERPRINTS)
def test_fingerprints_stay(example: str) -> None:
    schema = load_schema(str(ROOT / "examples" / example / "schema.py"))
    assert (schema.fingerprint, schema.samples_fingerprint, schema.model_fingerprint) == FINGERPRINTS[example]


@pytest.mark.parametrize("model", MODELS)
def test_a_schema_of_before_reads(model: str) -> None:
    schema = from_json((RELEASE / "runs" / model / "schema.json").read_bytes(), where="schema.json")
    written = json.loads((RELEASE / "runs" / model / "summary.json").read_text())
    assert schema.fingerprint == written["fingerprint"]


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_of_before_scores_as_it_did(model: str, tmp_path: Path) -> None:
    run = tmp_path / model
    shutil.copytree(RELEASE / "runs" / model, run)
    before = json.loads((run / "metrics.json").read_text())
    scores = pq.read_table(run / "predictions" / "dt=2026-01-03.parquet")
    now = evaluate(EvaluateConfig(run=run, samples=RELEASE, dates=("2026-01-03",)))
    for task, rows in before["tasks"].items():
        for name in ("model", "oracle"):
            for metric, estimate in rows[name].items():
                np.testing.assert_allclose(now.tasks[task][name][metric].value, estimate["value"], rtol=1e-5)
    again = pq.read_table(run / "predictions" / "dt=2026-01-03.parquet")
    for column in scores.column_names:
        np.testing.assert_allclose(again[column].to_numpy(), scores[column].to_numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_a_training_of_before_goes_on(model: str, tmp_path: Path) -> None:
    """The next day from the old checkpoint, optimizer state included."""
    origin = RELEASE / "runs" / model
    config = json.loads((origin / "config.json").read_text())
    done = train(
        TrainConfig(
            schema=read_manifest(origin / "checkpoints" / "step-2").declared,
            samples=RELEASE,
            dates=("2026-01-03",),
            out=tmp_path / "next",
            model=config["model"],
            settings=config["settings"],
            max_steps=2,
            token_budget=1024,
            from_checkpoint=origin,
        )
    )
    assert done.steps == 2


def test_what_was_built_before_is_still_up_to_date(tmp_path: Path) -> None:
    """Neither partials nor samples of release 0.1 are stale, and a later day builds on them."""
    built = tmp_path / "data"
    shutil.copytree(RELEASE / "built" / "data", built)
    shutil.copytree(RELEASE / "built" / "logs", tmp_path / "logs")
    for path, (_, mtime_ns, *_) in json.loads((built / "partials" / "footers.json").read_text()).items():
        os.utime(tmp_path / path, ns=(mtime_ns, mtime_ns))  # a checkout gives files a time of its own
    command = [sys.executable, "-m", "genrank", "status", "--schema", str(ROOT / "examples" / "minimal" / "schema.py")]
    command += ["--data", "logs", "--out", "data"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("up to date") == 3, done.stdout

"""Fixtures of the serving tests: random samples, and runs trained on them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from genrank.model.config import TrainConfig
from genrank.model.trainer import train
from genrank.serving.config import ExportConfig
from genrank.serving.export import export

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tokenization"))
sys.path.insert(0, str(Path(__file__).parents[1] / "model"))

DAYS = ("2026-01-01", "2026-01-02")


@pytest.fixture(scope="session")
def schema():
    from random_samples import demo_schema

    return demo_schema()


@pytest.fixture(scope="session")
def samples(schema, tmp_path_factory) -> Path:
    """Two random days as `genrank build --out` lays them out, several row groups each. Read only."""
    from random_samples import write_random_samples

    root = tmp_path_factory.mktemp("built")
    write_random_samples(root / "samples", schema, list(DAYS), users=30)
    return root


@pytest.fixture(scope="session")
def run(schema, samples, tmp_path_factory) -> Path:
    """A run of mtgr-tiny after a few steps. Read only."""
    out = tmp_path_factory.mktemp("runs") / "mtgr"
    train(
        TrainConfig(
            schema=schema, samples=samples, dates=DAYS[:1], out=out, token_budget=600, max_steps=3, device="cpu"
        )
    )
    return out


@pytest.fixture(scope="session")
def small_run(schema, samples, tmp_path_factory) -> Path:
    """A run of one layer. Read only."""
    out = tmp_path_factory.mktemp("runs") / "small"
    train(
        TrainConfig(
            schema=schema,
            samples=samples,
            dates=DAYS[:1],
            out=out,
            settings={"layers": "1", "tower": "[16]"},
            token_budget=600,
            max_steps=2,
            device="cpu",
        )
    )
    return out


@pytest.fixture(scope="session")
def exported(small_run, tmp_path_factory) -> Path:
    """What `genrank export` writes of it. Read only."""
    out = tmp_path_factory.mktemp("exports") / "small"
    export(ExportConfig(run=small_run, out=out, device="cpu"))
    return out

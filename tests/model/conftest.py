"""Fixtures of the model tests: random samples as the builder would publish them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from genrank.model.config import TrainConfig

# pytest's importlib mode puts no test folder on the path; the generator of random samples lives beside tokenization's tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "tokenization"))

DAYS = ("2026-01-01", "2026-01-02", "2026-01-03")


@pytest.fixture(scope="session")
def schema():
    from random_samples import demo_schema

    return demo_schema()


@pytest.fixture(scope="session")
def samples(schema, tmp_path_factory) -> Path:
    """Three random days as `genrank build --out` lays them out. Read only."""
    from random_samples import write_random_samples

    root = tmp_path_factory.mktemp("built")
    write_random_samples(root / "samples", schema, list(DAYS), users=40)
    return root


@pytest.fixture
def config(schema, samples, tmp_path) -> TrainConfig:
    return TrainConfig(
        schema=schema,
        samples=samples,
        dates=DAYS[:2],
        out=tmp_path / "run",
        token_budget=600,
        epochs=2,
        log_every=1,
        seed=3,
    )

"""Two-stage training (GRAB): which parameters learn in which phase, and who is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from genrank.model.config import TrainConfig
from genrank.model.evaluate import load_model
from genrank.model.trainer import train
from genrank.schemas.errors import UserError


def parts(run: Path) -> dict[str, dict[str, Tensor]]:
    """A run's tables, sequence network and auxiliary network."""
    model = load_model(run).model
    tables = {name: table.weight.detach().clone() for name, table in model.embeddings.tables.tables.items()}
    dense = {name: p.detach().clone() for name, p in model.named_parameters()}
    return {
        "tables": tables,
        "sequence": {name: p for name, p in dense.items() if name.startswith(("encoder.", "heads."))},
        "auxiliary": {name: p for name, p in dense.items() if name.startswith("auxiliary.")},
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    assert a.keys() == b.keys() and a
    return all(torch.equal(a[name], b[name]) for name in a)


def test_rows_learn_by_exposures_and_the_sequence_network_on_frozen_rows(schema, samples: Path, tmp_path: Path) -> None:
    def run(name: str, phase: str, steps: int, origin: str | None = None, view: str | None = None) -> Path:
        config = TrainConfig(
            schema=schema, samples=samples, dates=("2026-01-01",), out=tmp_path / name, model="grab-tiny", phase=phase,
            view=view, token_budget=300, max_steps=steps, warmup_steps=0, device="cpu", backend="torch",
            from_checkpoint=tmp_path / origin if origin else None,
        )  # fmt: skip
        return train(config).run

    # Stages follow one another; the first step's weights are those of a run of the same seed.
    sparse = parts(run("sparse", "sparse", 3, view="exposure"))
    longer = parts(run("longer", "sparse", 4, view="exposure"))
    assert same(sparse["sequence"], longer["sequence"])
    assert not same(sparse["tables"], longer["tables"]) and not same(sparse["auxiliary"], longer["auxiliary"])
    dense = parts(run("dense", "dense", 3, origin="sparse"))
    assert same(dense["tables"], sparse["tables"]) and same(dense["auxiliary"], sparse["auxiliary"])
    assert not same(dense["sequence"], sparse["sequence"])
    again = parts(run("again", "sparse", 2, origin="dense", view="exposure"))
    assert same(again["sequence"], dense["sequence"]) and not same(again["tables"], dense["tables"])


def test_models_without_an_auxiliary_network_are_refused(schema, samples: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        schema=schema, samples=samples, dates=("2026-01-01",), out=tmp_path / "run", model="mtgr-tiny", phase="sparse"
    )
    with pytest.raises(UserError, match="--phase sparse is for models with an auxiliary network"):
        train(config)

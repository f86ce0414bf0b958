"""Configurations of scoring: frozen, validated; flags and their help come from these fields."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from genrank.schemas.configuration import AT_LEAST_1, NOT_NEGATIVE, Configuration, Days, Flag
from genrank.schemas.errors import UserError


@dataclass(frozen=True)
class ScoreConfig(Configuration):
    """Scores of stored samples."""

    run: Annotated[Path, Flag(metavar="RUN")]
    """The --out folder of `genrank train`."""
    samples: Annotated[Path, Flag(metavar="DIR")]
    """The --out folder of `genrank build`, or its `samples` folder."""
    dates: Days
    """Days to score: both ends included, or one day."""
    out: Annotated[Path, Flag(metavar="DIR")]
    """Where scores go: DIR/scores/dt=.../."""
    checkpoint: Annotated[int | None, NOT_NEGATIVE, Flag(metavar="STEP")] = None
    """The step to score with. Default: the best, or else the newest."""
    token_budget: Annotated[int, AT_LEAST_1] = 16_384
    """Tokens of a batch at most."""
    device: str = "auto"
    """cpu, cuda or auto."""


@dataclass(frozen=True)
class ExportConfig(Configuration):
    """An export of a trained run."""

    run: Annotated[Path, Flag(metavar="RUN")]
    """The --out folder of `genrank train`."""
    out: Annotated[Path | None, Flag(metavar="DIR")] = None
    """The folder to write; an export that is there is replaced."""
    triton: Annotated[Path | None, Flag(metavar="DIR")] = None
    """Instead of --out: a model's folder in a model repository of NVIDIA's Triton Inference Server, such as models/ranker. The export becomes
    its next version."""
    compiled: bool = False
    """Compile the encoder's programs ahead of time (AOTInductor), for this kind of machine and this PyTorch alone. Needs a C++ compiler and
    some minutes."""
    checkpoint: Annotated[int | None, NOT_NEGATIVE, Flag(metavar="STEP")] = None
    """The step to export. Default: the best, or else the newest."""
    device: str = "auto"
    """cpu, cuda or auto: where it will be served."""

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.out is None) == (self.triton is None):
            raise UserError("give one folder to write: --out DIR, or --triton DIR for Triton Inference Server")
        return self

    @property
    def target(self) -> Path:
        """What was given of `out` and `triton`."""
        folder = self.out or self.triton
        assert folder is not None
        return folder

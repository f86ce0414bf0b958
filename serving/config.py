"""Configurations of scoring: frozen, validated; flags and their help come from these fields."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic.dataclasses import dataclass

from genrank.schemas.configuration import AT_LEAST_1, NOT_NEGATIVE, Configuration, Days, Flag


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

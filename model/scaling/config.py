"""Configuration of `genrank scale`: one base model, and what is changed of it, one thing at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, model_validator
from pydantic.dataclasses import dataclass

from genrank.model.config import BATCHES, EXECUTION, OPTIMIZERS
from genrank.schemas.configuration import (
    AT_LEAST_1,
    NOT_NEGATIVE,
    Configuration,
    Days,
    Flag,
    Panel,
    SchemaField,
    settings_text,
)
from genrank.schemas.errors import UserError

SWEEPS = Panel("What is swept")


def _listed(value: object) -> object:
    """`8,16,32`, as the command line has it."""
    return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Sizes = Annotated[
    tuple[Annotated[int, AT_LEAST_1], ...], BeforeValidator(_listed), Flag(metavar="N,N,...", is_text=True)
]
Seeds = Annotated[
    tuple[Annotated[int, NOT_NEGATIVE], ...], BeforeValidator(_listed), Flag(metavar="N,N,...", is_text=True)
]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed), Flag(metavar="NAME,NAME,...", is_text=True)]


@dataclass(frozen=True)
class ScaleConfig(Configuration):
    """Sweeps of history length, width and depth."""

    schema: SchemaField
    """The feature schema."""
    samples: Annotated[Path, Flag(metavar="DIR")]
    """The --out folder of `genrank build`, or its `samples` folder."""
    dates: Days
    """Training days, one pass: both ends included, or one day."""
    eval_dates: Days
    """Days to judge on, after training's."""
    out: Annotated[Path, Flag(metavar="DIR")]
    """Folder of the runs, and of scale.json, scale.html and scale.png. Runs that are complete are not made again."""
    model: str = "mtgr-tiny"
    """The base: mtgr-*, hstu-*, or another ranker on an encoder."""
    settings: Annotated[
        Mapping[str, str], BeforeValidator(settings_text), Flag(name="--set", metavar="FIELD=VALUE")
    ] = field(default_factory=dict)
    """Change a field of the base model's configuration, such as layers=4 (repeatable)."""
    # -------------------------------------------------- what is swept
    history: Annotated[Sizes, SWEEPS] = (8, 16, 32, 64, 128)
    """Events of each history that the model reads, the newest so many (mtgr-*, hstu-*); the base reads all."""
    width: Annotated[Sizes, SWEEPS] = (16, 32, 128, 256)
    """Widths of a token; those of heads follow in proportion."""
    depth: Annotated[Sizes, SWEEPS] = (1, 4, 8)
    """Numbers of layers."""
    baselines: Annotated[Names, SWEEPS] = ("din", "dlrm", "lightgbm")
    """Models drawn as lines, at their defaults."""
    seeds: Annotated[Seeds, SWEEPS] = (0, 1, 2)
    """Each point is trained with each; an interval takes three."""
    # -------------------------------------------------- training
    token_budget: Annotated[int, AT_LEAST_1, BATCHES] = 8_192
    """Tokens of a batch at most, of samples with their whole histories: every run of a seed has the same batches in the same order."""
    view: Annotated[Literal["user_day", "request", "session", "exposure"] | None, BATCHES] = None
    """What a training sample is. Default: the schema's `training.view`."""
    lr: Annotated[float, NOT_NEGATIVE, OPTIMIZERS] = 2e-3
    """Learning rate of AdamW, dense parameters."""
    sparse_lr: Annotated[float, NOT_NEGATIVE, OPTIMIZERS] = 0.05
    """Learning rate of embedding rows."""
    device: Annotated[str, EXECUTION] = "auto"
    """cpu, cuda or auto."""
    precision: Annotated[Literal["auto", "fp32", "bf16"], EXECUTION] = "auto"
    """bf16 is autocast over fp32 master weights; auto takes it on a GPU."""

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        for flag, days in (("--dates", self.dates), ("--eval-dates", self.eval_dates)):
            if not days:
                raise UserError(f"{flag}: give at least one day")
        if overlap := sorted(set(self.dates) & set(self.eval_dates)):
            raise UserError(f"--eval-dates {overlap[0]} is a training day too; judge on days after training's")
        if not self.seeds:
            raise UserError("--seeds: give at least one, better three")
        if not (self.history or self.width or self.depth):
            raise UserError("--history, --width and --depth are all empty: nothing is swept; give sizes for one")
        for flag, values in (
            ("--history", self.history),
            ("--width", self.width),
            ("--depth", self.depth),
            ("--seeds", self.seeds),
            ("--baselines", self.baselines),
        ):
            if len(set(values)) < len(values):
                raise UserError(f"{flag} {','.join(map(str, values))}: names one twice; give each once")
        return self

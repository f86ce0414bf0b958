"""What `genrank train` and `genrank evaluate` are told. Frozen; defaults are what a modeller starts from."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from genrank.schemas.errors import UserError
from genrank.schemas.schema import Schema


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    schema: Schema
    samples: Path
    """The --out folder of `genrank build` (or its `samples` folder)."""
    dates: tuple[str, ...]
    """Training days, read in this order."""
    out: Path
    """The run's folder. A run that was interrupted goes on when the same configuration is given again."""
    model: str = "mtgr-tiny"
    """A key of `model.ranker.MODELS`."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Fields of the model's configuration to change: `{"layers": "4", "head.kind": "mmoe"}`."""
    # -------------------------------------------------- how long
    epochs: int = 1
    max_steps: int = 0
    """Stop after so many optimizer steps; 0: when the epochs are over."""
    # -------------------------------------------------- batches
    token_budget: int = 8_192
    """Tokens of a batch at most, per rank."""
    accumulate: int = 1
    """Batches per optimizer step."""
    view: Literal["user_day", "request", "session"] | None = None
    """What a training sample is; None: the schema's `training.view`."""
    by_length: bool = False
    """Batches of similar lengths, sorted within the shuffle buffer: for models that pad."""
    # -------------------------------------------------- optimizers
    lr: float = 2e-3
    """AdamW, dense parameters."""
    sparse_lr: float = 0.05
    """Rowwise Adagrad (or what the table declares), embedding rows; each table multiplies it by its `lr_scale`."""
    sparse_state: Literal["device", "host"] = "device"
    """Where the tables' optimizer state is kept (backend "torch"): with their rows, or in host memory, to spare a GPU's."""
    weight_decay: float = 0.01
    warmup_steps: int = 50
    """Steps until the learning rates are reached; at most half of the run's."""
    decay: Literal["cosine", "linear", "none"] = "cosine"
    """Of the dense learning rate after warm-up, down to `final_lr` times the peak. The sparse one is warmed up only: Adagrad decays it."""
    final_lr: float = 0.1
    clip_norm: float = 1.0
    """Of the dense gradient; 0: off."""
    # -------------------------------------------------- evaluation on the way
    eval_dates: tuple[str, ...] = ()
    eval_every: int = 0
    """Steps between evaluations; 0: at the end of each epoch."""
    patience: int = 0
    """Stop after so many evaluations without a better mean GAUC, and keep the best; 0: never."""
    # -------------------------------------------------- where and how
    device: str = "auto"
    """`cpu`, `cuda` or `auto`."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 is autocast over fp32 master weights; `auto` takes it on a GPU."""
    backend: Literal["auto", "torchrec", "torch"] = "auto"
    """Of the embedding tables."""
    dense_parallel: Literal["ddp", "fsdp"] = "ddp"
    """Of the dense parameters with several processes: whole on each, or in shards (FSDP2), for dense parts too large for one."""
    lookups_ahead: bool = True
    """With sharded tables: begin the next batch's lookup while this one is computed. It reads the rows after this one's update."""
    compile: bool = False
    """torch.compile the encoder."""
    recompute: bool = False
    """Activation checkpointing: less memory, a third more compute."""
    deterministic: bool = False
    """Only deterministic algorithms; on a GPU the kernels then take fixed configurations instead of timing several."""
    seed: int = 0
    # -------------------------------------------------- safety
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: at the end of each epoch."""
    checkpoint_minutes: float = 10.0
    """Minutes of wall clock after which a checkpoint is due besides; 0: never."""
    keep_checkpoints: int = 2
    from_checkpoint: Path | None = None
    """A run's or checkpoint's folder to go on from, on other days (T+1)."""
    reset_tables: tuple[str, ...] = ()
    """With `from_checkpoint`: logical tables that start anew, because their dim or vocabulary changed."""
    spike_factor: float = 4.0
    """A batch whose loss exceeds so many times the running mean is skipped and named in the log; 0: off."""
    # -------------------------------------------------- what is told
    log_every: int = 10
    profile: bool = False
    """Write a PyTorch profiler trace of steps 10 to 15 to RUN/profile."""

    def __post_init__(self) -> None:
        counted = ("epochs", "token_budget", "accumulate", "log_every", "keep_checkpoints")
        for field_ in dataclasses.fields(self):
            value, low = getattr(self, field_.name), 1 if field_.name in counted else 0
            if isinstance(value, int | float) and not low <= value < math.inf:
                raise UserError(f"--{field_.name.replace('_', '-')} {value}: must be at least {low}")
        if self.final_lr > 1:
            raise UserError(f"--final-lr {self.final_lr}: it is a share of --lr; give one from 0 to 1")
        if not self.dates:
            raise UserError("--dates: give at least one training day")
        if self.patience and not self.eval_dates:
            raise UserError("--patience needs --eval-dates: early stopping watches their GAUC")
        if self.eval_every and not self.eval_dates:
            raise UserError("--eval-every needs --eval-dates: the days to evaluate on")
        if self.reset_tables and not self.from_checkpoint:
            raise UserError("--reset-table needs --from-checkpoint: without it every table starts anew")
        if overlap := sorted(set(self.dates) & set(self.eval_dates)):
            raise UserError(f"--eval-dates {overlap[0]} is a training day too; evaluate on days after training's")

    def as_json(self) -> dict[str, object]:
        """Everything but the schema, which has a file of its own."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "schema"}
        return json.loads(json.dumps(values, default=str))  # type: ignore[no-any-return]


FREE_TO_CHANGE = {
    "out",
    "samples",
    "device",
    "sparse_state",
    "dense_parallel",
    "lookups_ahead",
    "compile",
    "recompute",
    "log_every",
    "profile",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_checkpoints",
    "epochs",
    "max_steps",
}
"""Fields that an interrupted run may be resumed with a different value of."""


@dataclass(frozen=True)
class EvaluateConfig:
    """One evaluation of a trained run."""

    run: Path
    samples: Path
    dates: tuple[str, ...]
    out: Path | None = None
    """Where metrics go; default RUN/metrics.json."""
    checkpoint: int | None = None
    """The step to evaluate; default the best, or else the newest."""
    bootstrap: int = 200
    """Replicates of the intervals; 0: none."""
    token_budget: int = 16_384
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.bootstrap < 0:
            raise UserError(f"--bootstrap {self.bootstrap}: give how many replicates, or 0 for no intervals")


def samples_folder(path: Path) -> Path:
    """The folder with the `dt=...` folders: `path`, or `path/samples` where `genrank build` put them.

    Raises:
        UserError: neither exists.
    """
    path = Path(path)
    for candidate in (path / "samples", path):
        if any(candidate.glob("dt=*")):
            return candidate
    raise UserError(f"--samples {path}: no dt=YYYY-MM-DD folder in it; give the --out folder of `genrank build`")

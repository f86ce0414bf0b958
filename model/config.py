"""Configurations of `genrank train` and `genrank evaluate`: frozen, validated; defaults are what a modeller starts from.

Flags, their help and `--config` come from these fields (`genrank.schemas.configuration`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, model_validator
from pydantic.dataclasses import dataclass

from genrank.schemas.configuration import (
    AT_LEAST_1,
    CHANGEABLE,
    NOT_NEGATIVE,
    SHARE,
    Configuration,
    Days,
    Flag,
    Panel,
    SchemaField,
    changeable_fields,
    settings_text,
)
from genrank.schemas.errors import UserError

LENGTH = Panel("How long")
BATCHES = Panel("Batches")
OPTIMIZERS = Panel("Optimizers")
EVALUATION = Panel("Evaluation on the way")
EXECUTION = Panel("Where and how")
CHECKPOINTS = Panel("Checkpoints")
REPORTING = Panel("Logs")


@dataclass(frozen=True)
class TrainConfig(Configuration):
    """One training run."""

    schema: SchemaField
    """The feature schema."""
    samples: Annotated[Path, Flag(metavar="DIR"), CHANGEABLE]
    """The --out folder of `genrank build`, or its `samples` folder."""
    dates: Days
    """Training days, read in this order: both ends included, or one day."""
    out: Annotated[Path, Flag(metavar="RUN"), CHANGEABLE]
    """The run's folder. A run that was interrupted goes on when the same configuration is given again."""
    model: str = "mtgr-tiny"
    """mtgr-{tiny,small,medium,large}, hstu-{tiny,small,large,paper}, heteroatt, hiformer, hhft (each also -tiny),
    rankmixer-{tiny,100m,1b}, tokenmixer-tiny, longer-{tiny,base,inner}, onetrans-{tiny,small,large}, grab-{tiny,base},
    ultra-hstu-{tiny,base,channels}, din, dlrm, dcn, sasrec, lightgbm; hstu-retrieval-{tiny,small,large,paper}, sasrec-retrieval;
    path/to/file.py:NAME for one of your own."""
    settings: Annotated[
        Mapping[str, str], BeforeValidator(settings_text), Flag(name="--set", metavar="FIELD=VALUE")
    ] = field(default_factory=dict)
    """Change a field of the model's configuration, such as layers=4 or head.kind=mmoe (repeatable)."""
    # -------------------------------------------------- how long
    epochs: Annotated[int, AT_LEAST_1, LENGTH, CHANGEABLE] = 1
    """Passes over the days."""
    max_steps: Annotated[int, NOT_NEGATIVE, LENGTH, CHANGEABLE] = 0
    """Stop after so many optimizer steps; 0: when the epochs are over."""
    phase: Annotated[Literal["both", "dense", "sparse"], LENGTH] = "both"
    """What learns: both; dense: the network, with the tables' rows frozen; sparse: the rows, through an auxiliary network (grab).
    Two-stage training: sparse with --view exposure, then dense with --from-checkpoint."""
    # -------------------------------------------------- batches
    token_budget: Annotated[int, AT_LEAST_1, BATCHES] = 8_192
    """Tokens of a batch at most, per rank."""
    accumulate: Annotated[int, AT_LEAST_1, BATCHES] = 1
    """Batches per optimizer step."""
    view: Annotated[Literal["user_day", "request", "session", "exposure"] | None, BATCHES] = None
    """What a training sample is. Default: the schema's `training.view`."""
    by_length: Annotated[bool, BATCHES] = False
    """Batches of similar lengths, sorted within the shuffle buffer: for models that pad."""
    readers: Annotated[int | None, NOT_NEGATIVE, BATCHES, CHANGEABLE] = None
    """Processes that read samples; 0: a thread of this one. Default: 1 for a GPU, 0 for a CPU."""
    # -------------------------------------------------- optimizers
    lr: Annotated[float, NOT_NEGATIVE, OPTIMIZERS] = 2e-3
    """Learning rate of AdamW, dense parameters."""
    sparse_lr: Annotated[float, NOT_NEGATIVE, OPTIMIZERS] = 0.05
    """Learning rate of rowwise Adagrad (or what the table declares), embedding rows; each table multiplies it by its `lr_scale`."""
    sparse_state: Annotated[Literal["device", "host"], OPTIMIZERS, CHANGEABLE] = "device"
    """Where the tables' optimizer state is kept (backend torch): with their rows, or in host memory, to spare a GPU's."""
    weight_decay: Annotated[float, NOT_NEGATIVE, OPTIMIZERS] = 0.01
    """AdamW's, of matrices."""
    warmup_steps: Annotated[int, NOT_NEGATIVE, OPTIMIZERS] = 50
    """Steps until the learning rates are reached; at most half of the run's."""
    decay: Annotated[Literal["cosine", "linear", "none"], OPTIMIZERS] = "cosine"
    """Of --lr after warm-up, down to --final-lr times the peak. --sparse-lr is warmed up only: Adagrad decays it."""
    final_lr: Annotated[float, SHARE, OPTIMIZERS] = 0.1
    """Where the decay ends, as a share of --lr, from 0 to 1."""
    clip_norm: Annotated[float, NOT_NEGATIVE, OPTIMIZERS] = 1.0
    """Largest norm of the dense gradient; 0: off."""
    # -------------------------------------------------- evaluation on the way
    eval_dates: Annotated[Days, EVALUATION] = ()
    """Days to evaluate on during training."""
    eval_every: Annotated[int, NOT_NEGATIVE, EVALUATION] = 0
    """Steps between evaluations; 0: at the end of each epoch."""
    patience: Annotated[int, NOT_NEGATIVE, EVALUATION] = 0
    """Stop after so many evaluations without a better mean GAUC, and keep the best; 0: never."""
    # -------------------------------------------------- where and how
    device: Annotated[str, EXECUTION, CHANGEABLE] = "auto"
    """cpu, cuda or auto."""
    precision: Annotated[Literal["auto", "fp32", "bf16"], EXECUTION] = "auto"
    """bf16 is autocast over fp32 master weights; auto takes it on a GPU."""
    backend: Annotated[Literal["auto", "torchrec", "torch"], EXECUTION] = "auto"
    """Of the embedding tables."""
    dense_parallel: Annotated[Literal["ddp", "fsdp"], EXECUTION, CHANGEABLE] = "ddp"
    """Of the dense parameters with several processes: whole on each, or in shards (FSDP2), for dense parts too large for one."""
    lookups_ahead: Annotated[bool, EXECUTION, CHANGEABLE] = True
    """With sharded tables: begin the next batch's lookup while this one is computed. It reads the rows after this one's update."""
    compile: Annotated[bool, EXECUTION, CHANGEABLE] = False
    """torch.compile what is computed of features' vectors: tokens, encoder, tower and heads."""
    recompute: Annotated[bool, EXECUTION, CHANGEABLE] = False
    """Activation checkpointing: less memory, a third more compute."""
    deterministic: Annotated[bool, EXECUTION] = False
    """The same weights, to the bit: only deterministic algorithms; on a GPU kernels then take fixed configurations."""
    seed: Annotated[int, NOT_NEGATIVE, EXECUTION] = 0
    """Of initial weights, shuffling and dropout."""
    # -------------------------------------------------- checkpoints
    checkpoint_every: Annotated[int, NOT_NEGATIVE, CHECKPOINTS, CHANGEABLE] = 0
    """Steps between checkpoints; 0: at the end of each epoch."""
    checkpoint_minutes: Annotated[float, NOT_NEGATIVE, CHECKPOINTS, CHANGEABLE] = 10.0
    """Minutes of wall clock after which a checkpoint is due besides; 0: never."""
    keep_checkpoints: Annotated[int, AT_LEAST_1, CHECKPOINTS, CHANGEABLE] = 2
    """So many of the newest; the best one stays."""
    from_checkpoint: Annotated[Path | None, Flag(metavar="RUN"), CHECKPOINTS] = None
    """A run's or checkpoint's folder to go on from, on other days (T+1)."""
    reset_tables: Annotated[tuple[str, ...], Flag(name="--reset-table", metavar="NAME"), CHECKPOINTS] = ()
    """With --from-checkpoint: a logical table that starts anew, because its dim or vocabulary changed (repeatable)."""
    spike_factor: Annotated[float, NOT_NEGATIVE, OPTIMIZERS] = 4.0
    """A batch whose loss exceeds so many times the running mean is skipped and named in the log; 0: never."""
    # -------------------------------------------------- logs
    log_every: Annotated[int, AT_LEAST_1, REPORTING, CHANGEABLE] = 10
    """Steps between lines of log.jsonl."""
    profile: Annotated[bool, REPORTING, CHANGEABLE] = False
    """Write a PyTorch profiler trace of steps 10 to 15 to RUN/profile."""

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
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
        return self


FREE_TO_CHANGE = changeable_fields(TrainConfig)
"""Fields that an interrupted run may be resumed with a different value of."""


@dataclass(frozen=True)
class EvaluateConfig(Configuration):
    """One evaluation of a trained run."""

    run: Annotated[Path, Flag(metavar="RUN")]
    """The --out folder of `genrank train`."""
    samples: Annotated[Path, Flag(metavar="DIR")]
    """The --out folder of `genrank build`, or its `samples` folder."""
    dates: Days
    """Days to evaluate on: both ends included, or one day."""
    out: Annotated[Path | None, Flag(metavar="FILE")] = None
    """Where metrics go. Default: RUN/metrics.json."""
    checkpoint: Annotated[int | None, NOT_NEGATIVE, Flag(metavar="STEP")] = None
    """The step to evaluate. Default: the best, or else the newest."""
    bootstrap: Annotated[int, NOT_NEGATIVE] = 200
    """Replicates of the intervals; 0: none."""
    importance: bool = False
    """Also measure what shuffling each feature and token group costs, on 50,000 candidates at most: an evaluation of them a feature."""
    token_budget: Annotated[int, AT_LEAST_1] = 16_384
    """Tokens of a batch at most."""
    device: str = "auto"
    """cpu, cuda or auto."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Of the intervals' replicates, and of importance's shuffling."""


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

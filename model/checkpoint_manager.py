"""How far training is, when that is saved, and how a killed run or another day's goes on from it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from genrank.model.checkpoint import (
    DenseState,
    load_dense,
    load_optimizer_state,
    load_weights,
    newest_whole,
    optimizer_state,
    read_manifest,
    save_checkpoint,
    steps_of,
)
from genrank.model.config import TrainConfig
from genrank.model.documents import ModelIdentity
from genrank.model.parallel import whole_state
from genrank.model.ranks import Ranks
from genrank.model.run_dir import RunDir
from genrank.schemas.console import logger
from genrank.schemas.errors import UserError
from genrank.tokenization.checkpoint import load_tables
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.reader import SampleReader


@dataclass
class Position:
    """How far training is; with the reader's state, all that a resume needs: a step's randomness is a function of
    (seed, step, rank)."""

    step: int = 0
    epoch: int = 0
    total_steps: int = 0
    """Of the whole training, for the learning rate's decay; fixed when training begins."""
    running_loss: float = math.nan
    spikes: int = 0
    samples: int = 0
    candidates: int = 0
    tokens: int = 0
    flops: int | None = 0
    """Floating point operations of all steps, on all ranks; None where a checkpoint that didn't count them was gone on from."""
    seconds: float = 0.0
    """Of all steps, evaluations and checkpoints left out."""
    timed_steps: int = 0
    """Those that rates are taken over: not the first ones of a process, which compile and tune (`model.progress.SETTLING_STEPS`)."""
    timed_seconds: float = 0.0
    timed_samples: int = 0
    timed_tokens: int = 0
    timed_flops: int = 0
    waited_seconds: float = 0.0
    """Of the timed ones, in which the host waited for batches."""
    best: float = -math.inf
    best_step: int = 0
    worse: int = 0
    """Evaluations since the best one."""
    log_lines: int = 0


class CheckpointManager:
    """A run's checkpoints: when all ranks write one, and how training begins from one.

    By steps (`checkpoint_every`) and by the clock (`checkpoint_minutes`). The clock is rank 0's: its word travels with the counts that
    ranks add up after a step, and holds for the step after that one, whose successor no rank has begun yet.
    """

    def __init__(
        self,
        config: TrainConfig,
        ranks: Ranks,
        model: nn.Module,
        embeddings: Embeddings,
        optimizer: torch.optim.Optimizer,
        reader: SampleReader,
        folder: RunDir | None,
        builds: Mapping[str, str],
        fields: Mapping[str, str],
    ) -> None:
        self.config, self.ranks, self.reader, self.folder, self.builds = config, ranks, reader, folder, builds
        self.model, self.embeddings, self.optimizer, self.fields = model, embeddings, optimizer, fields
        self._saved_step = -1
        self._saved_at = time.monotonic()
        self._clock_step = -1

    # ------------------------------------------------------------------ when

    def due(self, step: int) -> bool:
        """Whether all ranks save after so many steps."""
        every = self.config.checkpoint_every
        return step == self._clock_step or (every > 0 and step % every == 0)

    def overdue(self) -> bool:
        """Whether rank 0's clock asks for a checkpoint; False on the others."""
        minutes = self.config.checkpoint_minutes
        return self.ranks.is_main and minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes

    def save_after(self, step: int) -> None:
        """All ranks know of rank 0's wish: the checkpoint is of `step`, unless one is agreed on already."""
        if self._clock_step < step - 1:
            self._clock_step = step

    # ------------------------------------------------------------------ out

    def save(self, at: Position, reader_state: dict[str, int]) -> None:
        """Write this step's checkpoint; every rank calls it, and its reader's state is in it."""
        if at.step == self._saved_step:
            return
        at.log_lines = self.folder.lines if self.folder else 0
        save_checkpoint(
            self.config.out,
            at.step,
            schema=self.config.schema,
            model=self._identity(),
            dense={
                "model": whole_state(self.model),
                "optimizer": optimizer_state(self.model, self.optimizer),
                "position": dataclasses.asdict(at),
                "readers": cast(list[dict[str, int]], self.ranks.gather(reader_state)),
            },
            embeddings=self.embeddings,
            ranks=self.ranks,
            builds=self.builds,
            keep=self.config.keep_checkpoints,
            protect=[at.best_step] if self.config.patience else [],
        )
        self._saved_step, self._saved_at = at.step, time.monotonic()

    # ------------------------------------------------------------------ in

    def restore(self, origin: Path | None) -> Position:
        """Go on from this run's own newest checkpoint that is whole; or begin with the weights of `origin`, a checkpoint; or begin.

        Raises:
            UserError: every checkpoint is damaged; or the newest is of another model, of samples that were built again since, or of another number of processes in the middle of an epoch.
        """
        run, own = self.config.out, steps_of(self.config.out)
        at = self._resumed(newest_whole(run, own[::-1], report=self.ranks.is_main)) if own else self._begun(origin)
        if self.folder:
            self.folder.rewind(at.log_lines)
        return at

    def _resumed(self, folder: Path) -> Position:
        self._require_same_samples(folder)
        state = self._load(folder)
        at = _position(state, folder)
        self._saved_step = at.step
        readers = state["readers"]
        if len(readers) == self.ranks.size:
            self.reader.load_state_dict(readers[self.ranks.rank])
        else:
            self._begin_epoch(at, folder, readers)
        return at

    def _require_same_samples(self, folder: Path) -> None:
        """What was learned and what is left to learn must be one data set; days evaluated on the way may differ, which is logged."""
        before = read_manifest(folder).builds
        rebuilt = [day for day, build in before.items() if self.builds.get(day, build) != build]
        for day in rebuilt:
            text = f"--samples {self.config.samples}: {day} was built again since {folder} (build {before[day]}, now {self.builds[day]})"
            if day in self.config.dates:
                raise UserError(
                    f"{text}; going on would mix the two. Give a new --out, with --from-checkpoint {self.config.out} to keep what"
                    " was learned, or remove the folder to start over"
                )
            if self.ranks.is_main:
                logger.warning(f"{text}; evaluations before and after can't be compared")

    def _begin_epoch(self, at: Position, folder: Path, readers: list[dict[str, int]]) -> None:
        """Go on with another number of processes than wrote the checkpoint: only between epochs does one position say for all what
        has been read."""
        if any(reader["window"] or reader["batches"] or reader["epoch"] != at.epoch for reader in readers):
            raise UserError(
                f"{folder} was written in the middle of an epoch by {len(readers)} processes and {self.ranks.size} resume it; start"
                f" as many, or give a new --out with --from-checkpoint {self.config.out}, which begins the days anew"
            )
        self.reader.load_state_dict({**self.reader.state_dict(), "epoch": at.epoch})
        at.total_steps = self._total_steps(at)

    def _begun(self, origin: Path | None) -> Position:
        if origin:
            model, wanted = read_manifest(origin).model, self._identity()
            if (model.name, dict(model.settings)) != (wanted.name, dict(wanted.settings)):
                raise UserError(
                    f"--from-checkpoint {self.config.from_checkpoint}: it is of model {model}, not of"
                    f" {wanted}; give the same --model and --set"
                )
            self._load(origin, origin=True)
        at = Position()
        at.total_steps = self._total_steps(at)
        return at

    def _total_steps(self, at: Position) -> int:
        """The step at which training ends if nothing stops it early, counted from the beginning of an epoch; the same on all ranks."""
        config = self.config
        most = config.max_steps - at.step if config.max_steps else 0
        own = self.reader.count_batches(range(at.epoch, config.epochs), most * config.accumulate)
        steps = at.step + steps_of_batches(self.ranks.gather(own), config.accumulate)  # type: ignore[arg-type]
        return min(steps, config.max_steps) if config.max_steps else steps

    def _load(self, folder: Path, *, origin: bool = False) -> DenseState:
        """Model, tables and optimizer from a checkpoint; returns its dense part."""
        state = load_dense(folder)
        load_weights(self.model, state["model"], folder, grown=origin)
        load_optimizer_state(self.model, self.optimizer, state["optimizer"])
        load_tables(self.embeddings, folder / "tables", reset=self.config.reset_tables if origin else ())
        return state

    def _identity(self) -> ModelIdentity:
        return ModelIdentity(name=self.config.model, settings=dict(self.config.settings), fields=self.fields)


def _position(state: DenseState, folder: Path) -> Position:
    known = {field.name for field in dataclasses.fields(Position)}
    if strange := sorted(set(state["position"]) - known):
        raise UserError(
            f"{folder}: its position has {strange[0]}, which this version doesn't know; use the version that wrote it"
        )
    return Position(**{"flops": None, **state["position"]})  # type: ignore[arg-type]


def steps_of_batches(batches: Sequence[Sequence[int]], accumulate: int) -> int:
    """Optimizer steps of some epochs, from each rank's batches in each: all ranks take as many as the one that has most
    (`model.prefetch.in_step`), and an epoch's last step takes what is left.

    >>> steps_of_batches([[5, 4], [3, 6]], accumulate=2)
    6
    """
    return sum(math.ceil(max(epoch) / accumulate) for epoch in zip(*batches, strict=True))

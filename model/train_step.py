"""One optimizer step: losses of a group of batches, a guard against the ones not to learn from, gradients over ranks, both optimizers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from genrank.model.checkpoint_manager import Position
from genrank.model.config import TrainConfig
from genrank.model.documents import GuardRow
from genrank.model.input_guard import not_finite
from genrank.model.interface import Model
from genrank.model.losses import total_loss
from genrank.model.optimizer import adamw
from genrank.model.parallel import spread, unsynchronised
from genrank.model.ranks import Ranks
from genrank.model.run_dir import RunDir
from genrank.model.tasks.base import AnyTask
from genrank.schemas.errors import UserError
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings

SPIKE_WARMUP = 30
"""Steps before the running mean of the loss is trusted."""
SPIKES_IN_A_ROW = 5
"""So many skipped steps are no accident of one batch: training stops."""


def trains_in_bf16(config: TrainConfig, ranks: Ranks) -> bool:
    """Whether a step runs under autocast."""
    return config.precision == "bf16" or (config.precision == "auto" and ranks.device.type == "cuda")


class TrainStep:
    """A model with its optimizers, which learns a step's batches at a time.

    Args:
        model: on its device; spread over the ranks here.
        task: what it learns.
        folder: where skipped and refused batches are logged; None: not on this rank.
    """

    def __init__(
        self,
        model: Model,
        task: AnyTask,
        embeddings: Embeddings,
        config: TrainConfig,
        ranks: Ranks,
        folder: RunDir | None,
    ) -> None:
        self.model, self.task, self.embeddings = model, task, embeddings
        self.config, self.ranks, self.folder = config, ranks, folder
        self.objectives = task.objectives
        self.bf16 = trains_in_bf16(config, ranks)
        self.wrapped = spread(model, ranks, config.dense_parallel)
        self.optimizer = adamw(model, config.lr, config.weight_decay)

    def run(self, batches: list[Batch], at: Position) -> tuple[float, dict[str, float]]:
        """One optimizer step; returns the mean loss and each task's.

        Gradients are weighted by the global sum of weights, over ranks and accumulated batches: how samples fall into batches does
        not change what is minimised.

        Raises:
            UserError: the loss is not a number, or too many spikes in a row.
        """
        self._set_learning_rate(at)
        torch.manual_seed(_mix(self.config.seed, at.step, self.ranks.rank))
        weights_of = [self.task.weights(self.model, batch) for batch in batches]
        normalisers = self.ranks.sum(torch.stack(weights_of).sum(0))
        learned, weighed = [0.0] * len(self.objectives), [0.0] * len(self.objectives)
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            with contextlib.nullcontext() if last else self._gather_gradients():
                sums = self._loss_sums(batch)
                # DDP and the sharded tables average over ranks; the normaliser is already global.
                loss = total_loss(sums, normalisers, self.objectives) * self.ranks.size
                each = torch.stack([s.detach() for s in sums.values()]).double()
                found, weights = self._read(each, weights_of[i])
                weighed = [a + b for a, b in zip(weighed, weights, strict=True)]
                if self._is_sane(found, weights, batch, at):
                    torch.autograd.backward(loss)
                    learned = [a + b for a, b in zip(learned, found, strict=True)]
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        tasks = {task.name: mean for task, mean in zip(self.objectives, _means(learned, weighed), strict=True)}
        return sum(task.weight * tasks[task.name] for task in self.objectives), tasks

    @property
    def lr(self) -> float:
        """The dense learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def _set_learning_rate(self, at: Position) -> None:
        config = self.config
        warm = min(1.0, (at.step + 1) / max(warmup(config, at.total_steps), 1))
        self.embeddings.lr = config.sparse_lr * warm
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * warm * decay_factor(config, at.step, at.total_steps)

    def _loss_sums(self, batch: Batch) -> dict[str, Tensor]:
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.bf16):
            output: dict[str, Tensor] = self.wrapped(batch)
        return self.task.loss_sums(output, batch)

    @contextlib.contextmanager
    def _gather_gradients(self) -> Iterator[None]:
        """Backward only adds up: no reduction over ranks, no sparse update."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.embeddings.accumulate())
            stack.enter_context(unsynchronised(self.wrapped))
            yield

    # ------------------------------------------------------------------ the guard

    def _read(self, sums: Tensor, weights: Tensor) -> tuple[list[float], list[float]]:
        """Each task's loss sum and weight over all ranks. The one moment of a step at which the host waits for the device: whether
        to learn from the batch is decided before backward begins, and what the step reports is known then."""
        total_sums, total_weights = self.ranks.sum(torch.stack([sums.to(weights.device), weights])).tolist()
        return total_sums, total_weights

    def _is_sane(self, sums: list[float], weights: list[float], batch: Batch, at: Position) -> bool:
        """Whether to learn from a batch, decided before anything is updated and by all ranks alike."""
        config = self.config
        loss = sum(task.weight * mean for task, mean in zip(self.objectives, _means(sums, weights), strict=True))
        if not math.isfinite(loss):
            where = self._name_batch(batch, "nan", loss, at)
            if batch.sample_id and (wrong := not_finite(batch)):
                raise UserError(
                    f"the loss is {loss} at step {at.step + 1}: {wrong}; nothing of {where} was learned. Fix the source's column and"
                    " build the day again (`genrank build` quarantines infinite numbers)"
                )
            raise UserError(
                f"the loss is {loss} at step {at.step + 1}, on {where}; nothing of the batch was learned. Lower --lr, look at the"
                f" batch's samples (`genrank show`), and run again: it goes on from the last checkpoint"
            )
        spike = config.spike_factor and at.step >= SPIKE_WARMUP and loss > config.spike_factor * at.running_loss
        if spike:
            at.spikes += 1
            where = self._name_batch(batch, "spike", loss, at)
            if at.spikes >= SPIKES_IN_A_ROW:
                raise UserError(
                    f"the loss was above {config.spike_factor:g} times its running mean in {at.spikes} steps in a row, last at step"
                    f" {at.step + 1} on {where}: training diverges; lower --lr or raise --warmup-steps"
                )
            return False
        at.spikes = 0
        at.running_loss = loss if math.isnan(at.running_loss) else 0.98 * at.running_loss + 0.02 * loss
        return True

    def _name_batch(self, batch: Batch, event: str, loss: float, at: Position) -> str:
        """Write the batch's samples to the log, and say which they are in a few words."""
        ids = batch.sample_id
        if self.folder:
            self.folder.log(GuardRow(step=at.step, event=event, loss=str(loss), sample_ids=ids))
        if not ids:
            return "a batch of another rank (named in log.jsonl only where rank 0 has it)"
        return f"the batch of {len(ids)} samples from {ids[0]} to {ids[-1]} (all named in log.jsonl)"


def _means(sums: list[float], weights: list[float]) -> list[float]:
    return [total / max(weight, 1e-12) for total, weight in zip(sums, weights, strict=True)]


def warmup(config: TrainConfig, total: int) -> int:
    """Steps of warm-up: at most half of all, so that a short run reaches its learning rate."""
    return min(config.warmup_steps, total // 2)


def decay_factor(config: TrainConfig, step: int, total: int) -> float:
    """The dense learning rate at a step, as a share of its peak (warm-up aside)."""
    if config.decay == "none":
        return 1.0
    warm = warmup(config, total)
    done = min(1.0, max(0, step - warm) / max(total - warm, 1))
    shape = 0.5 * (1 + math.cos(math.pi * done)) if config.decay == "cosine" else 1 - done
    return config.final_lr + (1 - config.final_lr) * shape


def _mix(seed: int, step: int, rank: int) -> int:
    """A seed for one step of one rank."""
    return (seed * 1_000_003 + step) * 1_009 + rank

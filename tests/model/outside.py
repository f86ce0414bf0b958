"""An encoder, a model and a task of someone who uses the package: what docs/extending.md shows. `--model tests/model/outside.py:NAME`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.documents import Evaluation
from genrank.model.encoders import Candidates, Encoder, EncoderConfig
from genrank.model.heads import HeadConfig, Heads
from genrank.model.interface import Model
from genrank.model.losses import Weighted
from genrank.model.metrics import Estimate
from genrank.model.ranks import Ranks
from genrank.model.registry import ModelSpec, encoder_spec
from genrank.model.tasks.base import LoadedRun, Metrics, Objective, Task
from genrank.model.validation import Checked, Positive, Share
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.jagged_tokens import Tokens
from genrank.tokenization.reader import SampleReader

# ---------------------------------------------------------------------- an encoder


@dataclass(frozen=True)
class PoolConfig(EncoderConfig):
    """Fields that `--set` changes."""

    hidden: Positive = 32
    dropout: Share = 0.0


class Sums(NamedTuple):
    """A request's state."""

    offsets: Tensor
    """[B+1] int64."""
    totals: Tensor
    """[S+1, dim]: running sums over all tokens, from zero."""


class Pool(Encoder[Sums]):
    """The sum of what a candidate sees, times the candidate."""

    config: PoolConfig

    def __init__(self, config: PoolConfig) -> None:
        super().__init__(config)
        self.event = nn.Sequential(
            nn.Linear(config.dim, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.dim)
        )
        self.dropout = nn.Dropout(config.dropout)

    def user_state(self, sequence: Tokens, beside: Tensor | None = None) -> Sums:
        """Once a request."""
        rows: Tensor = self.event(sequence.x)
        return Sums(sequence.offsets.long(), torch.cat([rows.new_zeros((1, rows.shape[1])), rows.cumsum(0)]))

    def score(self, state: Sums, candidates: Candidates) -> Tensor:
        """[C, dim]."""
        start = state.offsets[:-1][candidates.owner]
        seen = state.totals[start + candidates.end] - state.totals[start + candidates.begin]
        out: Tensor = self.dropout(candidates.x[:, 0] * seen)
        return out


POOL = encoder_spec("pool", PoolConfig(dim=16), Pool)

# ---------------------------------------------------------------------- a model


@dataclass(frozen=True)
class ItemOnlyConfig(Checked):
    """Fields that `--set` changes."""

    hidden: Positive = 16


class ItemOnly(Model):
    """The candidate's own features, and nothing of the user."""

    several_ranks: ClassVar[bool] = False

    def __init__(self, embeddings: Embeddings, labels: Sequence[str], config: ItemOnlyConfig, head: HeadConfig) -> None:
        super().__init__()
        self.tables = embeddings
        self.hidden = nn.Linear(embeddings.width("candidates"), config.hidden)
        self.heads = Heads(config.hidden, labels, head)

    @property
    def embeddings(self) -> Embeddings:
        """The features' tables."""
        return self.tables

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{label: logit [C]}."""
        logits: dict[str, Tensor] = self.heads(self.hidden(self.tables(batch)["candidates"]).relu())
        return logits


ITEM_ONLY = ModelSpec("item-only", ItemOnlyConfig(), ItemOnly)

# ---------------------------------------------------------------------- a task


class Dwell(Task[Model]):
    """How many candidates a user is shown: a number a sample, learned by squared error."""

    name: ClassVar[str] = "dwell"
    headline: ClassVar[str] = "minus_mse"
    headings: ClassVar[Mapping[str, str]] = {"minus_mse": "-MSE"}

    @property
    def objectives(self) -> Sequence[Weighted]:
        """The one loss."""
        return [Objective("shown", 1.0)]

    def weights(self, model: Model, batch: Batch) -> Tensor:
        """float64 [1]: samples."""
        return torch.tensor([float(len(batch))], dtype=torch.float64, device=batch.user.device)

    def loss_sums(self, output: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Squared error of the logarithm."""
        return {"shown": (output["shown"] - batch.candidates.lengths.float().log1p()).square().sum()}

    def _minus_mse(self, model: Model, samples: Path, dates: Sequence[str]) -> Estimate:
        total, count = 0.0, 0
        with torch.inference_mode():
            for batch in SampleReader(samples, self.schema, list(dates), shuffle=False, token_budget=2000):
                total += float(self.loss_sums(model.eval()(batch), batch)["shown"])
                count += len(batch)
        model.train()
        return Estimate(-total / count)

    def validate(self, model: Model, config: TrainConfig, samples: Path, ranks: Ranks, *, bf16: bool) -> Metrics:
        """On the evaluation days."""
        return {"shown": {"minus_mse": self._minus_mse(model, samples, config.eval_dates)}}

    def evaluate(self, model: Model, run: LoadedRun, config: EvaluateConfig, samples: Path, ranks: Ranks) -> Evaluation:
        """On some days."""
        found = {"minus_mse": self._minus_mse(model, samples, config.dates)}
        return Evaluation(
            model=run.model, step=run.step, dates=list(config.dates), task=self.name, tasks={"shown": {"model": found}}
        )


class UserOnly(Model):
    """The user's features."""

    def __init__(self, embeddings: Embeddings, labels: Sequence[str], config: ItemOnlyConfig, head: HeadConfig) -> None:
        super().__init__()
        self.tables = embeddings
        self.out = nn.Linear(embeddings.width("user"), 1)

    @property
    def embeddings(self) -> Embeddings:
        """The features' tables."""
        return self.tables

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{"shown": [B]}."""
        return {"shown": self.out(self.tables(batch)["user"]).squeeze(1)}


USER_ONLY = ModelSpec("user-only", ItemOnlyConfig(), UserOnly, task="dwell", heads=False)

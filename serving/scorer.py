"""What scores samples: the one interface of servers, replays and benchmarks, and a training run behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, Self

import pyarrow as pa
import torch

from genrank.model.evaluate import LoadedModel, load_model
from genrank.schemas.errors import UserError
from genrank.schemas.schema import Schema
from genrank.serving.model_scorer import ModelScorer, Scores
from genrank.serving.user_cache import UserCache


class Scorer(Protocol):
    """Scores the candidates of samples."""

    @property
    def schema(self) -> Schema:
        """What the samples are of."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of the schema, as the model was trained with it."""
        ...

    @property
    def tasks(self) -> tuple[str, ...]:
        """The labels, in the order of the scores' columns."""
        ...

    def score(self, rows: pa.RecordBatch) -> Scores:
        """[candidates, tasks] float32: the probability of each binary label, the expected value of another; the samples' candidates in order
        of the samples.

        Args:
            rows: samples of the schema (`serving.sample_rows.request_schema`), without labels.

        Raises:
            UserError: the rows aren't of the schema.
        """
        ...


class CheckpointScorer(ModelScorer):
    """A training run's model.

    Args:
        loaded: the model.
        device, micro_batch, cache: as of `ModelScorer`.
    """

    def __init__(
        self, loaded: LoadedModel, device: torch.device, *, micro_batch: int = 0, cache: UserCache | None = None
    ) -> None:
        self.loaded = loaded
        super().__init__(loaded.model, loaded.schema, loaded.checkpoint, device, micro_batch=micro_batch, cache=cache)

    @classmethod
    def load(
        cls,
        run: Path,
        device: torch.device | str = "cpu",
        *,
        step: int | None = None,
        micro_batch: int = 0,
        cache: UserCache | None = None,
    ) -> Self:
        """The model of a run's (or a checkpoint's) folder.

        Args:
            step: of the checkpoint; default the best, or else the newest.
            micro_batch, cache: as of the class.

        Raises:
            UserError: no such checkpoint, a damaged one, or one of a model that ranks no candidates, or not as asked.
        """
        loaded = load_model(run, step=step, device=device)
        require_ranking(loaded, run)
        return cls(loaded, torch.device(device), micro_batch=micro_batch, cache=cache)


def require_ranking(loaded: LoadedModel, run: Path) -> None:
    """Refuse what gives candidates no score.

    Raises:
        UserError: the model retrieves.
    """
    if loaded.task.name != "ranking":
        raise UserError(f"{run} is of {loaded.name}, a {loaded.task.name} model; scores are of ranking models")


__all__ = ["CheckpointScorer", "Scorer", "Scores", "require_ranking"]

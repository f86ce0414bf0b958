"""What scores samples: the one interface of servers, replays and benchmarks, and a training run behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from genrank.model.evaluate import LoadedModel, load_model
from genrank.model.losses import predictions
from genrank.model.predict import keep_rate
from genrank.schemas.errors import UserError
from genrank.schemas.schema import Schema
from genrank.serving.engine import Engine
from genrank.serving.sample_rows import SampleRows
from genrank.serving.user_cache import UserCache

Scores = NDArray[np.float32]


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


class CheckpointScorer:
    """A training run's model.

    Args:
        loaded: the model.
        device: where it is.
        micro_batch: candidates that are scored at once (M-FALCON); 0: all of them, in one pass with user and events.
        cache: keeps users' keys and values between calls.

    Raises:
        UserError: the model can't score candidates in parts, or keep users, and is asked to.
    """

    def __init__(
        self, loaded: LoadedModel, device: torch.device, *, micro_batch: int = 0, cache: UserCache | None = None
    ) -> None:
        self.loaded, self.device = loaded, device
        self.engine = Engine(loaded.model, loaded.checkpoint, micro_batch=micro_batch, cache=cache)
        self.schema = loaded.schema
        self.fingerprint = loaded.schema.fingerprint
        self.tasks = tuple(label.name for label in loaded.schema.labels)
        self.rows = SampleRows(loaded.schema)
        self._keep_rate = keep_rate(loaded.schema)

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

    def score(self, rows: pa.RecordBatch) -> Scores:
        """As `Scorer.score`."""
        batch = self.rows.batch(rows).to(self.device)
        if not len(batch.item):
            return np.zeros((0, len(self.tasks)), np.float32)
        with torch.inference_mode():
            found = predictions(self.engine.logits(batch), self.schema.labels, self._keep_rate)
            scores: Scores = torch.stack([found[task] for task in self.tasks], 1).cpu().numpy()
        return scores


def require_ranking(loaded: LoadedModel, run: Path) -> None:
    """Refuse what gives candidates no score.

    Raises:
        UserError: the model retrieves.
    """
    if loaded.task.name != "ranking":
        raise UserError(f"{run} is of {loaded.name}, a {loaded.task.name} model; scores are of ranking models")

"""A model in memory as a scorer: what runs and exports have in common."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from genrank.model.interface import Model
from genrank.model.losses import predictions
from genrank.model.predict import keep_rate
from genrank.schemas.schema import Schema
from genrank.serving.engine import Engine
from genrank.serving.sample_rows import SampleRows
from genrank.serving.user_cache import UserCache

Scores = NDArray[np.float32]


class ModelScorer:
    """A ranking model of a schema.

    Args:
        model: in evaluation mode.
        schema: of its samples.
        checkpoint: which one it is, for the cache.
        device: where it is.
        micro_batch: candidates that are scored at once (M-FALCON); 0: all of them, in one pass with user and events.
        cache: keeps users' keys and values between calls.

    Raises:
        UserError: the model can't score candidates in parts, or keep users, and is asked to.
    """

    def __init__(
        self,
        model: Model,
        schema: Schema,
        checkpoint: str,
        device: torch.device,
        *,
        micro_batch: int = 0,
        cache: UserCache | None = None,
    ) -> None:
        self.model, self.schema, self.checkpoint, self.device = model, schema, checkpoint, device
        self.engine = Engine(model, checkpoint, micro_batch=micro_batch, cache=cache)
        self.fingerprint = schema.fingerprint
        self.tasks = tuple(label.name for label in schema.labels)
        self.rows = SampleRows(schema)
        self._keep_rate = keep_rate(schema)

    def score(self, rows: pa.RecordBatch) -> Scores:
        """As `serving.scorer.Scorer.score`."""
        batch = self.rows.batch(rows).to(self.device)
        if not len(batch.item):
            return np.zeros((0, len(self.tasks)), np.float32)
        with torch.inference_mode():
            found = predictions(self.engine.logits(batch), self.schema.labels, self._keep_rate)
            scores: Scores = torch.stack([found[task] for task in self.tasks], 1).cpu().numpy()
        return scores

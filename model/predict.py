"""A model's predictions on stored samples: what evaluation on the way and `genrank evaluate` share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from genrank.model.losses import predictions
from genrank.model.prefetch import in_step
from genrank.model.ranks import Ranks
from genrank.schemas.schema import Schema
from genrank.tokenization.batch import Batch


def predict(
    model: nn.Module, batches: Iterable[Batch], schema: Schema, ranks: Ranks, *, bf16: bool = False
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Each of this rank's batches and, per task, its candidates' predictions [C] float32. Ranks look rows up together: one
    that has no batch left computes with another's until all are done, and keeps nothing of it."""
    kept = keep_rate(schema)
    training = model.training
    model.eval()
    try:
        for batch, own in in_step((batch for batch in batches if len(batch.item)), ranks):
            batch = batch.to(ranks.device)
            with torch.inference_mode(), torch.autocast(ranks.device.type, torch.bfloat16, enabled=bf16):
                logits = model(batch)
            if own:
                yield batch, predictions(logits, schema.labels, kept)
    finally:
        model.train(training)


def keep_rate(schema: Schema) -> float:
    """The share of negatives that samples hold without reweighting them, which `losses.predictions` corrects for; else 1."""
    return 1.0 if schema.candidates.keep_correction else schema.candidates.negative_keep_rate


def candidate_users(batch: Batch) -> Tensor:
    """[C] int64: the user of each candidate."""
    return torch.repeat_interleave(batch.user, batch.candidates.lengths, output_size=len(batch.item))

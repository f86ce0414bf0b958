"""Which input of a batch is no number: what to look at when a loss is none."""

from __future__ import annotations

import torch
from torch import Tensor

from genrank.tokenization.batch import Batch


def not_finite(batch: Batch) -> str | None:
    """The first infinite feature, or label or weight that isn't finite: `sample 7a.., feature ctr (samples' column candidates.ctr) is inf`.

    A NaN feature is a missing value, which models are trained with, and so is the NaN label of a candidate without weight.

    Returns:
        None where all inputs are numbers. Waits for the device.
    """
    for name, group in batch.groups.items():
        for feature, leaf in group.features.items():
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                continue
            if found := _first(leaf.isinf(), leaf, group.offsets, batch):
                return f"{found[0]}, feature {feature} (samples' column {name}.{feature}) is {found[1]}"
    offsets = batch.groups["candidates"].offsets
    for task, labels in batch.labels.items():
        weights = batch.weights[task]
        if found := _first(~weights.isfinite(), weights, offsets, batch):
            return f"{found[0]}, the weight of label {task} (samples' column labels.{task}_weight) is {found[1]}"
        if found := _first(~labels.isfinite() & (weights > 0), labels, offsets, batch):
            return f"{found[0]}, label {task} (samples' column labels.{task}) is {found[1]}"
    return None


def _first(wrong: Tensor, values: Tensor, offsets: Tensor, batch: Batch) -> tuple[str, float] | None:
    """(sample, value) of the first row that is wrong."""
    rows = wrong.nonzero()
    if not len(rows):
        return None
    row = rows[0, 0]
    sample = int(torch.searchsorted(offsets, row, right=True)) - 1
    return f"sample {batch.sample_id[sample]}", float(values[tuple(rows[0])])

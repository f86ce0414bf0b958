"""Value labels as they are learned: transformed, and with weight only where the label that they are given is positive."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from genrank.schemas.label import Label


def learned(stored: dict[str, Tensor], labels: Iterable[Label]) -> dict[str, Tensor]:
    """Leaves of `labels` in samples -> the same as batches hold them.

    Args:
        stored: [C] float32 of `<task>` and `<task>_weight`, of every label.
        labels: the schema's.
    """
    found = dict(stored)
    for label in labels:
        if label.kind != "value":
            continue
        if label.value_transform == "log1p":
            value = stored[label.name]
            found[label.name] = torch.sign(value) * torch.log1p(value.abs())
        if label.given is not None:
            weight = stored[f"{label.name}_weight"]
            found[f"{label.name}_weight"] = torch.where(stored[label.given] > 0, weight, torch.zeros_like(weight))
    return found

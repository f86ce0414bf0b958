"""Stored vectors as columns of the token's input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genrank.schemas.features import Feature, Vector
from genrank.tokenization.batch import Ragged

EPS = 1e-12
"""Least norm that a vector is divided by."""


class VectorInputs:
    """The vectors of one token group, one behind another; learns nothing.

    Args:
        features: the group's; others than vectors are passed over.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        self.features = [feature for feature in features if isinstance(feature, Vector)]

    @property
    def widths(self) -> list[tuple[str, int]]:
        """(feature, columns) in the order of the columns."""
        return [(feature.name, feature.length) for feature in self.features]

    def columns(self, leaves: Sequence[Tensor | Ragged]) -> Tensor:
        """[N, sum of lengths] float32 of a leaf a feature, N lists each: zeros where a list is empty."""
        found = []
        for feature, leaf in zip(self.features, leaves, strict=True):
            assert isinstance(leaf, Ragged)
            x = dense(leaf, feature.length)
            if feature.normalize:
                x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=EPS)
            found.append(x)
        return torch.cat(found, 1)


def dense(vectors: Ragged, length: int, missing: float = 0.0) -> Tensor:
    """[N, length] float32 of lists that are of this length or empty. Never waits for the device."""
    there = vectors.offsets.diff() > 0
    rows = vectors.values.view(-1, length)
    padded = torch.cat([rows, rows.new_full((1, length), missing)])
    return padded.index_select(0, torch.where(there, there.cumsum(0) - 1, len(rows)))

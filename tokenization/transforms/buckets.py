"""Numbers in buckets, a row each: boundaries as declared, or quantiles of the training days."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrank.schemas.ids import MISSING_ROW, SPECIAL_ROWS
from genrank.schemas.transforms import FixedBuckets, QuantileBuckets
from genrank.tokenization.row_encoder import RowEncoder
from genrank.tokenization.transforms.interface import BucketTransform


class BucketRows(RowEncoder):
    """Numbers to the rows of their buckets.

    Args:
        edges: ascending edges of each of the F numbers; none at all makes one bucket.
    """

    edges: Tensor
    counts: Tensor

    def __init__(self, edges: Sequence[Sequence[float]]) -> None:
        super().__init__()
        width = max(map(len, edges), default=0)
        self.constant("edges", [[*each, *[torch.inf] * (width - len(each))] for each in edges], torch.float64)
        self.constant("counts", [[len(each)] for each in edges], torch.int64)

    def forward(self, values: Tensor) -> Tensor:
        """[F, N] float numbers, compared in float64 -> [F, N] int64 rows; NaN reads the missing row."""
        x = values.double()
        bucket = torch.searchsorted(self.edges, x.contiguous(), right=True)
        return torch.where(x.isnan(), MISSING_ROW, torch.minimum(bucket, self.counts) + SPECIAL_ROWS)


class FixedEdges(BucketTransform[FixedBuckets]):
    """Boundaries as they are declared."""

    def edges(self, transform: FixedBuckets, fitted: Sequence[float] | None) -> list[float]:
        """The declared boundaries."""
        return list(transform.boundaries)


class QuantileEdges(BucketTransform[QuantileBuckets]):
    """Boundaries at equal shares of the training days' values."""

    fitted = True

    def edges(self, transform: QuantileBuckets, fitted: Sequence[float] | None) -> list[float]:
        """The fitted boundaries."""
        if fitted is None:
            raise ValueError("quantile buckets need fitted boundaries")
        return list(fitted)

    def fit(self, transform: QuantileBuckets, values: npt.NDArray[np.float64]) -> list[float]:
        """The quantiles 1/buckets, 2/buckets, ..., each value once; none if there are no values."""
        levels = np.arange(1, transform.buckets) / transform.buckets
        boundaries: list[float] = np.unique(np.quantile(values, levels)).tolist() if len(values) else []
        return boundaries

"""Buckets with fitted boundaries."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genrank.schemas.transforms.base import Transform


class QuantileBuckets(Transform):
    """One row per bucket, the boundaries fitted on training days only."""

    kind: Literal["quantile"] = "quantile"
    buckets: int = Field(default=16, gt=1)
    dim: int = Field(default=8, gt=0)

    @property
    def table_shape(self) -> tuple[int, int]:
        """(buckets, dim)."""
        return self.buckets, self.dim

    def in_words(self) -> str:
        """`16 quantile buckets × 8`."""
        return f"{self.buckets} quantile buckets × {self.dim}"

"""Buckets with declared boundaries."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from genrank.schemas.findings import ColumnValues, Finding
from genrank.schemas.messages import share
from genrank.schemas.transforms.base import Transform


class FixedBuckets(Transform):
    """One row per bucket: bucket i holds boundaries[i-1] <= x < boundaries[i]."""

    kind: Literal["fixed"] = "fixed"
    boundaries: tuple[float, ...] = Field(min_length=1)
    dim: int = Field(default=8, gt=0)

    @property
    def table_shape(self) -> tuple[int, int]:
        """(buckets, dim)."""
        return len(self.boundaries) + 1, self.dim

    def mistakes(self, at: str) -> Iterator[str]:
        """Boundaries in order."""
        if any(a >= b for a, b in pairwise(self.boundaries)):
            yield f"{at}: boundaries {list(self.boundaries)} don't increase; sort them and drop repeats"

    def findings(self, values: ColumnValues) -> Iterator[Finding]:
        """Nearly all values in one bucket."""
        numbers = pc.cast(values.present, pa.float64())
        edges = [-math.inf, *self.boundaries, math.inf]
        shares = [
            pc.sum(pc.and_(pc.greater_equal(numbers, low), pc.less(numbers, high))).as_py() / len(numbers)
            for low, high in pairwise(edges)
        ]
        if max(shares) > 0.98:
            yield values.warning(
                f"{share(max(shares))} of {values.home} fall in one of {len(shares)} buckets; move the boundaries, or use QuantileBuckets"
            )

    def moves_rows(self, new: Transform) -> bool:
        """Other boundaries, as many."""
        return isinstance(new, FixedBuckets) and self != new and self.table_shape == new.table_shape

    def in_words(self) -> str:
        """`4 buckets × 8`."""
        return f"{len(self.boundaries) + 1} buckets × {self.dim}"

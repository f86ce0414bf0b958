"""Buckets that are learned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from genrank.schemas.transforms.base import Transform


class AutoDis(Transform):
    """Soft buckets learned end to end (Guo et al., KDD 2021, arXiv:2012.08986): meta-embeddings mixed by a softmax."""

    kind: Literal["autodis"] = "autodis"
    buckets: int = Field(default=16, gt=1)
    dim: int = Field(default=8, gt=0)
    temperature: float = Field(default=1.0, gt=0)

    def mistakes(self, at: str) -> Iterator[str]:
        """A softmax of a size that can be computed."""
        if self.buckets > 1024:
            yield f"{at}: AutoDis computes a softmax over all {self.buckets} buckets for every value; use QuantileBuckets, or fewer"

    def advice(self, *, long_tail: bool) -> Iterator[str]:
        """A temperature that learns."""
        if self.temperature < 0.01:
            yield f"AutoDis at temperature {self.temperature} is a hard choice without a gradient; 0.1 to 1 learns"

    def in_words(self) -> str:
        """`AutoDis, 16 × 8`."""
        return f"AutoDis, {self.buckets} × {self.dim}"

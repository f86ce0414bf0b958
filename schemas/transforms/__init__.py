"""How a number becomes an input of its token."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from genrank.schemas.base import Declaration


class Dense(Declaration):
    """(x - shift) * scale, as one input of the token's projection."""

    kind: Literal["dense"] = "dense"
    shift: float = 0.0
    scale: float = 1.0


class Log1p(Declaration):
    """sign(x) * log(1 + |x|), as one input of the token's projection."""

    kind: Literal["log"] = "log"


class FixedBuckets(Declaration):
    """One row per bucket: bucket i holds boundaries[i-1] <= x < boundaries[i]."""

    kind: Literal["fixed"] = "fixed"
    boundaries: tuple[float, ...] = Field(min_length=1)
    dim: int = Field(default=8, gt=0)


class QuantileBuckets(Declaration):
    """One row per bucket, the boundaries fitted on training days only."""

    kind: Literal["quantile"] = "quantile"
    buckets: int = Field(default=16, gt=1)
    dim: int = Field(default=8, gt=0)


class AutoDis(Declaration):
    """Soft buckets learned end to end (Guo et al., KDD 2021, arXiv:2012.08986): meta-embeddings mixed by a softmax."""

    kind: Literal["autodis"] = "autodis"
    buckets: int = Field(default=16, gt=1)
    dim: int = Field(default=8, gt=0)
    temperature: float = Field(default=1.0, gt=0)


Transform = Annotated[Dense | Log1p | FixedBuckets | QuantileBuckets | AutoDis, Field(discriminator="kind")]

"""Temporary: attributes that the schema's kinds are about to have."""

from __future__ import annotations

from typing import Literal

from genrank.schemas.features import Categorical, Feature, MultiValued, Sql
from genrank.schemas.transforms import AutoDis, Dense, Log1p, Transform


def list_pooling(feature: Feature) -> Literal["sum", "mean"] | None:
    """`feature.list_pooling`."""
    if isinstance(feature, MultiValued):
        return feature.pooling
    return "mean" if isinstance(feature, Sql) and feature.type.startswith("list") else None


def list_limit(feature: Feature) -> int | None:
    """`feature.list_limit`."""
    return feature.max_values if isinstance(feature, MultiValued) else None


def id_column(feature: Feature) -> str | None:
    """`feature.column_reference` of stored ids."""
    return (feature.column or feature.name) if isinstance(feature, Categorical | MultiValued) else None


def row_count(transform: Transform) -> int | None:
    """`transform.row_count`."""
    return None if isinstance(transform, Dense | Log1p | AutoDis) else 1

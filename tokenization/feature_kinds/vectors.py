"""Vectors, as they are stored."""

from __future__ import annotations

from genrank.schemas.features import Vector
from genrank.tokenization.batch import Ragged
from genrank.tokenization.feature_kinds.interface import GroupView


def stored_vectors(feature: Vector, view: GroupView) -> Ragged:
    """N lists of float32, empty where missing."""
    leaf = view.group.features[feature.name]
    assert isinstance(leaf, Ragged)
    return leaf

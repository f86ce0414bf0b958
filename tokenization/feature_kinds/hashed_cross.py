"""Hashed crosses: one id from the combination of other features' ids."""

from __future__ import annotations

from torch import Tensor

from genrank.schemas.features import HashedCross
from genrank.tokenization.feature_kinds.interface import GroupView
from genrank.tokenization.hashing import combine_ids


def crossed_ids(feature: HashedCross, view: GroupView) -> Tensor:
    """[N] int64: `combine_ids` of the features it is declared of; missing where all of them are."""
    return combine_ids([_operand(name, view) for name in feature.of])


def _operand(name: str, view: GroupView) -> Tensor:
    owner, _, feature = name.rpartition(".")
    return view.stored(feature) if owner in ("", view.name) else view.of_user(feature)

"""Two numbers of a candidate as one."""

from __future__ import annotations

import numpy as np

from genrank.schemas.features import Arithmetic
from genrank.tokenization.feature_kinds.interface import StoredCandidates
from genrank.tokenization.peers import Floats


def arithmetic(feature: Arithmetic, candidates: StoredCandidates) -> Floats:
    """[C] float64: ratio or difference; NaN where an operand is missing, or a divisor 0."""
    first, second = (candidates.number(name) for name in feature.of)
    if feature.op == "difference":
        return first - second
    return first / np.where(second == 0, np.nan, second)

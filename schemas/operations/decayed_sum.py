"""The sum of a column of the events, recent ones counting more."""

from __future__ import annotations

from genrank.schemas.operations.base import Operation
from genrank.schemas.type_rules import NUMBERS


class DecayedSum(Operation):
    """The sum over events at ts of value * 2^(-(t - ts) / half_life), as of t, missing values left out: float64 to 15 digits of the sum of
    absolute terms, stored as float32 (beyond 3.4e38: refused)."""

    name = "decayed_sum"
    value_types = NUMBERS
    takes_half_life = True
    long_tail = True
    missing = "0"

    def in_words(self) -> str:
        """In the documentation."""
        return "sum of `value`, each halved every `half_life`"

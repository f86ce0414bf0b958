"""How much a column of the events varies."""

from __future__ import annotations

from genrank.schemas.operations.base import Operation
from genrank.schemas.type_rules import NUMBERS


class Std(Operation):
    """The population standard deviation of `value` (divided by their number), missing values left out: of exact sums of float64, so that a
    large offset loses no digits, stored as float32; 0 of one value."""

    name = "std"
    value_types = NUMBERS
    missing = "missing"

    def in_words(self) -> str:
        """In the documentation."""
        return "population standard deviation of `value`"

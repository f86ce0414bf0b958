"""The mean of a column of the events."""

from __future__ import annotations

from genrank.schemas.operations.base import Operation
from genrank.schemas.type_rules import NUMBERS


class Mean(Operation):
    """The mean of `value`, missing values left out: an exact float64 sum over the count, stored as float32 (7 digits, of any size)."""

    name = "mean"
    value_types = NUMBERS
    missing = "missing"

    def in_words(self) -> str:
        """In the documentation."""
        return "mean of `value`"

"""The sum of a column of the events."""

from __future__ import annotations

from genrank.schemas.operations.base import Operation
from genrank.schemas.type_rules import NUMBERS


class Sum(Operation):
    """The sum of `value`, missing values left out: float64, exact before it is rounded once, stored as float32 (beyond 3.4e38: refused)."""

    name = "sum"
    value_types = NUMBERS
    long_tail = True
    missing = "0"

    def in_words(self) -> str:
        """In the documentation."""
        return "sum of `value`"

"""The largest value of a column of the events."""

from __future__ import annotations

from genrank.schemas.operations.base import Operation
from genrank.schemas.type_rules import NUMBERS


class Max(Operation):
    """The largest `value`, missing ones left out: exact, as float32 has each value."""

    name = "max"
    value_types = NUMBERS
    missing = "missing"

    def in_words(self) -> str:
        """In the documentation."""
        return "largest `value`"

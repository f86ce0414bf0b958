"""The smallest value of a column of the events."""

from __future__ import annotations

from genrank.schemas.operations.base import Operation
from genrank.schemas.type_rules import NUMBERS


class Min(Operation):
    """The smallest `value`, missing ones left out: exact, as float32 has each value."""

    name = "min"
    value_types = NUMBERS
    missing = "missing"

    def in_words(self) -> str:
        """In the documentation."""
        return "smallest `value`"

"""How many different values the events had."""

from __future__ import annotations

from genrank.schemas.operations.base import Operation
from genrank.schemas.type_rules import NUMBERS


class Distinct(Operation):
    """The number of different `value`s, missing values left out."""

    name = "distinct"
    value_types = (*NUMBERS, "string")
    missing = "0"

    def in_words(self) -> str:
        """In the documentation."""
        return "number of different `value`s"

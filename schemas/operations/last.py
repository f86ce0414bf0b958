"""A column of the newest event."""

from __future__ import annotations

from genrank.schemas.operations.base import Operation
from genrank.schemas.type_rules import IDS, NUMBERS


class Last(Operation):
    """`value` of the newest event that has one; with a table, kept as an id."""

    name = "last"
    value_types = NUMBERS
    id_types = IDS
    missing = "missing"

    def in_words(self) -> str:
        """In the documentation."""
        return "`value` of the newest event"

"""How many events there were."""

from __future__ import annotations

from genrank.schemas.operations.base import Operation


class Count(Operation):
    """The number of events, of those that meet `where`."""

    name = "count"
    long_tail = True
    missing = "0"

    def in_words(self) -> str:
        """In the documentation."""
        return "number of events"

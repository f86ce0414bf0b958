"""How many events there were."""

from __future__ import annotations

from genrank.schemas.operations.base import Operation


class Count(Operation):
    """The number of events, of those that meet `where`: counted in int64, stored as float32 (exact up to 2^24, then to 7 digits)."""

    name = "count"
    long_tail = True
    missing = "0"

    def in_words(self) -> str:
        """In the documentation."""
        return "number of events"

"""How long ago the newest event was."""

from __future__ import annotations

from genrank.schemas.operations.base import Operation


class Recency(Operation):
    """Seconds since the newest event."""

    name = "recency"
    long_tail = True
    missing = "missing"

    def in_words(self) -> str:
        """In the documentation."""
        return "seconds since the newest event"

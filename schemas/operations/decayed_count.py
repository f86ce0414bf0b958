"""How many events there were, recent ones counting more."""

from __future__ import annotations

from genrank.schemas.operations.base import Operation


class DecayedCount(Operation):
    """The sum over events at ts of 2^(-(t - ts) / half_life), as of t: float64 to 15 digits, stored as float32."""

    name = "decayed_count"
    takes_half_life = True
    long_tail = True
    missing = "0"

    def in_words(self) -> str:
        """In the documentation."""
        return "number of events, each halved every `half_life`"

"""A part of the row's time."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genrank.schemas.features.base import Feature
from genrank.schemas.source_meaning import Meaning
from genrank.schemas.vocabularies import Identity, Vocabulary

TIME_PART_VALUES = {"hour": 24, "weekday": 7, "hour_of_week": 168, "day_of_month": 31, "month": 12}
"""Number of values of each time part, each counted from 0 (`day_of_month` and `month` too)."""


class TimePart(Feature):
    """A part of the row's own timestamp in the schema's `utc_offset`; of `window_start` for user features. Derived."""

    kind: Literal["time_part"] = "time_part"
    part: Literal["hour", "weekday", "hour_of_week", "day_of_month", "month"]
    dim: int = Field(default=8, gt=0)

    @property
    def stored(self) -> None:
        """Derived from the row's time."""
        return None

    @property
    def own_vocabulary(self) -> tuple[Vocabulary, int]:
        """A row per value of the part."""
        return Identity(size=TIME_PART_VALUES[self.part]), self.dim

    def model_meaning(self) -> Meaning:
        """Which part."""
        return {"part": self.part}

    def value_in_words(self) -> str:
        """`hour of week of the row's time`."""
        return f"{self.part.replace('_', ' ')} of the row's time"

    def encoding_in_words(self) -> str:
        """`× 8`."""
        return f"× {self.dim}"

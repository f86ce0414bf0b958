"""How far a day may lie from the days published before it."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from genrank.schemas.base import Declaration


class Limits(Declaration):
    """From `warn` on a drift is reported, from `stop` on the day isn't published; None for never."""

    warn: float | None = Field(default=None, gt=0)
    stop: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.warn is not None and self.stop is not None and self.stop < self.warn:
            raise ValueError(
                f"stop={self.stop:g} lies below warn={self.warn:g}: a day would stop without a warning; swap them"
            )
        return self


class DriftLimits(Declaration):
    """A day against up to `days` published days before it. Part of no fingerprint: changing a limit rebuilds nothing.

    By default a day stops where its rows or a label's rate are ten times those of the days before (or a tenth), or where half of a feature's values
    are missing that were there; shifts of distributions are reported alone. `genrank build --allow-drift` publishes what would stop.
    """

    days: int = Field(default=7, gt=0)
    least_days: int = Field(default=3, gt=0)
    """With fewer published days before it a day is compared with nothing: windows and histories still fill."""
    least_values: int = Field(default=1000, gt=0)
    """Of fewer values on either side nothing is concluded (of a label: of fewer positives than a tenth of it)."""
    rows: Limits = Limits(warn=2, stop=10)
    """Candidates of the day over their mean, or its inverse: how many times more or fewer."""
    label_rate: Limits = Limits(warn=2, stop=10)
    """A label's mean over the mean before, or its inverse."""
    missing: Limits = Limits(warn=0.1, stop=0.5)
    """By how much the share of missing values has grown; of joins, of rows without a partner."""
    psi: Limits = Limits(warn=0.5)
    """Population stability index of a feature's distribution: below 0.1 steady, above 0.25 shifted, by custom."""

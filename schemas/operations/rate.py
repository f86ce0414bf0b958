"""What share of trials succeeded."""

from __future__ import annotations

from collections.abc import Iterator

from genrank.schemas.operations.base import Operation, Statistic
from genrank.schemas.transforms import Dense, Transform


class Rate(Operation):
    """(count of `where` + prior * strength) / (count of all + strength).

    Counts are int64, the quotient is float64 and stored as float32.

    The posterior mean of a success probability whose prior is Beta(prior * strength, (1 - prior) * strength).
    """

    name = "rate"
    takes_per = True
    takes_prior = True
    missing = "the prior"

    @property
    def default_transform(self) -> Transform:
        """As it is: between 0 and 1 already."""
        return Dense()

    def mistakes(self, at: str, feature: Statistic) -> Iterator[str]:
        """Trials and successes that differ, and a prior that is a rate."""
        if feature.per is None and feature.where is None:
            yield f"{at}: a rate needs `where` (which events count) or `per` (the log of all trials); without both it is always 1"
        if feature.prior > 1:
            yield f"{at}: prior {feature.prior} is no rate; give one from 0 to 1"

    def advice(self, feature: Statistic) -> Iterator[str]:
        """Smoothing."""
        if feature.strength == 0:
            yield "without strength, one event of one makes a rate of 1; give prior= (the overall rate) and strength= (20 or so)"

    def in_words(self) -> str:
        """In the documentation."""
        return "(count of `where` + prior * strength) / (count of all + strength)"

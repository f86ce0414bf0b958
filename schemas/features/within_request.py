"""A candidate beside the others of its request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from genrank.schemas.features.read_time import ReadTimeNumber
from genrank.schemas.source_meaning import Meaning
from genrank.schemas.transforms import Dense, Log1p, Transform

Comparison = Literal["rank", "fraction_rank", "difference_to_mean", "difference_to_max", "share"]

_IN_WORDS: dict[Comparison, str] = {
    "rank": "rank by {}",
    "fraction_rank": "fraction of the others below it by {}",
    "difference_to_mean": "{} less the mean",
    "difference_to_max": "{} less the largest",
    "share": "share of the sum of {}",
}


class WithinRequest(ReadTimeNumber):
    """A number of the candidate beside those of the candidates it competes with. Computed when samples are read.

    The candidates compared are those of the user's request (`Candidates.request`) that were exposed no later than the candidate itself: all of
    them where a request has one time, as it does where a list is ranked at once. A later exposure's statistics may count what happened to the
    earlier ones, which nobody knew when those were ranked.

    With v the candidate's number, over the candidates compared whose number isn't missing, the candidate itself included:

    | `what` | is |
    |---|---|
    | `rank` | 1 for the largest; equal numbers share the mean of their ranks |
    | `fraction_rank` | fraction of the others that are smaller, equal ones counted half: 1 for the largest, 0.5 without others |
    | `difference_to_mean` | v - mean |
    | `difference_to_max` | v - largest: 0 at most |
    | `share` | v / sum of absolute numbers; missing where that is 0 |

    Missing where v is missing.
    """

    kind: Literal["within_request"] = "within_request"
    of: str
    """The feature of the candidates that is compared: `Numeric`, `TimeGap` with a column, a number of `CrossFeature` or `Sql`, or one that is
    itself computed when samples are read."""
    what: Comparison
    transform: Transform | None = None
    """How the number is encoded; default `Log1p()` for `rank`, and `Dense()` for the others."""

    @property
    def derived_from(self) -> tuple[str, ...]:
        """`of`."""
        return (self.of,)

    @property
    def needs_request(self) -> bool:
        """It compares within it."""
        return True

    @property
    def number_transform(self) -> Transform:
        """`transform`, or the comparison's own."""
        return self.transform or (Log1p() if self.what == "rank" else Dense())

    def model_meaning(self) -> Meaning:
        """What is compared, and how."""
        return {"of": self.of, "what": self.what}

    def value_in_words(self) -> str:
        """`rank by ctr_1d within the request`."""
        return f"{_IN_WORDS[self.what].format(self.of)} within the request"


class RequestSize(ReadTimeNumber):
    """How many candidates the user's request has, counted as `WithinRequest` compares: those exposed no later than the candidate, itself
    included. Computed when samples are read.

    It is known when the request is ranked only if the log holds what was ranked. Of a log of what was looked at, such as how far a user
    scrolled, it would be known later: such a log gives each exposure its own time, and only the earlier ones are counted.
    """

    kind: Literal["request_size"] = "request_size"
    transform: Transform = Field(default_factory=Log1p)

    @property
    def needs_request(self) -> bool:
        """It counts it."""
        return True

    @property
    def number_transform(self) -> Transform:
        """`transform`."""
        return self.transform

    def model_meaning(self) -> Meaning:
        """It is a size."""
        return {"counts": "request"}

    def value_in_words(self) -> str:
        """`candidates of the request`."""
        return "candidates of the request"

    def advice(self) -> Iterator[str]:
        """None: a request is short."""
        yield from ()

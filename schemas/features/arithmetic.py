"""Two numbers of a candidate as one."""

from __future__ import annotations

from typing import Literal

from genrank.schemas.features.read_time import ReadTimeNumber
from genrank.schemas.source_meaning import Meaning
from genrank.schemas.transforms import Dense, Log1p, Transform


class Arithmetic(ReadTimeNumber):
    """Two numbers of the candidate as one: a statistic's trend (`ctr_1h` over `ctr_1d`), a price beside the user's usual one. Computed
    when samples are read.

    `ratio` is first / second, missing where the second is 0; `difference` is first - second. Missing where either is.
    """

    kind: Literal["arithmetic"] = "arithmetic"
    op: Literal["ratio", "difference"]
    of: tuple[str, str]
    """Two features of the candidates, each a number as `WithinRequest` takes."""
    transform: Transform | None = None
    """How the number is encoded; default `Log1p()` for a ratio, and `Dense()` for a difference."""

    @property
    def derived_from(self) -> tuple[str, ...]:
        """`of`."""
        return self.of

    @property
    def number_transform(self) -> Transform:
        """`transform`, or the operation's own."""
        return self.transform or (Log1p() if self.op == "ratio" else Dense())

    def model_meaning(self) -> Meaning:
        """What of what, in order."""
        return {"op": self.op, "of": self.of}

    def value_in_words(self) -> str:
        """`ctr_1h / ctr_1d`."""
        return f" {'/' if self.op == 'ratio' else '-'} ".join(self.of)

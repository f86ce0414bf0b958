"""Small integers that are their own rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from genrank.schemas.findings import ColumnValues, Finding
from genrank.schemas.messages import share
from genrank.schemas.vocabularies.base import Vocabulary


class Identity(Vocabulary):
    """Integers 0 .. size-1, each its own row; anything else is unknown."""

    kind: Literal["identity"] = "identity"
    size: int = Field(gt=0)

    @property
    def holds_hashes(self) -> bool:
        """No: hashes are no small integers."""
        return False

    @property
    def is_closed(self) -> bool:
        """Yes."""
        return True

    def id_mistakes(self, at: str, what: str, *, text: bool) -> Iterator[str]:
        """Integers only."""
        if text:
            yield f"{at}: {what!r} holds strings, which Identity can't index; use Enumerated, Hashed or Dynamic"

    def findings(self, values: ColumnValues, present: pa.ChunkedArray) -> Iterator[Finding]:
        """Values outside 0 .. size-1."""
        outside = pc.or_(pc.less(present, 0), pc.greater_equal(present, self.size))
        rate = pc.sum(outside).as_py() / len(present)
        if not rate:
            return
        ends = pc.min_max(present)
        low, high = ends["min"].as_py(), ends["max"].as_py()
        remedy = "use Hashed or Dynamic" if low < 0 or high > 10_000_000 else f"size={high + 1}"
        yield values.error_or_warning(
            rate,
            f"{share(rate)} of {values.home} lie outside Identity(size={self.size}): {low} to {high}; they all read the unknown row: "
            f"{remedy}",
        )

    def carries_over(self, new: Vocabulary) -> bool:
        """It may grow."""
        return isinstance(new, Identity) and new.size >= self.size

"""A closed list of ids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from genrank.schemas.findings import ColumnValues, Finding
from genrank.schemas.messages import share, twice
from genrank.schemas.vocabularies.base import Vocabulary


class Enumerated(Vocabulary):
    """A closed list, in the order of its rows; anything else is unknown."""

    kind: Literal["enumerated"] = "enumerated"
    values: tuple[str, ...] | tuple[int, ...] = Field(min_length=1)

    @property
    def size(self) -> int:
        """One row a value."""
        return len(self.values)

    @property
    def holds_hashes(self) -> bool:
        """No: a hash is none of its values."""
        return False

    @property
    def is_closed(self) -> bool:
        """Yes."""
        return True

    def id_mistakes(self, at: str, what: str, *, text: bool) -> Iterator[str]:
        """Values of the column's type."""
        if isinstance(self.values[0], str) != text:
            wanted = "strings" if text else "integers"
            given = "integers" if text else "strings"
            yield f"{at}: {what!r} holds {wanted}, but the vocabulary enumerates {given}; write {wanted}"

    def mistakes(self, at: str) -> Iterator[str]:
        """Each value once."""
        for value in twice(self.values):
            yield f"{at}: the vocabulary enumerates {value!r} twice"

    def findings(self, values: ColumnValues, present: pa.ChunkedArray) -> Iterator[Finding]:
        """Values that are not enumerated."""
        known = pa.array(list(self.values)).cast(present.type)
        strange = present.filter(pc.invert(pc.is_in(present, value_set=known)))
        if not len(strange):
            return
        rate = len(strange) / len(present)
        counts = sorted(pc.value_counts(strange).to_pylist(), key=lambda c: -c["counts"])
        shown = ", ".join(repr(c["values"]) for c in counts[:3])
        yield values.error_or_warning(
            rate, f"{share(rate)} of {values.home} are not enumerated ({shown}); they read the unknown row"
        )

    def carries_over(self, new: Vocabulary) -> bool:
        """Values may be added at the end."""
        return isinstance(new, Enumerated) and new.values[: len(self.values)] == self.values

    def in_words(self) -> str:
        """`3 enumerated`."""
        return f"{self.size} enumerated"

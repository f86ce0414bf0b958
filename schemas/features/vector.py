"""A vector of fixed length: what another model says of an item, a user or a moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from genrank.schemas.base import ColumnType
from genrank.schemas.features.base import ColumnFeature, Scope
from genrank.schemas.findings import ColumnValues, Finding
from genrank.schemas.messages import share
from genrank.schemas.source_meaning import Meaning
from genrank.schemas.stored import Stored


class Vector(ColumnFeature):
    """A `list<float32>` of `length` numbers, such as a content embedding: no table, an input of the token as it is.

    A null, or an empty list, is a missing vector: zeros in the token. A row whose vector has another length, or holds a null, NaN or an infinite
    number, is quarantined by the column's name.
    """

    kind: Literal["vector"] = "vector"
    column: str | None = None
    length: int = Field(gt=0, le=65_536)
    """Numbers of each."""
    normalize: bool = False
    """Divide each by its Euclidean norm before it enters the token, so that only its direction counts; applied when samples are read."""

    @property
    def column_reference(self) -> str:
        """`column`, or the name."""
        return self.column or self.name

    @property
    def stored(self) -> Stored:
        """As it is."""
        return "vector"

    @property
    def vector_length(self) -> int:
        """`length`."""
        return self.length

    def samples_meaning(self, group: str, scope: Scope) -> Meaning:
        """Its length, too: rows of another are none."""
        return {"length": self.length, **super().samples_meaning(group, scope)}

    def model_meaning(self) -> Meaning:
        """Its columns, and what becomes of them."""
        return {"length": self.length, "normalize": self.normalize}

    def type_mistakes(self, type_: ColumnType) -> Iterator[str]:
        """A list of floats."""
        if type_ != "list<float32>":
            yield f"a Vector is a list<float32>; use {'MultiValued' if type_.startswith('list') else 'Numeric or Categorical'}"

    def findings(self, values: ColumnValues) -> Iterator[Finding]:
        """Vectors of another length, which the build quarantines."""
        lengths = pc.list_value_length(values.array.drop_null())
        own = pa.scalar(self.length, lengths.type)
        odd = pc.and_(pc.not_equal(lengths, own), pc.greater(lengths, pa.scalar(0, lengths.type)))
        rate = pc.sum(odd).as_py() / len(lengths)
        if rate:
            found = sorted(set(pc.unique(lengths.filter(odd)).to_pylist()))[:3]
            yield values.error_or_warning(
                rate,
                f"{share(rate)} of {values.home} have {', '.join(map(str, found))} numbers, not {self.length}: quarantined",
            )

    def encoding_in_words(self) -> str:
        """`64 numbers, divided by their norm`."""
        return f"{self.length:,} numbers" + (", divided by their norm" if self.normalize else "")

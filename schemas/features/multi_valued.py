"""A list of ids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pyarrow.compute as pc
from pydantic import Field

from genrank.schemas.base import ColumnType
from genrank.schemas.features.base import ColumnFeature, Scope
from genrank.schemas.features.embedded import EmbeddedFeature
from genrank.schemas.findings import ColumnValues, Finding
from genrank.schemas.messages import share
from genrank.schemas.source_meaning import Meaning
from genrank.schemas.stored import Stored
from genrank.schemas.type_rules import ID_LISTS, IDS


class MultiValued(EmbeddedFeature, ColumnFeature):
    """A list of ids, pooled to one vector."""

    kind: Literal["multi_valued"] = "multi_valued"
    column: str | None = None
    pooling: Literal["sum", "mean"] = "mean"
    max_values: int = Field(default=20, gt=0)
    """The first so many are kept."""

    @property
    def column_reference(self) -> str:
        """`column`, or the name."""
        return self.column or self.name

    @property
    def stored(self) -> Stored:
        """As a list of ids."""
        return "ids"

    @property
    def list_limit(self) -> int:
        """`max_values`."""
        return self.max_values

    @property
    def list_pooling(self) -> Literal["sum", "mean"]:
        """`pooling`."""
        return self.pooling

    def samples_meaning(self, group: str, scope: Scope) -> Meaning:
        """How many values are kept, too."""
        return {"max_values": self.max_values, **super().samples_meaning(group, scope)}

    def type_mistakes(self, type_: ColumnType) -> Iterator[str]:
        """A list of integers or strings."""
        if not type_.startswith("list"):
            yield f"use {'Categorical' if type_ in IDS else 'Numeric'} for a single value"
        elif type_ not in ID_LISTS:
            yield "MultiValued pools ids: list<int64> or list<string>"

    def findings(self, values: ColumnValues) -> Iterator[Finding]:
        """Lists that are cut, too."""
        lengths = pc.list_value_length(values.array.drop_null())
        longer = pc.sum(pc.greater(lengths, self.max_values)).as_py() / len(lengths)
        if longer > 0.05:
            yield values.warning(
                f"{share(longer)} of {values.home} hold more than max_values {self.max_values}; up to {pc.max(lengths).as_py()}"
            )
        yield from super().findings(values)

    def encoding_in_words(self) -> str:
        """`hashed, 4,096 × 8, mean of at most 20`."""
        text = super().encoding_in_words()
        return f"{text}, {self.pooling} of at most {self.max_values}" if text else text

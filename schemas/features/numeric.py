"""One number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from genrank.schemas.base import ColumnType
from genrank.schemas.features.base import ColumnFeature
from genrank.schemas.stored import Stored
from genrank.schemas.transforms import Log1p, Transform
from genrank.schemas.type_rules import NUMBERS


class Numeric(ColumnFeature):
    """One number."""

    kind: Literal["numeric"] = "numeric"
    column: str | None = None
    transform: Transform = Log1p()

    @property
    def column_reference(self) -> str:
        """`column`, or the name."""
        return self.column or self.name

    @property
    def stored(self) -> Stored:
        """As a number."""
        return "number"

    @property
    def number_transform(self) -> Transform:
        """`transform`."""
        return self.transform

    def type_mistakes(self, type_: ColumnType) -> Iterator[str]:
        """A number or a bool."""
        if type_ == "string":
            yield "use Categorical for a string, or Sql with TRY_CAST for a number written as text"
        elif type_ == "timestamp":
            yield "use TimeGap for a moment"
        elif type_ not in NUMBERS:
            yield "use MultiValued for a list of ids, or Sql to take one number of it"

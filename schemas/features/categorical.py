"""One id."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from genrank.schemas.base import ColumnType
from genrank.schemas.features.base import ColumnFeature
from genrank.schemas.features.embedded import EmbeddedFeature
from genrank.schemas.stored import Stored


class Categorical(EmbeddedFeature, ColumnFeature):
    """One id."""

    kind: Literal["categorical"] = "categorical"
    column: str | None = None
    """Defaults to the feature's name."""

    @property
    def column_reference(self) -> str:
        """`column`, or the name."""
        return self.column or self.name

    @property
    def stored(self) -> Stored:
        """As an id."""
        return "id"

    @property
    def is_id(self) -> bool:
        """Yes."""
        return True

    def type_mistakes(self, type_: ColumnType) -> Iterator[str]:
        """An integer, a string or a bool."""
        if type_.startswith("list"):
            yield "use MultiValued for a list of ids"
        elif type_ in ("float32", "float64"):
            yield "use Numeric (with buckets, if a row per range is meant)"
        elif type_ == "timestamp":
            yield "use TimeGap for a moment"

"""What a comparison of real rows with a declaration finds, and the arrays it looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

Level = Literal["error", "warning"]

USELESS = 0.95
"""A feature whose values read the unknown row more often than this says nothing."""


@dataclass(frozen=True)
class Finding:
    """One thing that is not as the schema says, or as one would wish."""

    level: Level
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.what}"


@dataclass(frozen=True)
class ColumnValues:
    """A column's values in a sample of rows, as a feature reads them."""

    where: str
    """The feature: `candidates.price`."""
    home: str
    """The column: `items.price`."""
    array: pa.ChunkedArray

    @property
    def present(self) -> pa.ChunkedArray:
        """Values that are not null; of lists, their elements."""
        return present_values(self.array)

    def error_or_warning(self, rate: float, what: str) -> Finding:
        """An error where so large a share of the values is lost that the feature says nothing."""
        return Finding("error" if rate > USELESS else "warning", self.where, what)

    def warning(self, what: str) -> Finding:
        """A finding that stops nothing."""
        return Finding("warning", self.where, what)


def present_values(array: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values that are not null; of lists, their elements."""
    array = array.drop_null()
    if pa.types.is_list(array.type):
        array = pc.list_flatten(array).drop_null()
    return array

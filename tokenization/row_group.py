"""The unit in which samples are read, and how far a reader is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class RowGroup(NamedTuple):
    """A row group of a Parquet file: the unit that is read, sharded over ranks and shuffled."""

    dt: str
    path: Path
    number: int
    first_row: int
    """Of its file."""
    rows: int


@dataclass(frozen=True)
class Position:
    """Where a reader is: `batches` of window number `window` of an epoch have been handed out."""

    epoch: int = 0
    window: int = 0
    batches: int = 0

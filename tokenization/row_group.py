"""The unit in which samples are read."""

from __future__ import annotations

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

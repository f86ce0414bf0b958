"""Columns and footers of sample files, for what needs no batches."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from genrank.schemas.files import reading
from genrank.schemas.manifest import opened


def read_columns(file: Path, columns: list[str]) -> pa.Table:
    """Some columns of a file.

    Raises:
        UserError: it is corrupt.
    """
    with reading(file):
        return pq.ParquetFile(opened(file)).read(columns=columns)


def read_footer(file: Path) -> pq.FileMetaData:
    """A file's row groups and their statistics.

    Raises:
        UserError: it is corrupt.
    """
    with reading(file):
        return pq.read_metadata(opened(file))

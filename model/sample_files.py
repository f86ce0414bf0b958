"""Columns and footers of sample files, for what needs no batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import UserError


def read_columns(file: Path, columns: list[str]) -> pa.Table:
    """Some columns of a file.

    Raises:
        UserError: it is corrupt.
    """
    with _readable(file):
        return pq.ParquetFile(file).read(columns=columns)


def read_footer(file: Path) -> pq.FileMetaData:
    """A file's row groups and their statistics.

    Raises:
        UserError: it is corrupt.
    """
    with _readable(file):
        return pq.read_metadata(file)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file} can't be read as Parquet ({reason}); build the day again") from None

"""Columns that a file lacks: read from its path (Hive partitions), or filled with the schema's default, or missing before they were added."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from genrank.schemas.base import ARROW_TYPES
from genrank.schemas.errors import UserError
from genrank.schemas.source import EventLog, Snapshot
from genrank.schemas.source_files import path_values


def absent_columns(source: EventLog | Snapshot, path: Path | str, held: list[str]) -> list[str]:
    """Declared columns that neither the file (`held`: its columns) nor its path has, nor a default of the schema fills."""
    known = {*held, *path_values(path)}
    return [c for c in source.columns if source.physical(c) not in known and c not in source.defaults]


def may_be_missing(source: EventLog | Snapshot, column: str) -> bool:
    """Whether rows without the column can be used: it says neither whose they are, nor when they happened or arrived."""
    must = [source.user, source.time, source.arrival] if isinstance(source, EventLog) else [source.key]
    return column not in must


def with_absent_columns(
    source: EventLog | Snapshot, path: Path | str, rows: pa.Table, columns: Iterable[str] | None = None
) -> pa.Table:
    """The rows with the declared `columns` (default: all) under their physical names: from the path, by default, or null.

    Raises:
        UserError: a value in the path is not of the declared type.
    """
    named = path_values(path)
    for column in source.columns if columns is None else columns:
        physical, declared = source.physical(column), source.columns[column]
        if physical in rows.column_names:
            continue
        value = _parsed(source, path, column, named[physical]) if physical in named else source.defaults.get(column)
        array = pa.repeat(pa.scalar(value, ARROW_TYPES[declared]), rows.num_rows)
        rows = rows.append_column(physical, array)
    return rows


def _parsed(
    source: EventLog | Snapshot, path: Path | str, column: str, text: str | None
) -> bool | int | float | str | None:
    declared = source.columns[column]
    if text is None or declared == "string":
        return text
    try:
        if declared == "bool":
            return {"true": True, "false": False}[text.lower()]
        if declared in ("float32", "float64"):
            return float(text)
        if declared in ("int32", "int64"):
            value = int(text)
            pa.scalar(value, ARROW_TYPES[declared])
            return value
    except (ValueError, KeyError, OverflowError, pa.ArrowInvalid):
        pass
    raise UserError(
        f"source {source.name!r}: column {column!r} is {text!r} in the path {path}, declared {declared}; declare it string, or"
        " rename the folder"
    )

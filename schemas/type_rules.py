"""Which column types are numbers, ids and times, and how a reference to a column is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from genrank.schemas.base import ColumnType

NUMBERS: tuple[ColumnType, ...] = ("bool", "int32", "int64", "float32", "float64")
IDS: tuple[ColumnType, ...] = ("bool", "int32", "int64", "string")
ID_LISTS: tuple[ColumnType, ...] = ("list<int64>", "list<string>")
TIMES: tuple[ColumnType, ...] = ("timestamp", "int64")

Types = Mapping[str, ColumnType]
"""Reference -> the type of its column."""


def split(reference: str) -> tuple[str | None, str]:
    """(snapshot or None, column)."""
    snapshot, _, column = reference.rpartition(".")
    return snapshot or None, column


def families(types: Iterable[ColumnType]) -> set[str]:
    """Types up to width: ids of int32 and int64 columns are the same ids."""
    widths = {"int32": "int", "int64": "int", "float32": "float", "float64": "float"}
    return {widths.get(type_, type_) for type_ in types}


def id_space(type_: ColumnType | None) -> str | None:
    """`"strings"` or `"integers"`: which ids a column holds; None for what is no id."""
    if type_ not in (*IDS, *ID_LISTS):
        return None
    return "strings" if "string" in str(type_) else "integers"

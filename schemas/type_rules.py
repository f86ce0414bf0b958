"""Which column types are numbers, ids and times, and which vocabulary holds which ids."""

from __future__ import annotations

from collections.abc import Iterator

from genrank.schemas.base import ColumnType
from genrank.schemas.features import Feature
from genrank.schemas.table import Table
from genrank.schemas.vocabularies import Enumerated, Identity, Vocabulary

NUMBERS: tuple[ColumnType, ...] = ("bool", "int32", "int64", "float32", "float64")
IDS: tuple[ColumnType, ...] = ("bool", "int32", "int64", "string")
ID_LISTS: tuple[ColumnType, ...] = ("list<int64>", "list<string>")
TIMES: tuple[ColumnType, ...] = ("timestamp", "int64")


def vocabulary_mistakes(at: str, what: str, vocabulary: Vocabulary, *, text: bool) -> Iterator[str]:
    """Of a vocabulary that is to hold the ids of `what`: strings (`text`) or integers."""
    if isinstance(vocabulary, Identity) and text:
        yield f"{at}: {what!r} holds strings, which Identity can't index; use Enumerated, Hashed or Dynamic"
    if isinstance(vocabulary, Enumerated) and isinstance(vocabulary.values[0], str) != text:
        wanted = "strings" if text else "integers"
        yield f"{at}: {what!r} holds {wanted}, but the vocabulary enumerates {'integers' if text else 'strings'}; write {wanted}"


def vocabulary_of(feature: Feature) -> Vocabulary | None:
    """Its table's, or its own."""
    table = table_of(feature)
    return table.vocabulary if table else getattr(feature, "vocabulary", None)


def table_of(feature: Feature) -> Table | None:
    """The table it shares by name, if any."""
    return getattr(feature, "table", None)

"""Dynamic: ids get rows as training meets them, from the id map of `tokenization.dynamic`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from genrank.schemas.vocabularies import Dynamic
from genrank.tokenization.vocabularies.interface import VocabularyRows

if TYPE_CHECKING:
    from genrank.tokenization.id_statistics import ObservedIds


class DynamicRows(VocabularyRows[Dynamic]):
    """Passes ids unchanged: the id map before the table gives them rows."""

    def __init__(self, vocabularies: Sequence[Dynamic]) -> None:
        super().__init__(vocabularies)

    def forward(self, values: Tensor) -> Tensor:
        """[F, N] int64 ids, as they are."""
        return values

    @staticmethod
    def size_warnings(table: str, vocabulary: Dynamic, ids: Mapping[str, ObservedIds], distinct: int) -> list[str]:
        """A line if more ids were seen than there are rows."""
        if distinct <= vocabulary.capacity:
            return []
        return [
            f"table {table} has capacity for {vocabulary.capacity:,} ids and {distinct:,} were seen: rows will be evicted "
            "while still in use; raise the capacity or admit_after"
        ]

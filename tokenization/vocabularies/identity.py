"""Identity: the integers 0 .. size-1, each its own row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genrank.schemas.ids import SPECIAL_ROWS, UNKNOWN_ROW
from genrank.schemas.vocabularies import Identity
from genrank.tokenization.row_encoder import or_missing
from genrank.tokenization.vocabularies.interface import VocabularyRows

if TYPE_CHECKING:
    from genrank.tokenization.id_statistics import ObservedIds


class IdentityRows(VocabularyRows[Identity]):
    """Row `id + SPECIAL_ROWS`; the unknown row for ids outside 0 .. size-1."""

    sizes: Tensor

    def __init__(self, vocabularies: Sequence[Identity]) -> None:
        super().__init__(vocabularies)
        self.constant("sizes", [[vocabulary.size] for vocabulary in vocabularies], torch.int64)

    def forward(self, values: Tensor) -> Tensor:
        """[F, N] int64 ids -> [F, N] int64 rows."""
        known = (values >= 0) & (values < self.sizes)
        return or_missing(torch.where(known, values + SPECIAL_ROWS, UNKNOWN_ROW), values)

    @staticmethod
    def size_warnings(table: str, vocabulary: Identity, ids: Mapping[str, ObservedIds], distinct: int) -> list[str]:
        """A line for each feature that holds ids outside 0 .. size-1."""
        found = []
        for key, each in ids.items():
            beyond = int(((each.ids < 0) | (each.ids >= vocabulary.size)).sum())
            if beyond:
                found.append(
                    f"table {table} has rows for 0..{vocabulary.size - 1:,} and {key} holds {each.range}: {beyond:,} of "
                    f"{len(each):,} ids read the unknown row; raise the size, or use Hashed or Dynamic"
                )
        return found

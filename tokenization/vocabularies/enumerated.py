"""Enumerated: a closed list, in the order of its rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genrank.schemas.ids import SPECIAL_ROWS, UNKNOWN_ROW, hash_string
from genrank.schemas.vocabularies import Enumerated
from genrank.tokenization.row_encoder import or_missing
from genrank.tokenization.vocabularies.interface import VocabularyRows


class EnumeratedRows(VocabularyRows[Enumerated]):
    """The row of the listed value, by binary search among the sorted ids; the unknown row for any other id."""

    values: Tensor
    rows: Tensor

    def __init__(self, vocabularies: Sequence[Enumerated]) -> None:
        super().__init__(vocabularies)
        # Sorted ids with the row of each; padded at the end with the largest id and its row, which changes no search result.
        ids = [[stored_id(value) for value in each.values] for each in vocabularies]
        pairs = [sorted((id_, row) for row, id_ in enumerate(each, SPECIAL_ROWS)) for each in ids]
        width = max(map(len, pairs), default=0)
        padded = [p + [p[-1]] * (width - len(p)) for p in pairs]
        self.constant("values", [[v for v, _ in p] for p in padded], torch.int64)
        self.constant("rows", [[r for _, r in p] for p in padded], torch.int64)

    def forward(self, values: Tensor) -> Tensor:
        """[F, N] int64 ids -> [F, N] int64 rows."""
        at = torch.searchsorted(self.values, values.contiguous()).clamp_(max=self.values.shape[1] - 1)
        known = self.values.gather(1, at) == values
        return or_missing(torch.where(known, self.rows.gather(1, at), UNKNOWN_ROW), values)

    @staticmethod
    def id_names(vocabulary: Enumerated) -> dict[int, str]:
        """Every listed value by its stored id."""
        return {stored_id(value): str(value) for value in vocabulary.values}


def stored_id(value: str | int) -> int:
    """The id that samples store for a listed value: an integer as it is, a string's hash."""
    return hash_string(value) if isinstance(value, str) else value

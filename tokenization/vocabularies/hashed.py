"""Hashed: any id, into a fixed number of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genrank.schemas.ids import SPECIAL_ROWS
from genrank.schemas.vocabularies import Hashed
from genrank.tokenization.hashing import splitmix64
from genrank.tokenization.row_encoder import or_missing
from genrank.tokenization.vocabularies.interface import VocabularyRows

if TYPE_CHECKING:
    from genrank.tokenization.id_statistics import ObservedIds

CROWDED = 0.5
"""Ids per row above which a table is reported: at one id per two rows two of five ids share their row."""


class HashedRows(VocabularyRows[Hashed]):
    """Row `(splitmix64(id) mod 2^63) mod size + SPECIAL_ROWS`."""

    sizes: Tensor

    def __init__(self, vocabularies: Sequence[Hashed]) -> None:
        super().__init__(vocabularies)
        self.constant("sizes", [[vocabulary.size] for vocabulary in vocabularies], torch.int64)

    def forward(self, values: Tensor) -> Tensor:
        """[F, N] int64 ids -> [F, N] int64 rows."""
        return or_missing((splitmix64(values) & (2**63 - 1)) % self.sizes + SPECIAL_ROWS, values)

    @staticmethod
    def size_warnings(table: str, vocabulary: Hashed, ids: Mapping[str, ObservedIds], distinct: int) -> list[str]:
        """A line if more than `CROWDED` ids per row were seen."""
        if distinct <= CROWDED * vocabulary.size:
            return []
        return [
            f"table {table} hashes {distinct:,} ids into {vocabulary.size:,} rows: "
            f"{_sharing(distinct, vocabulary.size):.0%} of them share a row; raise the size or use Dynamic"
        ]


def _sharing(ids: int, rows: int) -> float:
    """Expected share of ids that share their row with another."""
    return float(1 - (1 - 1 / rows) ** (ids - 1))

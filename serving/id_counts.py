"""How many of the requests' ids have a row of their own in the model's tables: the share that doesn't grows as a model ages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from genrank.schemas.ids import MISSING_ID, UNKNOWN_ROW
from genrank.schemas.vocabularies import Hashed
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.features import row_encoder
from genrank.tokenization.row_encoder import RowEncoder


class Counted(NamedTuple):
    """Ids of some rows that one logical table was asked for, missing ones aside."""

    table: str
    known: int
    unknown: int
    """Outside the vocabulary, or without a row yet: they read the table's row for unknown ids."""


class IdCounter:
    """Counts ids of requests by logical table. Hashed tables have a row for every id and aren't counted; nor are numbers' buckets.

    Args:
        embeddings: of the model.
    """

    def __init__(self, embeddings: Embeddings) -> None:
        self._vocabularies = embeddings.vocabularies
        self._encoders: dict[str, RowEncoder] = {}
        self._read: dict[str, list[tuple[str, str]]] = {}
        stored = {
            (group, feature.name)
            for group, features in embeddings.plan.schema.groups()
            for feature in features
            if feature.stored in ("id", "ids")
        }
        for name, (table, _) in embeddings.plan.logical.items():
            readers = [(lookup.group, lookup.feature) for lookup, _ in embeddings.plan.readers_of(name)]
            readers = [reader for reader in readers if reader in stored]
            if not readers or isinstance(table.vocabulary, Hashed):
                continue
            self._read[name] = readers
            if not table.dynamic:
                self._encoders[name] = row_encoder(table.vocabulary)

    def count(self, rows: pa.RecordBatch) -> Iterator[Counted]:
        """Of every table that has readers among the stored features."""
        for name, readers in self._read.items():
            ids = torch.cat([_ids(rows, group, feature) for group, feature in readers])
            ids = ids[ids != MISSING_ID]
            unknown = int((self._rows(name, ids) == UNKNOWN_ROW).sum())
            yield Counted(name, len(ids) - unknown, unknown)

    def _rows(self, table: str, ids: Tensor) -> Tensor:
        if table in self._encoders:
            found: Tensor = self._encoders[table](ids[None])[0]
            return found
        vocabulary = self._vocabularies[table]
        return vocabulary.rows_of(ids.to(vocabulary.device)).cpu()


def _ids(rows: pa.RecordBatch, group: str, feature: str) -> Tensor:
    values = rows.column(group).field(feature)
    while pa.types.is_list(values.type):
        values = values.flatten()
    return torch.from_numpy(values.to_numpy(zero_copy_only=False).copy())

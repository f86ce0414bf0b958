"""The step from values to rows, for many lookups at once: what vocabularies and bucket transforms have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from genrank.schemas.ids import MISSING_ID, MISSING_ROW


class RowEncoder(nn.Module, ABC):
    """Values of F lookups to rows of their logical tables. Holds constants only, nothing that is learned.

    All lookups of one kind in a token group share one encoder, so that F features cost the launches of one.
    """

    @abstractmethod
    def forward(self, values: Tensor) -> Tensor:
        """[F, N] int64 ids or float32 numbers -> [F, N] int64 rows of the F logical tables."""

    def constant(self, name: str, values: object, dtype: torch.dtype) -> None:
        """Register a tensor that follows the module to its device and is in no checkpoint."""
        self.register_buffer(name, torch.tensor(values, dtype=dtype), persistent=False)


def or_missing(rows: Tensor, ids: Tensor) -> Tensor:
    """`rows`, but the missing row where the id is missing."""
    return torch.where(ids == MISSING_ID, MISSING_ROW, rows)

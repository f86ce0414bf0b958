"""Keys and values as they are kept: in bfloat16, in float32, or in int8 with a scale a token and head."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Storage = Literal["bf16", "float32", "int8"]


class StoredKeys(NamedTuple):
    """[S, heads, dim] of one layer's keys or values."""

    values: Tensor
    scale: Tensor | None
    """[S, heads, 1] float32, where values are int8: what they are multiplied by."""

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def read(self, dtype: torch.dtype) -> Tensor:
        """[S, heads, dim] as attention reads it."""
        return self.values.to(dtype) if self.scale is None else (self.values * self.scale).to(dtype)

    def first(self, rows: int) -> StoredKeys:
        """The first rows."""
        return StoredKeys(self.values[:rows], None if self.scale is None else self.scale[:rows])

    def then(self, later: StoredKeys) -> StoredKeys:
        """These rows, then the later ones."""
        scale = None if self.scale is None or later.scale is None else torch.cat([self.scale, later.scale])
        return StoredKeys(torch.cat([self.values, later.values]), scale)

    def to(self, device: torch.device | str) -> StoredKeys:
        """The same on another device."""
        return StoredKeys(self.values.to(device), None if self.scale is None else self.scale.to(device))


def store(x: Tensor, storage: Storage) -> StoredKeys:
    """[S, heads, dim] of any floating dtype, in memory of its own. int8 rounds each head of each token to 127 steps of its largest value."""
    if storage == "bf16":
        return StoredKeys(x.to(torch.bfloat16, copy=True), None)
    if storage == "float32":
        return StoredKeys(x.to(torch.promote_types(x.dtype, torch.float32), copy=True), None)
    scale = x.float().abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return StoredKeys((x.float() / scale).round().to(torch.int8), scale)


def rounded(x: Tensor, storage: Storage) -> Tensor:
    """What is read of x once it has been stored."""
    return store(x, storage).read(x.dtype)

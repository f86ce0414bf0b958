"""The 64-bit hashes of ids on any device: splitmix64's finaliser, and the combination of several ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genrank.schemas.ids import MISSING_ID


def splitmix64(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al., OOPSLA 2014), element by element: int64 -> int64, a bijection."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def combine_ids(ids: Sequence[Tensor]) -> Tensor:
    """[N] int64: one id from the combination of several ([N] int64 each), order mattering; missing where all of them are."""
    combined = torch.zeros_like(ids[0])
    missing = torch.ones_like(ids[0], dtype=torch.bool)
    for each in ids:
        combined = splitmix64(combined ^ splitmix64(each))
        missing &= each == MISSING_ID
    return combined.masked_fill(missing, MISSING_ID)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)

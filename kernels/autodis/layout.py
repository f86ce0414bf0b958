"""The numbers of one AutoDis op, and what its kernels read of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 128
"""Buckets of a number that the kernels take: twice as many spill registers in backward on sm_90."""


class Number(NamedTuple):
    """One AutoDis number."""

    row: int
    """Of the values."""
    buckets: int
    dim: int
    temperature: float

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of its parameters: lift, mixing, skip, meta-embeddings and the vector of a missing value."""
        h = self.buckets
        return [(h,), (h, h), (1,), (h, self.dim), (self.dim,)]


def table(numbers: Sequence[Number]) -> Tensor:
    """int32 [F, 6] of each number: row, buckets, dim, temperature (a float32's bits), first parameter among all in a row, first column."""
    sizes = [sum(map(math.prod, number.shapes)) for number in numbers]
    firsts = accumulate(sizes[:-1], initial=0)
    columns = accumulate((number.dim for number in numbers[:-1]), initial=0)
    temperatures = torch.tensor([number.temperature for number in numbers], dtype=torch.float32).view(torch.int32)
    rows = zip(numbers, temperatures.tolist(), firsts, columns, strict=True)
    return torch.tensor(
        [(n.row, n.buckets, n.dim, bits, first, column) for n, bits, first, column in rows], dtype=torch.int32
    )

"""The rows that a table starts with: counter-based random numbers, the same on any device, rank and merge."""

from __future__ import annotations

import torch
from torch import Tensor

from genrank.schemas.ids import hash_string
from genrank.schemas.table import Initializer, Normal, Uniform, Zeros
from genrank.tokenization.hashing import splitmix64
from genrank.tokenization.plan import MergedTable

INIT_CHUNK = 1 << 16
"""Rows initialised at once, so that temporaries stay small."""


def initial_rows(table: MergedTable, rows: Tensor, seed: int) -> Tensor:
    """[K, dim] float32: the initial weights of [K] physical rows.

    A function of the seed, the logical table's name and the row inside it: the same for any merge, any shard and any history
    of evictions. Counter-based: 53 bits of `splitmix64` per element, through the inverse normal distribution where it is normal.
    """
    starts = torch.tensor(table.starts, device=rows.device)
    keys = torch.tensor(_keys(table, seed), device=rows.device)
    member = torch.bucketize(rows, starts, right=True) - 1
    counter = (rows - starts[member])[:, None] * table.dim + torch.arange(table.dim, device=rows.device)
    bits = splitmix64(splitmix64(counter) ^ keys[member][:, None]) >> 11 & (2**53 - 1)
    uniform = (bits.double() + 0.5) * 2.0**-53
    return _spread(table.initializer, uniform).float()


class DeviceReset:
    """The same on a GPU, written where the rows lie, with the optimizer's state: `kernels.vocabulary`."""

    def __init__(self, table: MergedTable, device: torch.device) -> None:
        from genrank.kernels.vocabulary import gpu

        self.table, self.device = table, device
        self.starts = torch.tensor(table.starts).to(device)
        match table.initializer:
            case Normal(std=scale) | Uniform(bound=scale):
                self.numbers = gpu.reset_numbers(scale, device)
            case Zeros():
                self.numbers = gpu.reset_numbers(0.0, device)
        self._keys: dict[int, Tensor] = {}
        """Of each seed."""

    def __call__(self, weight: Tensor, first: Tensor | None, second: Tensor | None, rows: Tensor, seed: int) -> None:
        """Initial weights and state of [K] int64 physical rows; those below 0, which come last, are none."""
        from genrank.kernels.launch import to_device
        from genrank.kernels.vocabulary import gpu

        if seed not in self._keys:
            self._keys = {seed: to_device(_keys(self.table, seed), self.device)}
        normal = isinstance(self.table.initializer, Normal)
        gpu.reset_rows(weight, first, second, rows, self.starts, self._keys[seed], self.numbers, normal=normal)


def _keys(table: MergedTable, seed: int) -> list[int]:
    """What the random numbers of each logical table begin from."""
    return [hash_string(f"{seed}/{member.name}") for member in table.members]


def _spread(initializer: Initializer, uniform: Tensor) -> Tensor:
    """Numbers of the initialiser's distribution from uniform ones of (0, 1), float64."""
    match initializer:
        case Normal(std=std):
            normal: Tensor = torch.special.ndtri(uniform)
            return normal * std
        case Uniform(bound=bound):
            return (uniform * 2 - 1) * bound
        case Zeros():
            return torch.zeros_like(uniform)

"""Jagged batches with every mask of DESIGN as intervals: shared by the kernels' tests and the GPU benchmark. Torch
only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genrank.kernels.attention import IntervalMask

MASKS = ("causal", "strict", "window", "targets", "contextual", "mtgr", "full", "random")


@dataclass
class Batch:
    """offsets int64 [B+1], begin and end int32 [T]."""

    offsets: Tensor
    begin: Tensor
    end: Tensor

    @property
    def tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def pairs(self) -> int:
        """Visible pairs of one head: the keys of each query's interval, and itself where it lies outside."""
        sample = torch.searchsorted(self.offsets, torch.arange(self.tokens, device=self.begin.device), right=True) - 1
        own = torch.arange(self.tokens, device=self.begin.device) - self.offsets[sample]
        outside = (own < self.begin) | (own >= self.end)
        return int((self.end - self.begin).clamp(min=0).sum() + outside.sum())

    @property
    def mask(self) -> IntervalMask:
        """As attention's implementations take it: the queries are the keys."""
        return IntervalMask(self.offsets, self.offsets, None, self.begin, self.end)

    def to(self, device: str) -> Batch:
        return Batch(self.offsets.to(device), self.begin.to(device), self.end.to(device))


def sample_intervals(mask: str, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """begin, end of one sample of n tokens, its parameters drawn at random."""
    i = torch.arange(n)
    zero = torch.zeros(n, dtype=torch.int64)

    def below(high: int) -> int:
        return int(torch.randint(0, high + 1, (), generator=generator))

    if mask == "causal":
        return zero, i + 1
    if mask == "strict":
        return zero, i
    if mask == "window":
        return (i - below(n)).clamp(min=0), i + 1
    if mask == "targets":
        history = n - below(n)
        return zero, torch.minimum(i + 1, torch.tensor(history))
    if mask == "contextual":
        prefix = below(n)
        return zero, torch.where(i < prefix, prefix, i + 1)
    if mask == "mtgr":
        static = below(n)
        realtime = below(n - static)
        seen = static + torch.randint(0, realtime + 1, (n,), generator=generator)
        end = torch.where(i < static, static, torch.where(i < static + realtime, torch.minimum(seen, i), seen))
        return zero, end
    if mask == "full":
        return zero, torch.full((n,), n)
    begin = torch.randint(0, n + 1, (n,), generator=generator)
    return begin, torch.minimum(begin + torch.randint(-2, n + 1, (n,), generator=generator), torch.tensor(n))


def make_batch(lengths: list[int], mask: str, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return join([sample_intervals(mask, n, generator) for n in lengths])


def join(samples: list[tuple[Tensor, Tensor]]) -> Batch:
    """One batch of samples, each (begin, end)."""
    empty = torch.zeros(0, dtype=torch.int64)
    return Batch(
        torch.tensor([0, *[len(begin) for begin, _ in samples]]).cumsum(0),
        torch.cat([empty, *[begin for begin, _ in samples]]).int(),
        torch.cat([empty, *[end for _, end in samples]]).int(),
    )


def mtgr(samples: int, static: int, realtime: int, candidates: int, seed: int = 0) -> Batch:
    """MTGR's shape: user and history tokens see one another, realtime tokens their prefix, candidates a random
    prefix of it.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(samples):
        sees = static + torch.randint(0, realtime + 1, (candidates,), generator=generator).sort().values
        end = torch.cat([torch.full((static,), static), static + torch.arange(realtime), sees])
        made.append((torch.zeros(len(end), dtype=torch.int64), end))
    return join(made)


def hstu(lengths: list[int], targets: int = 0, window: int = 0) -> Batch:
    """HSTU's: causal, the last `targets` tokens see the history and themselves, `window` keys back at most (0: all)."""
    made = []
    for n in lengths:
        at = torch.arange(n)
        begin = (at + 1 - window).clamp(min=0) if window else torch.zeros(n, dtype=torch.int64)
        made.append((begin, (at + 1).clamp(max=max(n - targets, 0)) if targets else at + 1))
    return join(made)

"""Random jagged batches, and every mask of DESIGN as intervals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from torch import Tensor

MASKS = ("causal", "strict", "window", "targets", "contextual", "mtgr", "full", "random")


def interpreted(examples: int) -> settings:
    """Triton's interpreter takes seconds a case: report the first failure as it is, shrinking it would take minutes."""
    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    return settings(max_examples=examples, deadline=None, phases=phases, report_multiple_bugs=False)


@dataclass
class Batch:
    offsets: Tensor
    begin: Tensor
    end: Tensor

    @property
    def tokens(self) -> int:
        return int(self.offsets[-1])


def sample_intervals(mask: str, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """begin, end of one sample of n tokens."""
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
    pieces = [sample_intervals(mask, n, generator) for n in lengths]
    empty = torch.zeros(0, dtype=torch.int64)
    return Batch(
        torch.tensor([0, *lengths]).cumsum(0),
        torch.cat([empty, *[b for b, _ in pieces]]).int(),
        torch.cat([empty, *[e for _, e in pieces]]).int(),
    )


@st.composite
def batches(draw: st.DrawFn, longest: int = 40, most: int = 5) -> Batch:
    lengths = draw(st.lists(st.integers(0, longest), max_size=most))
    return make_batch(lengths, draw(st.sampled_from(MASKS)), draw(st.integers(0, 2**31)))

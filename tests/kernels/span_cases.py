"""Random spans, and tensors for them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from genrank.kernels.spans import SpanBias, Spans, make_spans


def random_spans(lengths: list[tuple[int, int]], count: int, seed: int) -> Spans:
    """Spans of samples of so many (queries, keys)."""
    generator = torch.Generator().manual_seed(seed)
    offsets = [torch.tensor([0, *[n[side] for n in lengths]]).cumsum(0) for side in (0, 1)]
    keys = torch.cat([torch.full((n[0],), n[1]) for n in [(0, 0), *lengths]])
    bounds = [
        torch.stack([(torch.rand(len(keys), generator=generator) * (keys + 1)).long() for _ in range(2)])
        for _ in range(count)
    ]
    edges = torch.cat(bounds).sort(0).values if count > 1 else bounds[0]
    spans = [(edges[2 * i], edges[2 * i + 1]) for i in range(count)]
    return make_spans(offsets[0], offsets[1], spans)


@st.composite
def draw_spans(draw: st.DrawFn, longest: int = 40, most: int = 4) -> Spans:
    lengths = draw(st.lists(st.tuples(st.integers(0, longest), st.integers(0, longest)), max_size=most))
    return random_spans(lengths, draw(st.integers(1, 3)), draw(st.integers(0, 2**31)))


def leaves_of(spans: Spans, heads: int, dims: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    queries, keys = int(spans.q_offsets[-1]), int(spans.k_offsets[-1])
    shapes = ((queries, heads, dims[0]), (keys, heads, dims[0]), (keys, heads, dims[1]))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


GRID = torch.tensor([0, 3, 10, 33, 100, 1_000, 12_345, 100_000, 2_000_000])
"""Times whose differences are far from a bucket's edge."""


def draw_bias(spans: Spans, heads: int, tables: str, dtype: torch.dtype) -> SpanBias:
    queries, keys = int(spans.q_offsets[-1]), int(spans.k_offsets[-1])
    return SpanBias(
        torch.randn(21, heads, dtype=dtype, requires_grad=True) if "position" in tables else None,
        torch.randn(12, heads, dtype=dtype, requires_grad=True) if "time" in tables else None,
        *(torch.randint(0, 30, (n,), dtype=torch.int32) for n in (queries, keys)),
        *(GRID[torch.randint(0, len(GRID), (n,))] for n in (queries, keys)),
    )

"""Random spans, and tensors for them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from genrank.kernels.attention.bias import position_row, time_row
from genrank.kernels.spans import SpanBias, SpanCall, Spans, make_spans


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


def conditions(inputs: list[Tensor], upstream: Tensor, call: SpanCall) -> list[Tensor]:
    """Of the output and of each gradient, float64: the sum of the absolute values of all that is added up on the way to an element, so
    that a correct algorithm errs by a few roundings of it, however much cancels (Higham, Accuracy and Stability of Numerical Algorithms,
    sections 3.1 and 4.2). A score that is off by eps * |q|.|k| changes softmax's weight by so much of itself, and SiLU and its slope by at
    most 1.1 and .5 of it; delta, `grad_out . out`, errs like the products that it is taken from."""
    q, k, v, g = (x.double() for x in (*inputs, upstream))
    spans, scale, bias = call[:3]
    out, dq, dk, dv = (torch.zeros(x.shape, dtype=torch.float64) for x in (upstream, q, k, v))
    of_tables = [torch.zeros(table.shape, dtype=torch.float64) for table in bias.tables]
    starts, ends = spans.q_offsets.tolist(), spans.k_offsets.tolist()
    for b in range(len(starts) - 1):
        of, to = slice(starts[b], starts[b + 1]), slice(ends[b], ends[b + 1])
        score = call.alpha * torch.einsum("qhd,khd->hqk", q[of], k[to])
        size = call.alpha * torch.einsum("qhd,khd->hqk", q[of].abs(), k[to].abs())
        rows = []
        if bias.position_table is not None:
            rows.append(
                position_row(bias.q_positions[of, None].long() - bias.k_positions[None, to], len(bias.position_table))
            )
        if bias.time_table is not None:
            rows.append(time_row(bias.q_times[of, None] - bias.k_times[None, to], len(bias.time_table)))
        for table, row in zip(bias.tables, rows, strict=True):
            score = score + table.double()[row].permute(2, 0, 1)
            size = size + table.double().abs()[row].permute(2, 0, 1)
        key = torch.arange(to.stop - to.start)
        visible = ((key >= spans.begin[:, of, None]) & (key < spans.end[:, of, None])).any(0)
        product = torch.einsum("qhd,khd->hqk", g[of].abs(), v[to].abs())
        if call.softmax:
            some = visible.any(1, keepdim=True)
            hidden = score.masked_fill(~visible & some, -torch.inf)
            weight = hidden.softmax(2) * some
            total = torch.where(some[:, 0], hidden.logsumexp(2), 0.0)
            weight = weight * (1 + size + total.abs()[..., None])
            read = torch.einsum("hqk,khd->qhd", weight, v[to].abs())
            slope = weight * (product + torch.einsum("qhd,qhd->hq", g[of].abs(), read)[..., None])
        else:
            share = scale[of, None].double() * visible
            weight = share * (torch.nn.functional.silu(score).abs() + 1.1 * size)
            read = torch.einsum("hqk,khd->qhd", weight, v[to].abs())
            slope = share * (1.1 + 0.5 * size) * product
        out[of] = read
        dq[of] = call.alpha * torch.einsum("hqk,khd->qhd", slope, k[to].abs())
        dk[to] = call.alpha * torch.einsum("hqk,qhd->khd", slope, q[of].abs())
        dv[to] = torch.einsum("hqk,qhd->khd", weight, g[of].abs())
        for sums, row in zip(of_tables, rows, strict=True):
            sums.index_add_(0, row.flatten(), slope.permute(1, 2, 0).flatten(0, 1))
    return [out, dq, dk, dv, *of_tables]

"""The Triton kernels of span attention, in the interpreter, against the float64 definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genrank.kernels.spans import SpanBias, SpanCall, Spans, make_spans, reference_span_attention
from genrank.kernels.spans import gpu as spans_gpu

from .cases import interpreted
from .span_cases import draw_bias, draw_spans, leaves_of, random_spans

BLOCKS = [spans_gpu.config(*c, 4, 1) for c in ((32, 16), (16, 32), (64, 64))]


def check(
    spans: Spans, dtype: torch.dtype, dims: tuple[int, int], heads: int, softmax: bool, tables: str, blocks: Any
) -> None:
    """At most 2x (forward) and 3x (backward) the error of the definition run in the same precision, and a floor of a few
    roundings."""
    torch.manual_seed(0)
    inputs = [x.detach().to(dtype) for x in leaves_of(spans, heads, dims, torch.float32)]
    bias = draw_bias(spans, heads, tables, torch.float32)
    bias = SpanBias(*(None if t is None else t.detach() for t in bias))
    call = SpanCall(spans, 1.0 / spans.seen.clamp(min=1).float(), bias, dims[0] ** -0.5, softmax)
    upstream = torch.randn(len(inputs[0]), heads, dims[1]).to(dtype)
    out, lse = spans_gpu.forward(*inputs, call, blocks)
    delta = (upstream.float() * out.float()).sum(2)
    got = [out, *spans_gpu.backward(upstream, lse, delta, *inputs, call, blocks)]

    def definition(precision: torch.dtype) -> list[Tensor]:
        leaves = [x.to(precision).requires_grad_() for x in (*inputs, *bias.tables)]
        rest = iter(leaves[3:])
        given = bias._replace(
            position_table=None if bias.position_table is None else next(rest),
            time_table=None if bias.time_table is None else next(rest),
        )
        whole = reference_span_attention(*leaves[:3], call._replace(bias=given))
        grads = torch.autograd.grad(whole, leaves, upstream.to(precision), allow_unused=True, materialize_grads=True)
        return [whole.detach(), *grads]

    for at, (have, want, rough) in enumerate(zip(got, definition(torch.float64), definition(dtype), strict=True)):
        if not want.numel():
            continue
        largest = want.abs().max()
        # Softmax's gradients are differences of what was rounded, those of tables sums of many.
        roundings = (4, 16)[softmax and at > 0] * (4 if at > 3 else 1)
        floor = roundings * (largest.clamp(min=1) if softmax and at else largest)
        allowed = (2 if at == 0 else 3) * (rough - want).abs().max() + torch.finfo(dtype).eps * floor
        assert (have - want).abs().max() <= allowed, f"output {at}: {(have - want).abs().max()} > {allowed}"


@interpreted(12)
@given(
    draw_spans(longest=50, most=3),
    st.sampled_from([torch.float32, torch.float16]),
    st.sampled_from([(16, 16), (24, 16), (16, 40)]),
    st.sampled_from([1, 2]),
    st.booleans(),
    st.sampled_from(["", "", "position", "position time"]),
    st.sampled_from(BLOCKS),
)
def test_kernels_equal_the_definition(
    spans: Spans, dtype: torch.dtype, dims: tuple[int, int], heads: int, softmax: bool, tables: str, blocks: Any
) -> None:
    check(spans, dtype, dims, heads, softmax, tables, blocks)


@pytest.mark.parametrize("softmax", [True, False])
def test_prefix_window_and_own_block_of_long_samples(softmax: bool) -> None:
    """Several units and chunks a sample; keys of a block are then seen by queries far apart."""
    lengths = torch.tensor([180, 0, 1, 90])
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    at = torch.cat([torch.arange(n) for n in lengths])
    spans = make_spans(offsets, offsets, [(at * 0, at.clamp(max=9)), ((at - 30).clamp(min=0), at - 4), (at, at + 1)])
    check(spans, torch.float32, (16, 16), 1, softmax, "", BLOCKS[-1])


def test_fewer_queries_than_keys() -> None:
    check(random_spans([(3, 200), (0, 7), (90, 1)], 2, 5), torch.float32, (16, 16), 1, True, "position time", BLOCKS[0])

"""The Triton kernels of span attention, in the interpreter, against the float64 definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genrank.kernels.spans import SpanBias, SpanCall, Spans, make_spans, reference_span_attention
from genrank.kernels.spans import configs as spans_configs
from genrank.kernels.spans import cpu as spans_cpu
from genrank.kernels.spans import gpu as spans_gpu

from .cases import interpreted
from .span_cases import conditions, draw_bias, draw_spans, leaves_of, random_spans

ROUNDINGS = 1.5
"""Of each element's condition. In a trial of random calls the kernels took at most .68 of one, the CPU's path .52, and the definition in the same
precision .69: none of the three is the worse for its order of additions, nor for exp2."""
BLOCKS = [spans_configs.config(*c, 4, 1) for c in ((32, 16), (16, 32), (64, 64))]


def check(
    spans: Spans, dtype: torch.dtype, dims: tuple[int, int], heads: int, softmax: bool, tables: str, blocks: Any
) -> None:
    """Every element's error against float64 within `ROUNDINGS` of its own condition (`span_cases.conditions`): what rounding alone
    explains, and no more. A largest error beside a largest value would not do: where a query sees one key, or keys that say the same, the
    gradient of its scores is zero as a difference of equal products, whose rounding is left."""
    torch.manual_seed(0)
    inputs = [x.detach().to(dtype) for x in leaves_of(spans, heads, dims, torch.float32)]
    bias = draw_bias(spans, heads, tables, torch.float32)
    bias = SpanBias(*(None if t is None else t.detach() for t in bias))
    call = SpanCall(spans, 1.0 / spans.seen.clamp(min=1).float(), bias, dims[0] ** -0.5, softmax)
    upstream = torch.randn(len(inputs[0]), heads, dims[1]).to(dtype)
    got = {
        "kernel": run(spans_gpu, blocks, inputs, upstream, call),
        "cpu": run(spans_cpu, None, inputs, upstream, call),
    }
    wanted, condition = exactly(inputs, upstream, call), conditions(inputs, upstream, call)
    for who, outputs in got.items():
        for at, (have, want, scale) in enumerate(zip(outputs, wanted, condition, strict=True)):
            error = (have.double() - want).abs()
            allowed = ROUNDINGS * torch.finfo(dtype).eps * scale + torch.finfo(dtype).tiny
            assert (error <= allowed).all(), (
                f"{who}, output {at}: {(error / allowed).max()} times what rounding explains"
            )


def run(module: Any, blocks: Any, inputs: list[Tensor], upstream: Tensor, call: SpanCall) -> list[Tensor]:
    """Output and gradients, by the kernels or by the CPU's path."""
    more = () if blocks is None else (blocks,)
    out, lse = module.forward(*inputs, call, *more)
    delta = (upstream.float() * out.float()).sum(2) if call.softmax else lse
    return [out, *module.backward(upstream, lse, delta, *inputs, call, *more)]


def exactly(inputs: list[Tensor], upstream: Tensor, call: SpanCall) -> list[Tensor]:
    """The definition's output and gradients in float64."""
    leaves = [x.double().requires_grad_() for x in (*inputs, *call.bias.tables)]
    rest = iter(leaves[3:])
    tables = (None if table is None else next(rest) for table in call.bias[:2])
    whole = reference_span_attention(*leaves[:3], call._replace(bias=SpanBias(*tables, *call.bias[2:])))
    grads = torch.autograd.grad(whole, leaves, upstream.double(), allow_unused=True, materialize_grads=True)
    return [whole.detach(), *grads]


@interpreted(8)
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

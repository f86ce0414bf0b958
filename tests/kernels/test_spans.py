"""Span attention against its definition, on CPU: softmax and SiLU, one to three spans, queries apart from keys."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genrank.kernels.spans import SpanBias, SpanCall, Spans, make_spans, reference_span_attention, span_attention

from .span_cases import draw_bias, draw_spans, leaves_of


def define(q: Tensor, k: Tensor, v: Tensor, spans: Spans, softmax: bool, bias: SpanBias) -> Tensor:
    scale = 1.0 / spans.seen.clamp(min=1).float()
    return reference_span_attention(q, k, v, SpanCall(spans, scale, bias, 1 / math.sqrt(q.shape[2]), softmax))


@settings(max_examples=60, deadline=None)
@given(draw_spans(), st.sampled_from(["softmax", "silu"]), st.sampled_from(["", "position", "position time"]))
def test_blocked_equals_definition(spans: Spans, weighting: str, tables: str) -> None:
    torch.manual_seed(0)
    q, k, v = leaves_of(spans, 2, (5, 7), torch.float64)
    bias = draw_bias(spans, 2, tables, torch.float64)
    leaves = [q, k, v, *bias.tables]
    out = span_attention(q, k, v, spans, weighting=weighting, bias=bias)
    want = define(q, k, v, spans, weighting == "softmax", bias)
    torch.testing.assert_close(out, want, rtol=1e-9, atol=1e-12)
    upstream = torch.randn_like(out)
    got = torch.autograd.grad(out, leaves, upstream)
    expected = torch.autograd.grad(want, leaves, upstream, allow_unused=True, materialize_grads=True)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_long_samples_are_cut_into_chunks() -> None:
    """Prefix and window of samples longer than a chunk; and one query block that asks of many keys."""
    torch.manual_seed(1)
    lengths = torch.tensor([300, 1, 0, 129])
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    at = torch.cat([torch.arange(n) for n in lengths])
    spans = make_spans(offsets, offsets, [(at * 0, at.clamp(max=9)), ((at - 20).clamp(min=0), at + 1)])
    q, k, v = leaves_of(spans, 2, (8, 4), torch.float64)
    out, want = span_attention(q, k, v, spans), define(q, k, v, spans, True, SpanBias())
    torch.testing.assert_close(out, want)
    upstream = torch.randn_like(out)
    for a, b in zip(
        torch.autograd.grad(out, [q, k, v], upstream), torch.autograd.grad(want, [q, k, v], upstream), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("weighting", ["softmax", "silu"])
def test_gradcheck(weighting: str) -> None:
    spans = Spans(
        torch.tensor([0, 2, 2, 5]), torch.tensor([0, 4, 5, 9]),
        torch.tensor([[0, 1, 0, 2, 0], [3, 2, 2, 3, 0]]).int(), torch.tensor([[2, 1, 1, 2, 4], [4, 4, 4, 3, 0]]).int(),
    )  # fmt: skip
    q, k, v = leaves_of(spans, 2, (3, 2), torch.float64)
    bias = draw_bias(spans, 2, "position time", torch.float64)

    def run(q: Tensor, k: Tensor, v: Tensor, position: Tensor, time: Tensor) -> Tensor:
        given = bias._replace(position_table=position, time_table=time)
        return span_attention(q, k, v, spans, weighting=weighting, bias=given)

    assert torch.autograd.gradcheck(run, (q, k, v, bias.position_table, bias.time_table))


def test_a_query_that_sees_nothing_is_zero_and_has_no_gradient() -> None:
    none = torch.zeros(1, 3, dtype=torch.int32)
    spans = Spans(torch.tensor([0, 3]), torch.tensor([0, 2]), none, none)
    q, k, v = leaves_of(spans, 1, (4, 4), torch.float32)
    out = span_attention(q, k, v, spans)
    assert torch.equal(out, torch.zeros(3, 1, 4))
    assert all(not g.any() for g in torch.autograd.grad(out.sum(), [q, k, v]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=3))
def test_overlapping_spans_are_united(bounds: list[tuple[int, int]]) -> None:
    bounds = sorted(bounds)
    given = [(torch.tensor([b]), torch.tensor([e])) for b, e in bounds]
    made = make_spans(torch.tensor([0, 1]), torch.tensor([0, 9]), given)
    covered = [i for b, e in zip(made.begin[:, 0].tolist(), made.end[:, 0].tolist(), strict=True) for i in range(b, e)]
    assert sorted(covered) == sorted({i for b, e in bounds for i in range(b, e)})


def test_bad_input_is_named() -> None:
    spans = make_spans(torch.tensor([0, 2]), torch.tensor([0, 3]), [(torch.tensor([0, 0]), torch.tensor([2, 3]))])
    q, k, v = leaves_of(spans, 1, (4, 4), torch.float32)
    with pytest.raises(ValueError, match=r"query 1 sees keys \[0, 9\) of its sample, which has 3"):
        span_attention(q, k, v, spans._replace(end=torch.tensor([[2, 9]]).int()))
    with pytest.raises(ValueError, match="do not overlap"):
        twice = spans._replace(begin=spans.begin.repeat(2, 1), end=spans.end.repeat(2, 1))
        span_attention(q, k, v, twice)
    with pytest.raises(TypeError, match=r"begin must be int32 \[spans, 2\]"):
        span_attention(q, k, v, spans._replace(begin=spans.begin[0]))
    with pytest.raises(ValueError, match="disagree in tokens, heads or qk dim"):
        span_attention(q, k[:, :, :2], v, spans)
    with pytest.raises(TypeError, match="one floating dtype"):
        span_attention(q, k.double(), v, spans)
    with pytest.raises(ValueError, match="rise from 0 to 3"):
        span_attention(q, k, v, spans._replace(k_offsets=torch.tensor([0, 2])))
    with pytest.raises(ValueError, match=r"needs bias\.q_times"):
        span_attention(q, k, v, spans, bias=SpanBias(time_table=torch.zeros(4, 1)))
    with pytest.raises(ValueError, match="divisor is a positive number of keys"):
        span_attention(q, k, v, spans, divisor=3)


@pytest.mark.parametrize("softmax", [True, False])
def test_the_ops_are_registered_as_pytorch_wants(softmax: bool) -> None:
    spans = make_spans(torch.tensor([0, 2, 2]), torch.tensor([0, 3, 4]), [(torch.tensor([0, 0]), torch.tensor([2, 3]))])
    leaves, bias = leaves_of(spans, 2, (4, 6), torch.float32), draw_bias(spans, 2, "position time", torch.float32)
    rest = SpanCall(spans, torch.ones(2), bias, 0.5, softmax).flat()
    torch.library.opcheck(torch.ops.genrank.span_attention, (*leaves, *rest))
    plain = [t.detach() if isinstance(t, Tensor) else t for t in (*leaves, *rest)]
    out, lse = torch.ops.genrank.span_attention(*plain)
    torch.library.opcheck(torch.ops.genrank.span_attention_backward, (torch.randn_like(out), out, lse, *plain))

"""Span attention: every query of a sample sees the keys of a few spans of that sample's keys.

    softmax:   out_q = sum_k softmax_k(alpha q.k + bias) v_k          over the visible keys (Vaswani et al., arXiv 1706.03762)
    silu:      out_q = 1/n_q sum_k silu(alpha q.k + bias) v_k         (HSTU, arXiv 2402.17152, equation 2)

Queries and keys are two jagged tensors of one batch, so that a layer may ask for fewer rows than it reads (LONGER's
cross attention, OneTrans' pyramid), or candidates may read a user's keys and their own. Spans express causal masks, a global
prefix beside a window (ULTRA-HSTU), and a prefix beside a block of a candidate's own tokens. Nobody sees itself by right: a query's
own key belongs to its spans or is not seen. `kernels.attention` is the special case of one interval and oneself under SiLU, with
dropout, and has kernels of its own for it.

`reference.py` is the definition. `cpu.py` computes it on CPU, `gpu.py` on GPU; this file validates, registers the ops
with PyTorch (autograd, fake tensors) and dispatches.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from genrank.kernels.dispatch import backend_for
from genrank.kernels.spans import cpu
from genrank.kernels.spans.call import FLAT_SCHEMA, TENSORS, SpanBias, SpanCall, Spans, Weighting
from genrank.kernels.spans.reference import reference_span_attention


def span_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Spans,
    *,
    weighting: Weighting = "softmax",
    alpha: float | None = None,
    divisor: int | None = None,
    bias: SpanBias | None = None,
    max_length: int | None = None,
) -> Tensor:
    """Attention of the queries over the keys of their spans.

    Args:
        q: [Tq, H, Dqk]; k: [Tk, H, Dqk]; v: [Tk, H, Dv]; one floating dtype.
        spans: which query sees which keys (`make_spans`).
        weighting: "softmax" over the visible keys, or "silu" of each score alone, divided by `divisor`.
        alpha: scale of the scores, default `1/sqrt(Dqk)`.
        divisor: of SiLU: that number, or the number of keys the query sees (None).
        bias: relative position and time bias.
        max_length: keys of the longest sample, if the host knows it: what the choice of a configuration depends on.

    Returns: [Tq, H, Dv], dtype of v; zeros for a query that sees nothing. Differentiable in q, k, v and both bias tables.

    Raises: TypeError for wrong dtypes, ValueError for wrong shapes and, on CPU, for spans that leave their sample or overlap (on GPU
        they are clamped to it, and overlapping keys count once for each span).
    """
    check_inputs(q, k, v, spans, bias)
    if divisor is not None and (divisor < 1 or weighting == "softmax"):
        raise ValueError(
            f"divisor is a positive number of keys, for weighting='silu'; got {divisor} with {weighting!r}"
        )
    if weighting not in ("softmax", "silu"):
        raise ValueError(f"weighting must be 'softmax' or 'silu', got {weighting!r}")
    seen = spans.begin.new_ones(spans.begin.shape[1]) if weighting == "softmax" else spans.seen.clamp(min=1)
    scale = 1.0 / (seen if divisor is None else torch.full_like(seen, divisor)).float()
    alpha = 1.0 / math.sqrt(q.shape[2]) if alpha is None else float(alpha)
    longest = -1 if max_length is None else int(max_length)
    call = SpanCall(spans, scale, bias or SpanBias(), alpha, weighting == "softmax", longest)
    if backend_for(q) == "reference":
        return reference_span_attention(q, k, v, call)
    out: Tensor = torch.ops.genrank.span_attention(q, k, v, *call.flat())[0]
    return out


def check_inputs(q: Tensor, k: Tensor, v: Tensor, spans: Spans, bias: SpanBias | None) -> None:
    """Shapes and dtypes; never values, which would wait for the device."""
    if q.dim() != 3 or k.dim() != 3 or v.dim() != 3:
        raise ValueError(
            f"q, k and v must be [tokens, heads, dim], got {list(q.shape)}, {list(k.shape)}, {list(v.shape)}"
        )
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise TypeError(f"q, k and v must share one floating dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if k.shape[:2] != v.shape[:2] or q.shape[1:] != k.shape[1:]:
        raise ValueError(
            f"q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)} disagree in tokens, heads or qk dim"
        )
    for name, offsets in (("q_offsets", spans.q_offsets), ("k_offsets", spans.k_offsets)):
        if offsets.dim() != 1 or offsets.dtype not in (torch.int32, torch.int64) or len(offsets) < 1:
            raise TypeError(f"{name} must be int32 or int64 [B+1], got {offsets.dtype} {list(offsets.shape)}")
    for name, bound in (("begin", spans.begin), ("end", spans.end)):
        if bound.dtype != torch.int32 or bound.dim() != 2 or bound.shape[1:] != q.shape[:1] or not len(bound):
            raise TypeError(f"{name} must be int32 [spans, {q.shape[0]}], got {bound.dtype} {list(bound.shape)}")
    if spans.begin.shape != spans.end.shape:
        raise ValueError(f"begin and end have {len(spans.begin)} and {len(spans.end)} spans")
    for name, table in (("position_table", bias and bias.position_table), ("time_table", bias and bias.time_table)):
        if table is not None and (table.dim() != 2 or table.shape[1] != q.shape[1]):
            raise ValueError(f"bias.{name} must be [rows, {q.shape[1]} heads], got {list(table.shape)}")
    if bias is None:
        return
    if bias.position_table is not None and bias.position_table.shape[0] % 2 == 0:
        raise ValueError(f"bias.position_table must have 2P-1 rows, an odd number; got {bias.position_table.shape[0]}")
    needed = (
        ("q_positions", bias.q_positions, torch.int32, q, bias.position_table),
        ("k_positions", bias.k_positions, torch.int32, k, bias.position_table),
        ("q_times", bias.q_times, torch.int64, q, bias.time_table),
        ("k_times", bias.k_times, torch.int64, k, bias.time_table),
    )
    for name, given, dtype, of, table in needed:
        if table is None:
            continue
        if given is None:
            raise ValueError(f"the bias table needs bias.{name}")
        if given.dtype != dtype or given.shape != of.shape[:1]:
            raise TypeError(f"bias.{name} must be {dtype} [{of.shape[0]}], got {given.dtype} {list(given.shape)}")


# --- the ops, as PyTorch sees them ------------------------------------------------------------------------------------


@torch.library.custom_op(
    "genrank::span_attention",
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, {FLAT_SCHEMA}) -> (Tensor, Tensor)",
)
def _forward(q: Tensor, k: Tensor, v: Tensor, *flat: Any) -> tuple[Tensor, Tensor]:
    """(out, log-sum-exp of each query's scores [Tq, H], infinite where it sees nothing; [0, H] for SiLU)."""
    call = SpanCall.of(flat)
    if backend_for(q) == "triton":
        from genrank.kernels.spans import gpu

        return gpu.forward(q, k, v, call)
    with torch.autocast(q.device.type, enabled=False):
        return cpu.forward(q, k, v, call)


@torch.library.custom_op(
    "genrank::span_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad_out, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, {FLAT_SCHEMA}) -> Tensor[]",
)
def _backward(grad_out: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *flat: Any) -> list[Tensor]:
    """Gradients of q, k, v and then of whichever tables there are."""
    call = SpanCall.of(flat)
    # The softmax's own sum: d score = p (d p - sum p d p), and sum p d p = grad_out . out.
    delta = (grad_out.to(lse.dtype) * out.to(lse.dtype)).sum(2) if call.softmax else lse
    if backend_for(q) == "triton":
        from genrank.kernels.spans import gpu

        return gpu.backward(grad_out, lse, delta, q, k, v, call)
    with torch.autocast(q.device.type, enabled=False):
        return cpu.backward(grad_out, lse, delta, q, k, v, call)


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *flat: Any) -> tuple[Tensor, Tensor]:
    rows = q.shape[0] if SpanCall.of(flat).softmax else 0
    return v.new_empty(q.shape[0], q.shape[1], v.shape[2]), q.new_empty(rows, q.shape[1], dtype=wide(q.dtype))


@_backward.register_fake
def _(grad_out: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *flat: Any) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (q, k, v, *SpanCall.of(flat).bias.tables)]


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs[: 3 + TENSORS])
    ctx.rest = inputs[3 + TENSORS :]


def _differentiate(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    out, lse, q, k, v, *tensors = ctx.saved_tensors
    bias = SpanCall.of((*tensors, *ctx.rest)).bias
    grads = torch.ops.genrank.span_attention_backward(grad_out, out, lse, q, k, v, *tensors, *ctx.rest)
    tables = iter(grads[3:])
    position = None if bias.position_table is None else next(tables)
    time = None if bias.time_table is None else next(tables)
    return *grads[:3], *[None] * 5, position, time, *[None] * 7


_forward.register_autograd(_differentiate, setup_context=_save)

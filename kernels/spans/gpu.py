"""Span attention on GPU: the plan of a batch's programs, and the launches. `configs.py` says what a call may choose.

A query block walks the keys of one span after the other; a key block walks the chunks of queries of its sample and skips
those whose spans do not reach it. Tiles, units of work and bias tables are those of `kernels.attention`, and so is the fixed-point
sum of the tables' gradients: every sum has one owner and one order, so that gradients are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from genrank.kernels.attention.gpu import check_reach, strides, unit_stride
from genrank.kernels.attention.hopper import choice
from genrank.kernels.attention.interval import planned
from genrank.kernels.attention.plan import CHUNK, UNIT
from genrank.kernels.launch import INTERPRET, Tuned
from genrank.kernels.spans.call import SpanBias, SpanCall
from genrank.kernels.spans.configs import BACKWARD_KV, BACKWARD_Q, FORWARD, fits
from genrank.kernels.spans.plan import Plan, make_plan
from genrank.kernels.spans.triton_backward import span_backward_kv_kernel, span_backward_q_kernel
from genrank.kernels.spans.triton_forward import span_forward_kernel

HEADROOM = 256.0
"""SiLU's weights and slopes, which carry 1/n, are multiplied by this before they are rounded to float16."""


TUNED_FOR = ["bucket", "DIM", "VALUE_DIM", "HAS_POSITION", "HAS_TIME", "SPANS", "SOFTMAX"]
forward_tuned = Tuned(span_forward_kernel, FORWARD, TUNED_FOR, fits, length="bucket")
backward_q_tuned = Tuned(span_backward_q_kernel, BACKWARD_Q, TUNED_FOR, fits, ["position_sum", "time_sum"], "bucket")
backward_kv_tuned = Tuned(span_backward_kv_kernel, BACKWARD_KV, TUNED_FOR, fits, length="bucket")


# --- launches ---------------------------------------------------------------------------------------------------------


def forward(
    q: Tensor, k: Tensor, v: Tensor, call: SpanCall, chosen: triton.Config | None = None
) -> tuple[Tensor, Tensor]:
    """`reference_span_attention`, and the log-sum-exp of each query's scores ([0, H] for SiLU). chosen: overrides what
    tuning chose."""
    if chosen is None and choice.wanted():
        from genrank.kernels.spans.hopper import gpu as hopper

        usual, gluon = (lambda: own_forward(q, k, v, call)), (lambda: hopper.forward(q, k, v, call))
        served = hopper.serves(q, k, v, call)
        return choice.run("spans forward", served, choice_key(q, k, call), q.device, usual, gluon)
    return own_forward(q, k, v, call, chosen)


def own_forward(
    q: Tensor, k: Tensor, v: Tensor, call: SpanCall, chosen: triton.Config | None = None
) -> tuple[Tensor, Tensor]:
    """`forward` by the kernels of this folder."""
    spans, scale, bias = call[:3]
    q, k, v = (unit_stride(x) for x in (q, k, v))
    check_reach(call.max_length, q, k, v)
    out = v.new_empty(q.shape[0], q.shape[1], v.shape[2])
    lse = q.new_empty(q.shape[0] if call.softmax else 0, q.shape[1], dtype=torch.float32)
    if not len(q):
        return out, lse
    plan = planned(spans, ("triton", len(k)), lambda: make_plan(spans, len(k)))
    forward_tuned(
        per_unit(len(plan.q_units), q.shape[1], "BLOCK_M"),
        [
            *(q, k, v, out, lse, spans.k_offsets, spans.begin, spans.end, scale, plan.q_units),
            *(*pointers(bias, scale), *scalars(call, q), len(q), *strides(q, k, v, out), bucket_of(call, len(k))),
        ],
        constants(q, v, call),
        chosen,
    )
    return out, lse


def backward(
    grad_out: Tensor,
    lse: Tensor,
    delta: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    call: SpanCall,
    chosen: triton.Config | None = None,
) -> list[Tensor]:
    """Gradients of q, k, v and of whichever tables the bias has, in their dtypes."""
    if chosen is None and choice.wanted():
        from genrank.kernels.spans.hopper import gpu as hopper

        usual = lambda: own_backward(grad_out, lse, delta, q, k, v, call)  # noqa: E731
        gluon = lambda: hopper.backward(grad_out, lse, delta, q, k, v, call)  # noqa: E731
        served = hopper.serves(q, k, v, call)
        return choice.run("spans backward", served, choice_key(q, k, call), q.device, usual, gluon)
    return own_backward(grad_out, lse, delta, q, k, v, call, chosen)


def choice_key(q: Tensor, k: Tensor, call: SpanCall) -> str:
    """What a choice between these kernels and those for sm_90 depends on."""
    return f"bucket={bucket_of(call, len(k))} DIM={q.shape[2]} SPANS={len(call.spans.begin)}"


def own_backward(
    grad_out: Tensor,
    lse: Tensor,
    delta: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    call: SpanCall,
    chosen: triton.Config | None = None,
) -> list[Tensor]:
    """`backward` by the kernels of this folder."""
    spans, scale, bias = call[:3]
    grad_out, q, k, v = (unit_stride(x) for x in (grad_out, q, k, v))
    check_reach(call.max_length, grad_out, q, k, v)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    tables = bias.tables
    if not len(q) or not len(k):
        return [dq.zero_(), dk.zero_(), dv.zero_(), *[torch.zeros_like(t) for t in tables]]
    plan = planned(spans, ("triton", len(k)), lambda: make_plan(spans, len(k)))
    sums = [torch.zeros(t.shape, dtype=torch.int64, device=t.device) for t in tables]
    fixed_point = fixed_point_for(grad_out, v, call, plan) if tables else scale
    # Never another argument in their place: tuning sets them to zero between its trials.
    unused = plan.q_units.new_empty(1)
    position_sum = sums[0] if bias.position_table is not None else unused
    time_sum = sums[-1] if bias.time_table is not None else unused
    biases, numbers, bucket = pointers(bias, scale), scalars(call, q), bucket_of(call, len(k))
    backward_q_tuned(
        per_unit(len(plan.q_units), q.shape[1], "BLOCK_M"),
        [
            *(q, k, v, grad_out, dq, lse, delta, spans.k_offsets, spans.begin, spans.end, scale, plan.q_units, *biases),
            *(position_sum, time_sum, fixed_point, *numbers, len(q), *strides(q, k, v, grad_out, dq), bucket),
        ],
        constants(q, v, call),
        chosen,
    )
    backward_kv_tuned(
        per_unit(len(plan.k_units), q.shape[1], "BLOCK_N"),
        [
            *(q, k, v, grad_out, dk, dv, lse, delta, spans.q_offsets, spans.begin, spans.end, scale),
            *(plan.k_units, plan.summary, plan.chunk_starts[1:], *biases, *numbers, len(q), len(k)),
            *(*strides(q, k, v, grad_out, dk, dv), bucket),
        ],
        constants(q, v, call) | {"HEADROOM": HEADROOM, "CHUNK_ROWS": CHUNK},
        chosen,
    )
    return [dq, dk, dv, *[(s.double() / fixed_point).to(t.dtype) for s, t in zip(sums, tables, strict=True)]]


def per_unit(count: int, heads: int, block: str) -> Callable[[dict[str, Any]], tuple[int, ...]]:
    """One dimension, heads innermost: all heads of a unit start together."""
    return lambda chosen: (count * (UNIT // chosen[block]) * heads,)


def bucket_of(call: SpanCall, key_tokens: int) -> int:
    """The longest sample, or else the mean length, rounded up to a power of two."""
    length = call.max_length if call.max_length >= 0 else key_tokens // max(len(call.spans.k_offsets) - 1, 1)
    return 1 << length.bit_length()


def pointers(bias: SpanBias, absent: Tensor) -> list[Tensor]:
    """The bias's tensors; `absent`, which is not read, in the place of those that it lacks."""
    return [absent if t is None else t.contiguous() for t in bias]


def scalars(call: SpanCall, q: Tensor) -> list[float]:
    """alpha, reach, time_rows and heads of the kernels."""
    bias = call.bias
    reach = 0 if bias.position_table is None else (bias.position_table.shape[0] - 1) // 2
    return [call.alpha, reach, 0 if bias.time_table is None else bias.time_table.shape[0], q.shape[1]]


def constants(q: Tensor, v: Tensor, call: SpanCall) -> dict[str, Any]:
    """Compile-time arguments that all three kernels have."""
    return {
        "DIM": q.shape[2],
        "VALUE_DIM": v.shape[2],
        "WIDTH": max(16, triton.next_power_of_2(q.shape[2])),
        "VALUE_WIDTH": max(16, triton.next_power_of_2(v.shape[2])),
        "HAS_POSITION": call.bias.position_table is not None,
        "HAS_TIME": call.bias.time_table is not None,
        "SPANS": len(call.spans.begin),
        "SOFTMAX": call.softmax,
        "FAST": q.dtype == torch.bfloat16 and not INTERPRET,
        "PRECISION": "tf32" if q.is_cuda and torch.backends.cuda.matmul.allow_tf32 else "ieee",
        "UNIT_ROWS": UNIT,
    }


def fixed_point_for(grad_out: Tensor, v: Tensor, call: SpanCall, plan: Plan) -> Tensor:
    """float32 []: a power of two F such that all gradients of the scores, times F, add up to less than 2^61.

    Softmax: |ds| <= weight * 2 |grad_out| |v|, and a query's weights add up to 1. SiLU: |ds| <= |grad_out| |v| max|silu'| / n for
    each of `plan.pairs`. NaN where a gradient is not finite.
    """
    grad_norm, v_norm = (torch.linalg.vector_norm(x, dim=2, dtype=torch.float32) for x in (grad_out, v))
    if call.softmax:
        bound = grad_norm.amax().double() * v_norm.amax() * (2.2 * len(grad_out))
    else:
        bound = (grad_norm.amax(1) * call.scale).amax().double() * v_norm.amax() * 1.1 * plan.pairs.sum().clamp(min=1)
    exponent = (61.0 - torch.log2(bound)).floor().clamp(max=100.0)
    return torch.where(bound.isfinite(), torch.exp2(exponent), torch.nan).float()

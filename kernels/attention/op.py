"""Interval attention: SiLU attention over jagged sequences whose every mask is an interval and oneself.

    A = silu(alpha * Q K^T + bias) * visible / n          out = A V

No softmax: each weight stands alone, the mask multiplies after SiLU, and `n` is a number of tokens (HSTU, arXiv
2402.17152, equation 2; MTGR, arXiv 2505.18654, section 3.3). The keys that query q sees are `[begin_q, end_q)` and q
itself, which covers HSTU's causal, target, contextual, window and full-tail masks and MTGR's dynamic mask without any
mask matrix.

`reference.py` is the definition. `cpu.py` computes it on CPU, `gpu.py` on GPU; this file validates, registers the ops
with PyTorch (autograd, fake tensors) and dispatches.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from genrank.kernels.attention import cpu
from genrank.kernels.attention.bias import RelativeBias
from genrank.kernels.attention.call import FLAT_SCHEMA, TENSORS, AttentionCall
from genrank.kernels.attention.interval import (
    Divisor,
    IntervalMask,
    asked_by,
    check_if_requested,
    queries_of,
    row_scale,
)
from genrank.kernels.attention.reference import reference_attention, reference_keep
from genrank.kernels.dispatch import backend_for, draw_seed
from genrank.kernels.rows import lay_rows, pick_rows


def interval_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    begin: Tensor,
    end: Tensor,
    *,
    alpha: float | None = None,
    divisor: Divisor = "length",
    bias: RelativeBias | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    max_length: int | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """SiLU attention in which query q of a sample sees keys `[begin_q, end_q)` of that sample and itself.

    Args:
        q, k: [T, H, Dqk]; v: [T, H, Dv]; one floating dtype. T tokens of B samples, one sample after the other.
        offsets: int32 or int64 [B+1]; sample b owns rows `offsets[b]:offsets[b+1]`. Lengths may be 0.
        begin, end: int32 [T], local to the sample (0 is its first token); `begin >= end` sees nothing but itself.
        alpha: scale of the scores, default `1/sqrt(Dqk)`.
        divisor: `n` above. "length": the number of tokens of the sample (MTGR). "visible": the number of keys the
            query sees.
            An integer: that number (HSTU divides by its maximum length). Only the latter two leave a candidate's score
            independent of how many other candidates are scored beside it.
        bias: relative position and time bias, see `RelativeBias`.
        dropout: probability with which each attention weight is zeroed (the others are divided by `1 - dropout`).
        seed: of the dropout; drawn from PyTorch's generator when None. One seed always gives one mask on one backend.
        max_length: tokens of the longest sample, if the host knows it: what the choice of a configuration depends on, else the mean length.
        rows: int64 [R], ascending: only these tokens ask. q is then theirs, [R, H, Dqk], and so is the result; keys and values are all tokens'.

    Returns: [T, H, Dv] ([R, H, Dv] with rows), dtype of v. Differentiable in q, k, v and both bias tables. A sample's result depends on
        nothing but that sample, never on the batch's other lengths.

    Raises: TypeError for wrong dtypes, ValueError for wrong shapes or intervals that leave their sample; the latter on
        GPU only under `GENRANK_KERNELS_CHECK=1` (otherwise they are clamped to it).
    """
    whole = mask = IntervalMask(offsets, offsets, None, begin, end)
    laid = rows is not None and backend_for(q) == "triton"
    if rows is not None and laid:
        # Its backward takes a query a key: the others' are zeros and see themselves alone, one tile of keys a block of queries.
        q, mask = lay_rows(rows, q, len(k)), asked_by(mask, rows)
    elif rows is not None:
        whole = mask = queries_of(mask, rows)
    check_inputs(q, k, v, mask.q_offsets, mask.k_offsets, mask.begin, mask.end, bias)
    scale = row_scale(divisor, whole)  # of rows that ask it is the same, and the layers before know it
    bias = bias or RelativeBias()
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    alpha = 1.0 / math.sqrt(q.shape[2]) if alpha is None else float(alpha)
    seed = draw_seed(seed) if dropout > 0.0 else 0
    longest = -1 if max_length is None else int(max_length)
    call = AttentionCall(mask, scale, bias, alpha, float(dropout), seed, divisor != "visible", longest)
    out = attend(q, k, v, call)
    return pick_rows(rows, out)[0] if rows is not None and laid else out


def delta_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    q_positions: Tensor,
    begin: Tensor,
    end: Tensor,
    *,
    alpha: float | None = None,
    divisor: Divisor = "length",
    bias: RelativeBias | None = None,
    max_length: int | None = None,
) -> Tensor:
    """New queries against cached keys and values (inference: M-FALCON's micro-batches, HSTU section 3.4).

    Equal to the rows of `interval_attention` over the whole sequence that belong to `q`, at the cost of those rows
    alone.

    Args:
        q: [Tq, H, Dqk], the new queries of B samples; q_offsets: int32 or int64 [B+1] over them.
        k: [Tk, H, Dqk], v: [Tk, H, Dv]: all keys, cached and new; k_offsets: int32 or int64 [B+1] over them.
        q_positions: int32 [Tq], the index of each query's own key in its sample's keys.
        begin, end: int32 [Tq], the keys each query sees (beside its own), local to the sample's keys.
        alpha, divisor, bias, max_length: as in `interval_attention`; "length" is the number of the sample's keys, and
            `bias.timestamps` and `bias.positions` are those of the keys, [Tk].

    Returns: [Tq, H, Dv]. Not differentiable: q, k and v are detached.
    """
    check_inputs(q, k, v, q_offsets, k_offsets, begin, end, bias)
    if q_positions.shape != begin.shape or q_positions.dtype != torch.int32:
        raise TypeError(f"q_positions must be int32 [{q.shape[0]}], got {q_positions.dtype} {list(q_positions.shape)}")
    mask = IntervalMask(q_offsets, k_offsets, q_positions, begin, end)
    scale = row_scale(divisor, mask)
    bias = bias or RelativeBias()
    alpha = 1.0 / math.sqrt(q.shape[2]) if alpha is None else float(alpha)
    longest = -1 if max_length is None else int(max_length)
    call = AttentionCall(mask, scale, bias, alpha, same_scale=divisor != "visible", max_length=longest)
    with torch.no_grad():
        return attend(q, k, v, call)


def attend(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
    """The op on checked inputs, by whichever implementation serves q."""
    if backend_for(q) == "reference":
        mask = call.mask
        keep = reference_keep(mask.q_offsets, mask.k_offsets, q.shape[1], call.dropout, call.seed)
        return reference_attention(q, k, v, call, keep)
    out: Tensor = torch.ops.genrank.interval_attention(q, k, v, *call.flat())
    return out


def check_inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    begin: Tensor,
    end: Tensor,
    bias: RelativeBias | None,
) -> None:
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
    for name, offsets in (("q offsets", q_offsets), ("k offsets", k_offsets)):
        if offsets.dim() != 1 or offsets.dtype not in (torch.int32, torch.int64) or offsets.shape[0] < 1:
            raise TypeError(f"{name} must be int32 or int64 [B+1], got {offsets.dtype} {list(offsets.shape)}")
    for name, bound in (("begin", begin), ("end", end)):
        if bound.dtype != torch.int32 or bound.shape != q.shape[:1]:
            raise TypeError(f"{name} must be int32 [{q.shape[0]}], got {bound.dtype} {list(bound.shape)}")
    if bias is None:
        return
    for name, table in (("position_table", bias.position_table), ("time_table", bias.time_table)):
        if table is not None and (table.dim() != 2 or table.shape[1] != q.shape[1]):
            raise ValueError(f"bias.{name} must be [rows, {q.shape[1]} heads], got {list(table.shape)}")
    if bias.position_table is not None and bias.position_table.shape[0] % 2 == 0:
        raise ValueError(f"bias.position_table must have 2P-1 rows, an odd number; got {bias.position_table.shape[0]}")
    if bias.time_table is not None and bias.timestamps is None:
        raise ValueError("bias.time_table needs bias.timestamps")
    for name, of_keys in (("timestamps", bias.timestamps), ("positions", bias.positions)):
        wanted = torch.int64 if name == "timestamps" else torch.int32
        if of_keys is not None and (of_keys.dtype != wanted or of_keys.shape != k.shape[:1]):
            raise TypeError(f"bias.{name} must be {wanted} [{k.shape[0]}], got {of_keys.dtype} {list(of_keys.shape)}")


# --- the ops, as PyTorch sees them ------------------------------------------------------------------------------------


@torch.library.custom_op(
    "genrank::interval_attention",
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, {FLAT_SCHEMA}) -> Tensor",
)
def _forward(q: Tensor, k: Tensor, v: Tensor, *flat: Any) -> Tensor:
    call = AttentionCall.of(flat)
    if backend_for(q) == "triton":
        from genrank.kernels.attention import gpu

        check_if_requested(call.mask, len(k))
        return gpu.forward(q, k, v, call)
    with torch.autocast(q.device.type, enabled=False):  # It would round some products and not others.
        return cpu.forward(q, k, v, call)


@torch.library.custom_op(
    "genrank::interval_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad_out, Tensor q, Tensor k, Tensor v, {FLAT_SCHEMA}) -> Tensor[]",
)
def _backward(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *flat: Any) -> list[Tensor]:
    """Gradients of q, k, v and then of whichever tables there are."""
    call = AttentionCall.of(flat)
    if backend_for(q) == "triton":
        from genrank.kernels.attention import gpu

        return gpu.backward(grad_out, q, k, v, call)
    with torch.autocast(q.device.type, enabled=False):
        return cpu.backward(grad_out, q, k, v, call)


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *flat: Any) -> Tensor:
    return v.new_empty(q.shape[0], q.shape[1], v.shape[2])


@_backward.register_fake
def _(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *flat: Any) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (q, k, v, *AttentionCall.of(flat).bias.tables)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[: 3 + TENSORS])
    ctx.rest = inputs[3 + TENSORS :]


def _differentiate(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, *tensors = ctx.saved_tensors
    bias = AttentionCall.of((*tensors, *ctx.rest)).bias
    grads = torch.ops.genrank.interval_attention_backward(grad_out, q, k, v, *tensors, *ctx.rest)
    tables = iter(grads[3:])
    position = None if bias.position_table is None else next(tables)
    time = None if bias.time_table is None else next(tables)
    return *grads[:3], *[None] * 6, position, time, *[None] * 7


_forward.register_autograd(_differentiate, setup_context=_save)

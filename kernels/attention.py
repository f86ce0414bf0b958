"""Interval attention: SiLU attention over jagged sequences whose every mask is an interval and oneself.

    A = silu(alpha * Q K^T + bias) * visible / n          out = A V

No softmax: each weight stands alone, the mask multiplies after SiLU, and `n` is a number of tokens (HSTU, arXiv
2402.17152, equation 2; MTGR, arXiv 2505.18654, section 3.3). The keys that query q sees are `[begin_q, end_q)` and q
itself, which covers HSTU's causal, target, contextual, window and full-tail masks and MTGR's dynamic mask without any
mask matrix.

`reference_attention` is the definition. `attention_blocked.py` computes it on CPU, `attention_triton.py` on GPU; this
file validates, registers the ops with PyTorch (autograd, fake tensors) and dispatches.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genrank.kernels import attention_blocked
from genrank.kernels.dispatch import backend_for, draw_seed
from genrank.kernels.interval import Problem, check_if_asked

Divisor = Literal["length", "visible"] | int

BUCKET_WIDTH = 0.301
"""HSTU's time buckets are `floor(ln(max(1, |dt|)) / 0.301)`: each is e^0.301 = 1.35 times as wide as the one before."""


class RelativeBias(NamedTuple):
    """Relative attention bias, added to the scores before SiLU (HSTU, arXiv 2402.17152, `rab^{p,t}`). Both tables may
    be trained.

    position_table: [2P-1, H]. Row `clamp(position_q - position_k, 1-P, P-1) + P-1`: row P-1 is distance 0, rows above
        it are keys before the query. (Meta's code stores the same table the other way round, indexed by `position_k -
        position_q`.)
    time_table: [num_time_buckets, H]. Row `min(floor(ln(max(1, |ts_q - ts_k|)) / 0.301), num_time_buckets - 1)`,
        computed in float32. With timestamps in seconds (HSTU's choice) 64 buckets reach 7 years; in milliseconds 87
        do. Meta's retrieval code takes the query's *next* timestamp for ts_q; a ranker must not read the future, so
        ts_q is the query's own.
    timestamps: int64 [T], in the unit the table was trained with; required by `time_table`.
    positions: int32 [T], optional: the position of each token, by default its index in its sample. Give all candidates
        of a sample one position when their scores must not depend on the order in which they are listed.
    """

    position_table: Tensor | None = None
    time_table: Tensor | None = None
    timestamps: Tensor | None = None
    positions: Tensor | None = None


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

    Returns: [T, H, Dv], dtype of v. Differentiable in q, k, v and both bias tables. A sample's result depends on
        nothing but that sample: never on the batch's other lengths.

    Raises: TypeError for wrong dtypes, ValueError for wrong shapes or intervals that leave their sample; the latter on
        GPU only under `GENRANK_KERNELS_CHECK=1` (otherwise they are clamped to it).
    """
    check_inputs(q, k, v, offsets, offsets, begin, end, bias)
    scale = row_scale(divisor, offsets, offsets, None, begin, end)
    bias = bias or RelativeBias()
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    alpha = 1.0 / math.sqrt(q.shape[2]) if alpha is None else float(alpha)
    where = (offsets, offsets, None, begin, end)
    seed = draw_seed(seed) if dropout > 0.0 else 0
    return attend(q, k, v, where, scale, bias, alpha, dropout, seed, divisor != "visible", max_length)


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
    scale = row_scale(divisor, q_offsets, k_offsets, q_positions, begin, end)
    bias = bias or RelativeBias()
    alpha = 1.0 / math.sqrt(q.shape[2]) if alpha is None else float(alpha)
    where = (q_offsets, k_offsets, q_positions, begin, end)
    with torch.no_grad():
        return attend(q, k, v, where, scale, bias, alpha, 0.0, 0, divisor != "visible", max_length)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    where: tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor],
    scale: Tensor,
    bias: RelativeBias,
    alpha: float,
    dropout: float,
    seed: int,
    same_scale: bool,
    max_length: int | None,
) -> Tensor:
    """same_scale: all queries of a sample have one `scale`."""
    if backend_for(q) == "reference":
        keep = reference_keep(where[0], where[1], q.shape[1], dropout, seed)
        return reference_attention(q, k, v, *where, scale, bias, alpha, keep)
    longest = -1 if max_length is None else int(max_length)
    rest = (alpha, float(dropout), seed, same_scale, longest)
    return torch.ops.genrank.interval_attention(q, k, v, *where, scale, *bias, *rest)


# --- the definition ---------------------------------------------------------------------------------------------------


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    q_positions: Tensor | None,
    begin: Tensor,
    end: Tensor,
    scale: Tensor,
    bias: RelativeBias,
    alpha: float,
    keep: list[Tensor] | None = None,
) -> Tensor:
    """The equation at the top, one dense sample at a time, differentiable by autograd.

    scale: [Tq], `1/n` per query; keep: per sample [H, Lq, Lk], the dropout multipliers (0 or `1/(1-p)`). The rest as
        above.
    """
    rows = []
    starts, ends = q_offsets.tolist(), k_offsets.tolist()
    for b in range(len(starts) - 1):
        queries, keys = slice(starts[b], starts[b + 1]), slice(ends[b], ends[b + 1])
        scores = alpha * torch.einsum("qhd,khd->hqk", q[queries], k[keys])
        index = torch.arange(keys.stop - keys.start, device=q.device)
        own = index if q_positions is None else q_positions[queries].long()
        if bias.position_table is not None:
            position = index if bias.positions is None else bias.positions[keys].long()
            row = position_row(position[own, None] - position[None, :], bias.position_table.shape[0])
            scores = scores + bias.position_table[row].permute(2, 0, 1).to(scores.dtype)
        if bias.time_table is not None:
            assert bias.timestamps is not None
            stamp = bias.timestamps[keys]
            row = time_row(stamp[own, None] - stamp[None, :], bias.time_table.shape[0])
            scores = scores + bias.time_table[row].permute(2, 0, 1).to(scores.dtype)
        visible = (index >= begin[queries, None]) & (index < end[queries, None]) | (index == own[:, None])
        weights = F.silu(scores) * visible
        if keep is not None:
            weights = weights * keep[b].to(weights.dtype)
        rows.append(torch.einsum("hqk,khd->qhd", weights, v[keys]) * scale[queries, None, None].to(v.dtype))
    return torch.cat(rows) if rows else (q[..., :1] * v[..., :1]).expand(-1, -1, v.shape[2])


def position_row(distance: Tensor, rows: int) -> Tensor:
    """Row of `position_table` for `position_q - position_k`; `rows` is 2P-1."""
    reach = (rows - 1) // 2
    return distance.clamp(-reach, reach) + reach


def time_row(elapsed: Tensor, rows: int) -> Tensor:
    """Row of `time_table` for `ts_q - ts_k` (int64)."""
    buckets = torch.log(elapsed.abs().clamp(min=1).float()) / BUCKET_WIDTH
    return buckets.long().clamp(max=rows - 1)


def local_positions(offsets: Tensor, length: int) -> Tensor:
    """int32 [T]: each token's index in its own sample."""
    index = torch.arange(length, device=offsets.device, dtype=torch.int32)
    sample = torch.searchsorted(offsets, index.to(offsets.dtype), right=True) - 1
    return index - offsets[sample].to(torch.int32)


def row_scale(
    divisor: Divisor, q_offsets: Tensor, k_offsets: Tensor, q_positions: Tensor | None, begin: Tensor, end: Tensor
) -> Tensor:
    """float32 [Tq]: `1/n` of each query. `n >= 1`, because a query sees itself."""
    if divisor == "visible":
        if q_positions is None:
            q_positions = local_positions(q_offsets, len(begin))
        seen = (end - begin).clamp(min=0)
        outside = (q_positions < begin) | (q_positions >= end)
        return 1.0 / (seen + outside).float()
    if divisor == "length":
        index = torch.arange(len(begin), device=begin.device, dtype=q_offsets.dtype)
        # Wrong offsets must not fail here, where nobody could tell why; the plan names them.
        sample = (torch.searchsorted(q_offsets, index, right=True) - 1).clamp(0, max(len(q_offsets) - 2, 0))
        return 1.0 / (k_offsets[1:] - k_offsets[:-1]).float()[sample]
    if isinstance(divisor, bool) or not isinstance(divisor, int) or divisor < 1:
        raise ValueError(f"divisor must be 'length', 'visible' or a positive integer, got {divisor!r}")
    return torch.full(begin.shape, 1.0 / divisor, dtype=torch.float32, device=begin.device)


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
        if offsets.dim() != 1 or offsets.dtype not in (torch.int32, torch.int64) or len(offsets) < 1:
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


@torch.library.custom_op("genrank::interval_attention", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    q_positions: Tensor | None,
    begin: Tensor,
    end: Tensor,
    scale: Tensor,
    position_table: Tensor | None,
    time_table: Tensor | None,
    timestamps: Tensor | None,
    positions: Tensor | None,
    alpha: float,
    dropout: float,
    seed: int,
    same_scale: bool,
    max_length: int,
) -> Tensor:
    bias = RelativeBias(position_table, time_table, timestamps, positions)
    problem = Problem(q_offsets, k_offsets, q_positions, begin, end)
    if backend_for(q) == "triton":
        from genrank.kernels import attention_triton

        check_if_asked(problem, len(k))
        return attention_triton.forward(q, k, v, problem, scale, bias, alpha, dropout, seed, max_length)
    with torch.autocast(q.device.type, enabled=False):  # It would round some products and not others.
        return attention_blocked.forward(q, k, v, problem, scale, bias, alpha, dropout, seed)


@torch.library.custom_op("genrank::interval_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    q_positions: Tensor | None,
    begin: Tensor,
    end: Tensor,
    scale: Tensor,
    position_table: Tensor | None,
    time_table: Tensor | None,
    timestamps: Tensor | None,
    positions: Tensor | None,
    alpha: float,
    dropout: float,
    seed: int,
    same_scale: bool,
    max_length: int,
) -> list[Tensor]:
    """Gradients of q, k, v and then of whichever tables there are."""
    bias = RelativeBias(position_table, time_table, timestamps, positions)
    problem = Problem(q_offsets, k_offsets, q_positions, begin, end)
    if backend_for(q) == "triton":
        from genrank.kernels import attention_triton

        rest = (problem, scale, bias, alpha, dropout, seed, same_scale, max_length)
        return attention_triton.backward(grad, q, k, v, *rest)
    with torch.autocast(q.device.type, enabled=False):
        return attention_blocked.backward(grad, q, k, v, problem, scale, bias, alpha, dropout, seed)


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> Tensor:
    return v.new_empty(q.shape[0], q.shape[1], v.shape[2])


@_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: object) -> list[Tensor]:
    tables = [t for t in rest[6:8] if isinstance(t, Tensor)]
    return [t.new_empty(t.shape) for t in (q, k, v, *tables)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:13])
    ctx.rest = inputs[13:]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    grads = torch.ops.genrank.interval_attention_backward(grad, *saved, *ctx.rest)
    tables = iter(grads[3:])
    position = None if saved[9] is None else next(tables)
    time = None if saved[10] is None else next(tables)
    return *grads[:3], *[None] * 6, position, time, *[None] * 7


_forward.register_autograd(_differentiate, setup_context=_save)


def reference_keep(q_offsets: Tensor, k_offsets: Tensor, heads: int, dropout: float, seed: int) -> list[Tensor] | None:
    """Dropout multipliers of the reference, one [H, Lq, Lk] a sample; None without dropout."""
    if dropout == 0.0:
        return None
    generator = torch.Generator(q_offsets.device).manual_seed(seed)
    shapes = zip((q_offsets[1:] - q_offsets[:-1]).tolist(), (k_offsets[1:] - k_offsets[:-1]).tolist(), strict=True)
    return [
        (torch.rand(heads, rows, keys, generator=generator, device=q_offsets.device) >= dropout) / (1.0 - dropout)
        for rows, keys in shapes
    ]

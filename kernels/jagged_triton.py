"""Jagged concatenation and split, per-group projections and input encoding, for GPU.

Nothing here waits for the device: row counts come from shapes, samples are found by binary search inside the kernels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from genrank.kernels.attention_plan import UNIT, units
from genrank.kernels.attention_tiles import time_bucket, unit_of
from genrank.kernels.launch import VARYING, Tuned

# --- concat and split -------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=VARYING)
def move_rows_kernel(
    part, whole, part_offsets, whole_offsets, before, tokens, dim, batch, steps, part_stride, whole_stride,
    SPLIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Copy a part's rows to their place in the whole, or (SPLIT) back."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = row < tokens
    low = row * 0
    high = low + batch
    for _ in range(steps):
        middle = (low + high) // 2
        reached = tl.load(part_offsets + middle, mask=real, other=0) <= row
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle)
    place = tl.load(whole_offsets + low, mask=real, other=0) + tl.load(before + low, mask=real, other=0)
    place += row - tl.load(part_offsets + low, mask=real, other=0)
    inside = real[:, None] & (column < dim)[None, :]
    at_part = part + row.to(tl.int64)[:, None] * part_stride + column[None, :]
    at_whole = whole + place.to(tl.int64)[:, None] * whole_stride + column[None, :]
    if SPLIT:
        tl.store(at_part, tl.load(at_whole, mask=inside, other=0.0), mask=inside)
    else:
        tl.store(at_whole, tl.load(at_part, mask=inside, other=0.0), mask=inside)


move_tuned = Tuned(
    move_rows_kernel,
    [triton.Config({"ROWS": r, "COLUMNS": c}, num_warps=4, num_stages=1) for r, c in ((16, 128), (8, 256), (32, 64))],
    ["dim"],
)


def move(parts: list[Tensor], whole: Tensor, offsets: list[Tensor], split: bool) -> None:
    """Rows beyond a part's last offset, if any, count as one more sample: they never land on another's place."""
    offsets = [torch.cat([o, o.new_full((1,), len(part))]) for o, part in zip(offsets, parts, strict=True)]
    lengths = torch.stack([o.diff() for o in offsets])
    before = lengths.cumsum(0) - lengths
    whole_offsets = torch.stack(offsets).sum(0)
    batch = len(offsets[0]) - 1
    for part, own, ahead in zip(parts, offsets, before, strict=True):
        tokens, dim = part.shape
        if not tokens or not dim:
            continue

        def grid(chosen: dict[str, Any], tokens: int = tokens, dim: int = dim) -> tuple[int, int]:
            return triton.cdiv(tokens, chosen["ROWS"]), triton.cdiv(dim, chosen["COLUMNS"])

        move_tuned(
            grid,
            [
                *(part, whole, own, whole_offsets, ahead.contiguous(), tokens, dim, batch, batch.bit_length()),
                *(part.stride(0), whole.stride(0)),
            ],
            {"SPLIT": split},
        )


@torch.library.custom_op("genrank::jagged_concat", mutates_args=())
def concat_op(parts: list[Tensor], offsets: list[Tensor]) -> Tensor:
    parts = [unit_stride(part) for part in parts]
    whole = parts[0].new_empty(sum(len(part) for part in parts), parts[0].shape[1])
    move(parts, whole, offsets, split=False)
    return whole


@torch.library.custom_op("genrank::jagged_split", mutates_args=())
def split_op(whole: Tensor, offsets: list[Tensor], tokens: list[int]) -> list[Tensor]:
    """tokens: rows of each part."""
    parts = [whole.new_empty(n, whole.shape[1]) for n in tokens]
    move(parts, unit_stride(whole), offsets, split=True)
    return parts


@concat_op.register_fake
def _(parts: list[Tensor], offsets: list[Tensor]) -> Tensor:
    return parts[0].new_empty(sum(part.shape[0] for part in parts), parts[0].shape[1])


@split_op.register_fake
def _(whole: Tensor, offsets: list[Tensor], tokens: list[int]) -> list[Tensor]:
    return [whole.new_empty(n, whole.shape[1]) for n in tokens]


def _save_concat(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.tokens = [len(part) for part in inputs[0]]
    ctx.save_for_backward(*inputs[1])


def _differentiate_concat(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    parts = torch.ops.genrank.jagged_split(grad, list(ctx.saved_tensors), ctx.tokens)
    return parts, [None] * len(ctx.tokens)


def _save_split(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.save_for_backward(*inputs[1])


def _differentiate_split(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    offsets = list(ctx.saved_tensors)
    return torch.ops.genrank.jagged_concat(list(grads), offsets), [None] * len(offsets), None


concat_op.register_autograd(_differentiate_concat, setup_context=_save_concat)
split_op.register_autograd(_differentiate_split, setup_context=_save_split)

# --- grouped linear ---------------------------------------------------------------------------------------------------


@triton.jit
def grouped_linear_kernel(
    x_data, weight_data, bias_data, y_data, order, units, inner, outer,
    x_stride, weight_group, weight_in, weight_out, y_stride,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, UNIT_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y[order[r]] = x[order[r]] @ weight[g] (+ bias[g]) for BLOCK_M rows of one group and BLOCK_N outputs."""
    at, rows, start, group, _ = unit_of(units, 1, UNIT_ROWS, BLOCK_M)
    if rows < 0:
        return
    at += tl.arange(0, BLOCK_M)
    row = start + at
    real = at < rows
    token = tl.load(order + row, mask=real, other=0).to(tl.int64)
    out = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    weight_data += group.to(tl.int64) * weight_group
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for k_first in range(0, inner, BLOCK_K):
        k = k_first + tl.arange(0, BLOCK_K)
        x_at = x_data + token[:, None] * x_stride + k[None, :]
        x = tl.load(x_at, mask=real[:, None] & (k < inner)[None, :], other=0.0)
        w_at = weight_data + k[:, None] * weight_in + out[None, :] * weight_out
        w = tl.load(w_at, mask=(k < inner)[:, None] & (out < outer)[None, :], other=0.0)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
    if HAS_BIAS:
        acc += tl.load(bias_data + group * outer + out, mask=out < outer, other=0.0).to(tl.float32)[None, :]
    y_at = y_data + token[:, None] * y_stride + out[None, :]
    tl.store(y_at, acc.to(y_data.dtype.element_ty), mask=real[:, None] & (out < outer)[None, :])


@triton.jit
def grouped_weight_kernel(
    x_data, grad_data, dweight_data, dbias_data, order, group_offsets, inner, outer, x_stride, grad_stride,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dweight[g] = x_g^T grad_g and dbias[g] = sum grad_g, rows in order."""
    group = tl.program_id(0)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    out = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.load(group_offsets + group)
    last = tl.load(group_offsets + group + 1)
    acc = tl.zeros([BLOCK_K, BLOCK_N], dtype=tl.float32)
    total = tl.zeros([BLOCK_N], dtype=tl.float32)
    for start in range(first, last, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        real = row < last
        token = tl.load(order + row, mask=real, other=0).to(tl.int64)
        x_at = x_data + token[None, :] * x_stride + k[:, None]
        x = tl.load(x_at, mask=real[None, :] & (k < inner)[:, None], other=0.0)
        grad_at = grad_data + token[:, None] * grad_stride + out[None, :]
        grad = tl.load(grad_at, mask=real[:, None] & (out < outer)[None, :], other=0.0)
        acc = tl.dot(x, grad, acc, input_precision=PRECISION)
        if HAS_BIAS:
            total += tl.sum(grad.to(tl.float32), 0)
    at = dweight_data + (group * inner + k).to(tl.int64)[:, None] * outer + out[None, :]
    tl.store(at, acc.to(dweight_data.dtype.element_ty), mask=(k < inner)[:, None] & (out < outer)[None, :])
    if HAS_BIAS:
        once = tl.where(tl.program_id(1) == 0, outer, 0)
        tl.store(dbias_data + group * outer + out, total.to(dbias_data.dtype.element_ty), mask=out < once)


def gemm(m: int, n: int, k: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages)


GEMMS = [gemm(128, 128, 32, 8, 3), gemm(64, 128, 32, 4, 3), gemm(64, 64, 32, 4, 3), gemm(32, 32, 32, 4, 2)]
# Sums over rows want wide steps.
WEIGHT_GEMMS = [gemm(32, 128, 64, 4, 3), gemm(64, 64, 64, 4, 3), gemm(32, 32, 32, 4, 2)]


def fits(chosen: triton.Config, arguments: dict[str, Any], arch: int) -> bool:
    """float32's three TF32 products a product want twice the registers."""
    return chosen.kwargs["BLOCK_N"] <= (64 if arch < 100 else 32) or arguments["x_data"].element_size() < 4


linear_tuned = Tuned(grouped_linear_kernel, GEMMS, ["inner", "outer"], fits)
weight_tuned = Tuned(grouped_weight_kernel, WEIGHT_GEMMS, ["inner", "outer"], fits)


def by_group(group_ids: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Tokens in order of their group, stable, and each group's offsets [G + 1] among them."""
    order = torch.argsort(group_ids, stable=True)
    counts = torch.zeros(groups, dtype=torch.int64, device=group_ids.device)
    counts.index_add_(0, group_ids.long(), torch.ones_like(order))
    return order, F.pad(counts.cumsum(0), (1, 0))


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor, offsets: Tensor) -> Tensor:
    """weight [G, Din, Dout] of any strides."""
    x = unit_stride(x)
    tokens, outer = len(x), weight.shape[2]
    y = x.new_empty(tokens, outer)
    if not tokens:
        return y
    by_token = torch.arange(tokens + 1, device=x.device)
    work = units(offsets, tokens, by_token, torch.arange(len(weight), device=x.device))
    linear_tuned(
        lambda chosen: (len(work) * (UNIT // chosen["BLOCK_M"]), triton.cdiv(outer, chosen["BLOCK_N"])),
        [
            *(x, weight, weight if bias is None else bias, y, order, work, x.shape[1], outer),
            *(x.stride(0), *weight.stride(), y.stride(0)),
        ],
        {"HAS_BIAS": bias is not None, "PRECISION": precision(x), "UNIT_ROWS": UNIT},
    )
    return y


@torch.library.custom_op("genrank::grouped_linear", mutates_args=())
def linear_op(x: Tensor, group_ids: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return multiply(x, weight, None if bias is None else bias.contiguous(), *by_group(group_ids, len(weight)))


@torch.library.custom_op("genrank::grouped_linear_backward", mutates_args=())
def linear_backward_op(grad: Tensor, x: Tensor, group_ids: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    """dx, dweight and, with a bias, dbias."""
    grad, x = unit_stride(grad), unit_stride(x)
    order, offsets = by_group(group_ids, len(weight))
    dx = multiply(grad, weight.transpose(1, 2), None, order, offsets)
    groups, inner, outer = weight.shape
    dweight = torch.empty(weight.shape, dtype=weight.dtype, device=x.device)
    dbias = torch.empty(groups, outer, dtype=weight.dtype, device=x.device)
    weight_tuned(
        lambda chosen: (groups, triton.cdiv(inner, chosen["BLOCK_K"]), triton.cdiv(outer, chosen["BLOCK_N"])),
        [x, grad, dweight, dbias, order, offsets, inner, outer, x.stride(0), grad.stride(0)],
        {"HAS_BIAS": bias is not None, "PRECISION": precision(x)},
    )
    return [dx, dweight] if bias is None else [dx, dweight, dbias]


@linear_op.register_fake
def _(x: Tensor, group_ids: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[2])


@linear_backward_op.register_fake
def _(grad: Tensor, x: Tensor, group_ids: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (x, weight, bias) if t is not None]


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_linear(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.genrank.grouped_linear_backward(grad, *ctx.saved_tensors)
    return grads[0], None, grads[1], grads[2] if len(grads) > 2 else None


linear_op.register_autograd(_differentiate_linear, setup_context=_save_linear)

# --- position and time encoding ---------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=VARYING)
def encode_kernel(
    x_data, out_data, position_table, positions, time_table, elapsed, tokens, dim, scale, position_rows, time_rows, x_stride,
    HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = (row < tokens)[:, None] & (column < dim)[None, :]
    far = row.to(tl.int64)[:, None]
    out = tl.load(x_data + far * x_stride + column[None, :], mask=inside, other=0.0).to(tl.float32) * scale
    if HAS_POSITION:
        at = tl.load(positions + row, mask=row < tokens, other=0)
        at = tl.minimum(tl.maximum(at, 0), position_rows - 1)
        out += tl.load(position_table + at[:, None] * dim + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if HAS_TIME:
        at = time_bucket(tl.load(elapsed + row, mask=row < tokens, other=0), time_rows)
        out += tl.load(time_table + at[:, None] * dim + column[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(out_data + far * dim + column[None, :], out.to(out_data.dtype.element_ty), mask=inside)


encode_tuned = Tuned(
    encode_kernel, [triton.Config({"ROWS": r}, num_warps=4, num_stages=1) for r in (8, 2, 4)], ["WIDTH"]
)


@torch.library.custom_op("genrank::position_time_encoding", mutates_args=())
def encode_op(
    x: Tensor,
    position_table: Tensor | None,
    positions: Tensor | None,
    time_table: Tensor | None,
    elapsed: Tensor | None,
    scale: float,
) -> Tensor:
    x = unit_stride(x)
    tokens, dim = x.shape
    out = x.new_empty(tokens, dim)
    if not tokens:
        return out
    given = [x if t is None else t.contiguous() for t in (position_table, positions, time_table, elapsed)]
    rows = [1 if t is None else len(t) for t in (position_table, time_table)]
    encode_tuned(
        lambda chosen: (triton.cdiv(tokens, chosen["ROWS"]),),
        [x, out, *given, tokens, dim, scale, *rows, x.stride(0)],
        {
            "HAS_POSITION": position_table is not None,
            "HAS_TIME": time_table is not None,
            "WIDTH": max(16, triton.next_power_of_2(dim)),
        },
    )
    return out


@encode_op.register_fake
def _(x: Tensor, *rest: object) -> Tensor:
    return x.new_empty(x.shape)


def _save_encode(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:5])
    ctx.scale = inputs[5]


def _differentiate_encode(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    from genrank.kernels.attention import time_row

    position_table, positions, time_table, elapsed = ctx.saved_tensors
    dposition = dtime = None
    if position_table is not None:
        rows = positions.long().clamp(0, len(position_table) - 1)
        dposition = torch.ops.aten.embedding_dense_backward(grad, rows, len(position_table), -1, False)
        dposition = dposition.to(position_table.dtype)
    if time_table is not None:
        rows = time_row(elapsed, len(time_table))
        dtime = torch.ops.aten.embedding_dense_backward(grad, rows, len(time_table), -1, False).to(time_table.dtype)
    return grad * ctx.scale, dposition, None, dtime, None, None


encode_op.register_autograd(_differentiate_encode, setup_context=_save_encode)


def unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def precision(x: Tensor) -> str:
    return "tf32" if x.is_cuda and torch.backends.cuda.matmul.allow_tf32 else "tf32x3"

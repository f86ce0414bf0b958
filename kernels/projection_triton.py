"""Norm, projection and SiLU in one pass over memory, for GPU: the norm enters the product's operand on its way to the
registers, the SiLU its result on the way out. Backward is made of what exists: the norm's kernels and cuBLAS."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from genrank.kernels.attention_tiles import silu, silu_and_slope
from genrank.kernels.jagged_triton import precision
from genrank.kernels.launch import INTERPRET, VARYING, Tuned
from genrank.kernels.norm_triton import PLAIN, norm_gate_backward_op, norm_gate_op, unit_stride


@triton.jit(do_not_specialize=VARYING)
def moments_kernel(
    x_data, mean_data, inverse_std_data, tokens, dim, eps, x_stride, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    """Mean and 1/std of each row."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = (row < tokens)[:, None] & (column < dim)[None, :]
    at = x_data + row.to(tl.int64)[:, None] * x_stride + column[None, :]
    x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, 1) / dim
    centred = tl.where(inside, x - mean[:, None], 0.0)
    tl.store(mean_data + row, mean, mask=row < tokens)
    tl.store(inverse_std_data + row, 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / dim + eps), mask=row < tokens)


@triton.jit(do_not_specialize=VARYING)
def project_kernel(
    x_data, mean_data, inverse_std_data, norm_weight, norm_bias, group_data, weight_data, bias_data, y_data, z_data,
    tokens, dim, outer, activated, x_stride, weight_stride,
    GROUPED: tl.constexpr, HAS_BIAS: tl.constexpr, KEEP: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y = silu(norm(x) weight + bias) for BLOCK_M rows and BLOCK_N columns; KEEP also stores what SiLU was given."""
    # Programs of one block of rows run together: x then comes from the cache.
    columns = tl.cdiv(outer, BLOCK_N)
    row = (tl.program_id(0) // columns) * BLOCK_M + tl.arange(0, BLOCK_M)
    out = (tl.program_id(0) % columns) * BLOCK_N + tl.arange(0, BLOCK_N)
    real = row < tokens
    mean = tl.load(mean_data + row, mask=real, other=0.0)
    inverse_std = tl.load(inverse_std_data + row, mask=real, other=0.0)
    group = row * 0
    if GROUPED:
        group = tl.load(group_data + row, mask=real, other=0)
    x_rows = x_data + row.to(tl.int64)[:, None] * x_stride
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for start in range(0, dim, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = real[:, None] & (k < dim)[None, :]
        x = tl.load(x_rows + k[None, :], mask=inside, other=0.0).to(tl.float32)
        if GROUPED:
            at = group[:, None] * dim + k[None, :]
            gain = tl.load(norm_weight + at, mask=inside, other=0.0).to(tl.float32)
            shift = tl.load(norm_bias + at, mask=inside, other=0.0).to(tl.float32)
        else:
            gain = tl.load(norm_weight + k, mask=k < dim, other=0.0).to(tl.float32)[None, :]
            shift = tl.load(norm_bias + k, mask=k < dim, other=0.0).to(tl.float32)[None, :]
        unit = (x - mean[:, None]) * inverse_std[:, None] * gain + shift
        w_at = weight_data + k.to(tl.int64)[:, None] * weight_stride + out[None, :]
        w = tl.load(w_at, mask=(k < dim)[:, None] & (out < outer)[None, :], other=0.0)
        acc = tl.dot(unit.to(w.dtype), w, acc, input_precision=PRECISION)
    if HAS_BIAS:
        acc += tl.load(bias_data + out, mask=out < outer, other=0.0).to(tl.float32)[None, :]
    at = row.to(tl.int64)[:, None] * outer + out[None, :]
    there = real[:, None] & (out < outer)[None, :]
    if KEEP:
        tl.store(z_data + at, acc.to(z_data.dtype.element_ty), mask=there)
    acc = tl.where((out < activated)[None, :], silu(0.5 * acc, FAST), acc)
    tl.store(y_data + at, acc.to(y_data.dtype.element_ty), mask=there)


@triton.jit
def silu_slope_kernel(
    above_data, z_data, dz_data, total, outer, activated, FAST: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """dz = above silu'(z) in the activated columns, above in the others."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    above = tl.load(above_data + at, mask=at < total, other=0.0).to(tl.float32)
    z = tl.load(z_data + at, mask=at < total, other=0.0).to(tl.float32)
    _, slope = silu_and_slope(0.5 * z, False, False, FAST)
    dz = tl.where((at % outer) < activated, 0.5 * tl.fma(above, slope, above), above)
    tl.store(dz_data + at, dz.to(dz_data.dtype.element_ty), mask=at < total)


def gemm(m: int, n: int, k: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages)


def fits(chosen: triton.Config, arguments: dict[str, Any], arch: int) -> bool:
    """A gain and a shift for each row and column leave few registers, three TF32 products fewer. Only Hopper has room
    for 256 columns, and only beside bfloat16's SiLU."""
    if chosen.kwargs["BLOCK_N"] == 256 and not (90 <= arch < 100 and arguments["x_data"].dtype == torch.bfloat16):
        return False
    small = arguments["GROUPED"] or arguments["x_data"].element_size() == 4
    return chosen.kwargs["BLOCK_M"] == 32 or not small


project_tuned = Tuned(
    project_kernel,
    [gemm(128, 128, 64, 8, 3), gemm(128, 256, 64, 8, 3), gemm(64, 128, 64, 4, 3), gemm(32, 64, 32, 4, 2)],
    ["dim", "outer", "GROUPED", "KEEP"],
    fits,
)
moments_tuned = Tuned(moments_kernel, [triton.Config({"ROWS": 4}, num_warps=4, num_stages=1)], ["WIDTH"])
slope_tuned = Tuned(silu_slope_kernel, [triton.Config({"BLOCK": 1024}, num_warps=4, num_stages=1)], [])


@torch.library.custom_op("genrank::norm_linear_silu", mutates_args=())
def project_op(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    group_ids: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    activated: int,
    eps: float,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """y, and with `keep` what SiLU was given (else empty)."""
    x, weight = unit_stride(x), unit_stride(weight)
    (tokens, dim), outer = x.shape, weight.shape[1]
    y, z = x.new_empty(tokens, outer), x.new_empty(tokens if keep else 0, outer)
    if not tokens:
        return y, z
    mean, inverse_std = torch.empty(2, tokens, dtype=torch.float32, device=x.device)
    moments_tuned(
        lambda chosen: (triton.cdiv(tokens, chosen["ROWS"]),),
        [x, mean, inverse_std, tokens, dim, eps, x.stride(0)],
        {"WIDTH": max(16, triton.next_power_of_2(dim))},
    )
    groups = mean if group_ids is None else group_ids
    project_tuned(
        lambda chosen: (triton.cdiv(tokens, chosen["BLOCK_M"]) * triton.cdiv(outer, chosen["BLOCK_N"]),),
        [
            *(x, mean, inverse_std, norm_weight.contiguous(), norm_bias.contiguous(), groups),
            *(weight, weight if bias is None else bias.contiguous(), y, z if keep else y),
            *(tokens, dim, outer, activated, x.stride(0), weight.stride(0)),
        ],
        {
            "GROUPED": group_ids is not None,
            "HAS_BIAS": bias is not None,
            "KEEP": keep,
            "FAST": fast(x),
            "PRECISION": precision(x),
        },
    )
    return y, z


def silu_slope(above: Tensor, z: Tensor, activated: int) -> Tensor:
    above, dz = above.contiguous(), torch.empty_like(z)
    slope_tuned(
        lambda chosen: (triton.cdiv(z.numel(), chosen["BLOCK"]),),
        [above, z, dz, z.numel(), z.shape[1], activated],
        {"FAST": fast(z)},
    )
    return dz


@torch.library.custom_op("genrank::norm_linear_silu_backward", mutates_args=())
def project_backward_op(
    above: Tensor,
    z: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    group_ids: Tensor | None,
    weight: Tensor,
    activated: int,
    eps: float,
) -> list[Tensor]:
    """dx, dnorm_weight, dnorm_bias, dweight, dbias."""
    dz = silu_slope(above, z, activated) if len(z) else torch.empty_like(z)
    norm = (norm_weight, norm_bias, group_ids, PLAIN, eps, 0.0, 0)
    unit = norm_gate_op(x, None, *norm)
    dx, _, dnorm_weight, dnorm_bias = norm_gate_backward_op(dz @ weight.t(), x, None, *norm)
    return [dx, dnorm_weight, dnorm_bias, unit.t() @ dz, dz.sum(0)]


@project_op.register_fake
def _(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, group_ids: Tensor | None, weight: Tensor, *rest: object
) -> Any:
    outer = weight.shape[1]
    return x.new_empty(x.shape[0], outer), x.new_empty(x.shape[0] if rest[-1] else 0, outer)


@project_backward_op.register_fake
def _(
    above: Tensor, z: Tensor, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, group_ids: Tensor | None, weight: Tensor,
    *rest: object,
) -> list[Tensor]:  # fmt: skip
    shapes = (x, norm_weight, norm_bias, weight)
    return [*(t.new_empty(t.shape) for t in shapes), weight.new_empty(weight.shape[1])]


def fast(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and not INTERPRET


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, norm_weight, norm_bias, group_ids, weight, bias, ctx.activated, ctx.eps, _ = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(output[1], x, norm_weight, norm_bias, group_ids, weight)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, above: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    rest = (ctx.activated, ctx.eps)
    grads = torch.ops.genrank.norm_linear_silu_backward(above, *ctx.saved_tensors, *rest)
    dx, dnorm_weight, dnorm_bias, dweight, dbias = grads
    return dx, dnorm_weight, dnorm_bias, None, dweight, dbias if ctx.has_bias else None, None, None, None


project_op.register_autograd(_differentiate, setup_context=_save)

"""Norm, gate and dropout in one pass over memory, for GPU. Rows stay in registers; statistics are recomputed in
backward.

Weight gradients: each program sums a strip of rows, in order, into its own partial [G, D]; the partials are then
summed in order. Nothing depends on which program finishes first.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from genrank.kernels.launch import VARYING, Tuned

PLAIN, NORM_GATE, GATE_NORM = 0, 1, 2
STRIPS = 528
"""Partial sums of the weight gradients: four programs for each of an H100's 132 processors."""


@triton.jit
def normalised(attn, u, inside, dim, eps, GATE: tl.constexpr):
    """(normalised rows, 1/std [rows]) of attn, or of attn * u."""
    x = attn * u if GATE == 2 else attn
    mean = tl.sum(x, 1) / dim
    centred = tl.where(inside, x - mean[:, None], 0.0)
    inverse_std = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / dim + eps)
    return centred * inverse_std[:, None], inverse_std


@triton.jit
def kept(row, column, seed, threshold, inverse_keep):
    zero = row * 0 + column * 0
    random, _, _, _ = tl.philox(seed, column + zero, row + zero, zero, zero, n_rounds=7)
    return tl.where((random >> 8).to(tl.int32) >= threshold, inverse_keep, 0.0)


@triton.jit(do_not_specialize=VARYING)
def norm_forward_kernel(
    attn_data, u_data, weight_data, bias_data, group_data, out_data,
    tokens, dim, eps, seed, threshold, inverse_keep, attn_stride, u_stride,
    GATE: tl.constexpr, GROUPED: tl.constexpr, DROPOUT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = (row < tokens)[:, None] & (column < dim)[None, :]
    far = row.to(tl.int64)[:, None]
    attn = tl.load(attn_data + far * attn_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    u = attn
    if GATE != 0:
        u = tl.load(u_data + far * u_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    group = row * 0
    if GROUPED:
        group = tl.load(group_data + row, mask=row < tokens, other=0)
    at = group[:, None] * dim + column[None, :]
    weight = tl.load(weight_data + at, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_data + at, mask=inside, other=0.0).to(tl.float32)
    unit, _ = normalised(attn, u, inside, dim, eps, GATE)
    out = unit * weight + bias
    if GATE == 1:
        out *= u
    if DROPOUT:
        out *= kept(row[:, None], column[None, :], seed, threshold, inverse_keep)
    tl.store(out_data + far * dim + column[None, :], out.to(out_data.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=VARYING)
def norm_backward_kernel(
    grad_data, attn_data, u_data, weight_data, bias_data, group_data, dattn_data, du_data, dweight_data, dbias_data,
    tokens, dim, eps, seed, threshold, inverse_keep, grad_stride, attn_stride, u_stride, strip,
    GATE: tl.constexpr, GROUPED: tl.constexpr, GROUPS: tl.constexpr, DROPOUT: tl.constexpr, WIDTH: tl.constexpr,
    GROUP_WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """dattn, du, and this strip's part of dweight and dbias [strips, GROUPS, dim]."""
    pid = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    which = tl.arange(0, GROUP_WIDTH)
    dweight = tl.zeros([GROUP_WIDTH, WIDTH], dtype=tl.float32)
    dbias = tl.zeros([GROUP_WIDTH, WIDTH], dtype=tl.float32)
    for first in range(pid * strip, tl.minimum((pid + 1) * strip, tokens), ROWS):
        row = first + tl.arange(0, ROWS)
        real = (row < tokens) & (row < (pid + 1) * strip)
        inside = real[:, None] & (column < dim)[None, :]
        far = row.to(tl.int64)[:, None]
        grad = tl.load(grad_data + far * grad_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        attn = tl.load(attn_data + far * attn_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        u = attn
        if GATE != 0:
            u = tl.load(u_data + far * u_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        group = row * 0
        if GROUPED:
            group = tl.load(group_data + row, mask=real, other=0)
        at = group[:, None] * dim + column[None, :]
        weight = tl.load(weight_data + at, mask=inside, other=0.0).to(tl.float32)
        unit, inverse_std = normalised(attn, u, inside, dim, eps, GATE)
        if DROPOUT:
            grad *= kept(row[:, None], column[None, :], seed, threshold, inverse_keep)
        if GATE == 1:
            bias = tl.load(bias_data + at, mask=inside, other=0.0).to(tl.float32)
            du = grad * (unit * weight + bias)
            tl.store(du_data + far * dim + column[None, :], du.to(du_data.dtype.element_ty), mask=inside)
            grad *= u
        scaled = grad * weight
        mean = tl.sum(scaled, 1) / dim
        along = tl.sum(scaled * unit, 1) / dim
        dx = (scaled - mean[:, None] - unit * along[:, None]) * inverse_std[:, None]
        if GATE == 2:
            tl.store(du_data + far * dim + column[None, :], (dx * attn).to(du_data.dtype.element_ty), mask=inside)
            dx *= u
        tl.store(dattn_data + far * dim + column[None, :], dx.to(dattn_data.dtype.element_ty), mask=inside)
        for g in tl.static_range(GROUPS):
            mine = (group == g)[:, None]
            of_weight = tl.sum(tl.where(mine, grad * unit, 0.0), 0)
            of_bias = tl.sum(tl.where(mine, grad, 0.0), 0)
            dweight += tl.where((which == g)[:, None], of_weight[None, :], 0.0)
            dbias += tl.where((which == g)[:, None], of_bias[None, :], 0.0)
    at = (pid * GROUPS + which)[:, None] * dim + column[None, :]
    there = (which < GROUPS)[:, None] & (column < dim)[None, :]
    tl.store(dweight_data + at, dweight, mask=there)
    tl.store(dbias_data + at, dbias, mask=there)


def config(rows: int, warps: int) -> triton.Config:
    return triton.Config({"ROWS": rows}, num_warps=warps, num_stages=1)


def fits(chosen: triton.Config, arguments: dict[str, Any], arch: int) -> bool:
    """Whether the rows (and in backward the weight gradients) of a program stay in registers."""
    values = chosen.kwargs["ROWS"] * arguments["WIDTH"] * (6 if "strip" in arguments else 4)
    values += 2 * arguments.get("GROUP_WIDTH", 0) * arguments["WIDTH"]
    return values / (32 * chosen.num_warps) <= 120


KEY = ["WIDTH", "GATE", "GROUPED", "DROPOUT"]
forward_tuned = Tuned(
    norm_forward_kernel, [config(8, 4), config(4, 4), config(1, 4), config(4, 8), config(2, 8)], KEY, fits
)
backward_tuned = Tuned(
    norm_backward_kernel,
    [config(8, 4), config(4, 4), config(4, 8), config(2, 8), config(1, 16)],
    [*KEY, "GROUP_WIDTH"],
    fits,
)


@torch.library.custom_op("genrank::norm_gate", mutates_args=())
def norm_gate_op(
    attn: Tensor,
    u: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    group_ids: Tensor | None,
    gate: int,
    eps: float,
    dropout: float,
    seed: int,
) -> Tensor:
    """attn, u: [T, D]; weight, bias: [G, D]; gate: PLAIN (no u), NORM_GATE or GATE_NORM."""
    attn, gated = unit_stride(attn), attn if u is None else unit_stride(u)
    out = attn.new_empty(attn.shape)
    tokens, dim = attn.shape
    if not tokens:
        return out
    forward_tuned(
        lambda chosen: (triton.cdiv(tokens, chosen["ROWS"]),),
        [
            *(attn, gated, weight.contiguous(), bias.contiguous(), weight if group_ids is None else group_ids, out),
            *(tokens, dim, eps, seed, round(dropout * 2**24), 1.0 / (1.0 - dropout), attn.stride(0), gated.stride(0)),
        ],
        flags(dim, group_ids, gate, dropout),
    )
    return out


@torch.library.custom_op("genrank::norm_gate_backward", mutates_args=())
def norm_gate_backward_op(
    grad: Tensor,
    attn: Tensor,
    u: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    group_ids: Tensor | None,
    gate: int,
    eps: float,
    dropout: float,
    seed: int,
) -> list[Tensor]:
    """dattn, du (empty without u), dweight, dbias."""
    grad, attn, gated = unit_stride(grad), unit_stride(attn), attn if u is None else unit_stride(u)
    tokens, dim = attn.shape
    groups = weight.shape[0]
    dattn = attn.new_empty(attn.shape)
    du = attn.new_empty(attn.shape if u is not None else (0, dim))
    strip = max(8, triton.next_power_of_2(triton.cdiv(tokens, STRIPS)))
    strips = triton.cdiv(tokens, strip)
    partial = torch.empty(2, strips, groups, dim, dtype=torch.float32, device=attn.device)
    if tokens:
        backward_tuned(
            lambda chosen: (strips,),
            [
                *(
                    grad,
                    attn,
                    gated,
                    weight.contiguous(),
                    bias.contiguous(),
                    weight if group_ids is None else group_ids,
                ),
                *(dattn, du if u is not None else dattn, partial[0], partial[1]),
                *(tokens, dim, eps, seed, round(dropout * 2**24), 1.0 / (1.0 - dropout)),
                *(grad.stride(0), attn.stride(0), gated.stride(0), strip),
            ],
            flags(dim, group_ids, gate, dropout) | {"GROUPS": groups, "GROUP_WIDTH": triton.next_power_of_2(groups)},
        )
    return [dattn, du, partial[0].sum(0).to(weight.dtype), partial[1].sum(0).to(bias.dtype)]


def flags(dim: int, group_ids: Tensor | None, gate: int, dropout: float) -> dict[str, Any]:
    return {
        "GATE": gate,
        "GROUPED": group_ids is not None,
        "DROPOUT": dropout > 0.0,
        "WIDTH": max(16, triton.next_power_of_2(dim)),
    }


def unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


@norm_gate_op.register_fake
def _(attn: Tensor, *rest: object) -> Tensor:
    return attn.new_empty(attn.shape)


@norm_gate_backward_op.register_fake
def _(grad: Tensor, attn: Tensor, u: Tensor | None, weight: Tensor, bias: Tensor, *rest: object) -> list[Tensor]:
    du = attn.new_empty(attn.shape if u is not None else (0, attn.shape[1]))
    return [attn.new_empty(attn.shape), du, weight.new_empty(weight.shape), bias.new_empty(bias.shape)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.rest = inputs[5:]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dattn, du, dweight, dbias = torch.ops.genrank.norm_gate_backward(grad, *ctx.saved_tensors, *ctx.rest)
    return dattn, None if ctx.saved_tensors[1] is None else du, dweight, dbias, *[None] * 5


norm_gate_op.register_autograd(_differentiate, setup_context=_save)

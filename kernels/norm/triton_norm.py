"""The norm's kernels: rows stay in registers, statistics are recomputed in backward."""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.launch import VARYING


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
    """0 or 1/(1-p) per value, by counter (Philox, Salmon et al. 2011): the same in forward and backward."""
    zero = row * 0 + column * 0
    random, _, _, _ = tl.philox(seed, column + zero, row + zero, zero, zero, n_rounds=7)
    return tl.where((random >> 8).to(tl.int32) >= threshold, inverse_keep, 0.0)


@triton.jit(do_not_specialize=VARYING)
def norm_forward_kernel(
    attn_data, u_data, weight_data, bias_data, group_data, out_data,
    tokens, dim, eps, seed, threshold, inverse_keep, attn_stride, u_stride,
    GATE: tl.constexpr, GROUPED: tl.constexpr, DROPOUT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """out = norm(attn) * weight + bias for ROWS rows; GATE 1 multiplies by u after it, GATE 2 before."""
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

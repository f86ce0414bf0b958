"""The norm's kernels: rows stay in registers, and backward has the statistics that forward found.

Backward sums weight gradients over a strip of rows. A batch's rows have their groups in runs (user, history, realtime, candidates), so that one
accumulator serves, of the group at hand; it is added to the groups' sums when another group begins. Rows of several groups at once, where
a run ends, are summed group by group.
"""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.launch import VARYING


@triton.jit
def kept(row, column, seed, threshold, inverse_keep):
    """0 or 1/(1-p) per value, by counter (Philox, Salmon et al. 2011): the same in forward and backward."""
    zero = row * 0 + column * 0
    random, _, _, _ = tl.philox(seed, column + zero, row + zero, zero, zero, n_rounds=7)
    return tl.where((random >> 8).to(tl.int32) >= threshold, inverse_keep, 0.0)


@triton.jit(do_not_specialize=VARYING)
def norm_forward_kernel(
    attn_data, u_data, change_data, shift_data, weight_data, bias_data, group_data, sum_data, out_data, statistics,
    tokens, dim, eps, scale, seed, threshold, inverse_keep, attn_stride, u_stride, change_stride,
    GATE: tl.constexpr, ADD: tl.constexpr, SHIFT: tl.constexpr, GROUPED: tl.constexpr, DROPOUT: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """out = norm(attn) * weight + bias for ROWS rows; GATE 1 multiplies by u after it, GATE 2 before. ADD: of attn + scale * (change + shift), which
    is written to `sum_data`; SHIFT: there is a shift [dim]. `statistics` [2, tokens]: mean and 1 / standard deviation."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = (row < tokens)[:, None] & (column < dim)[None, :]
    far = row.to(tl.int64)[:, None]
    x = tl.load(attn_data + far * attn_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    u = x
    if GATE != 0:
        u = tl.load(u_data + far * u_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if ADD:
        change = tl.load(change_data + far * change_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        if SHIFT:
            change += tl.load(shift_data + column, mask=column < dim, other=0.0).to(tl.float32)[None, :]
        whole = (x + scale * change).to(sum_data.dtype.element_ty)
        tl.store(sum_data + far * dim + column[None, :], whole, mask=inside)
        x = whole.to(tl.float32)
    if GATE == 2:
        x *= u
    group = row * 0
    if GROUPED:
        group = tl.load(group_data + row, mask=row < tokens, other=0)
    at = group[:, None] * dim + column[None, :]
    weight = tl.load(weight_data + at, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_data + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, 1) / dim
    centred = tl.where(inside, x - mean[:, None], 0.0)
    inverse_std = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / dim + eps)
    tl.store(statistics + row, mean, mask=row < tokens)
    tl.store(statistics + tokens + row, inverse_std, mask=row < tokens)
    out = centred * inverse_std[:, None] * weight + bias
    if GATE == 1:
        out *= u
    if DROPOUT:
        out *= kept(row[:, None], column[None, :], seed, threshold, inverse_keep)
    tl.store(out_data + far * dim + column[None, :], out.to(out_data.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=VARYING)
def norm_backward_kernel(
    grad_data, attn_data, u_data, above_data, weight_data, bias_data, group_data, statistics, dattn_data, du_data, sums_data,
    tokens, dim, scale, seed, threshold, inverse_keep, grad_stride, attn_stride, u_stride, above_stride, strip,
    GATE: tl.constexpr, ADD: tl.constexpr, SHIFT: tl.constexpr, ABOVE: tl.constexpr, GROUPED: tl.constexpr, GROUPS: tl.constexpr,
    DROPOUT: tl.constexpr, WIDTH: tl.constexpr, GROUP_WIDTH: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dattn, du, and this strip's part of the sums over rows, [strips, 2 * GROUPS + SHIFT, dim]: dweight, dbias, dshift. ABOVE: what was normalised has
    a gradient of its own, which is added. ADD: attn is the sum, and `du_data` takes the gradient of what was added, scale * dattn."""
    pid = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    which = tl.arange(0, GROUP_WIDTH)
    dweight = tl.zeros([GROUP_WIDTH, WIDTH], dtype=tl.float32)
    dbias = tl.zeros([GROUP_WIDTH, WIDTH], dtype=tl.float32)
    of_weight = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    of_bias = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    of_shift = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    begin = pid * strip
    end = tl.minimum(begin + strip, tokens)
    current = 0
    if GROUPED:
        current = tl.load(group_data + begin)
    for first in tl.range(begin, end, ROWS, num_stages=STAGES):
        row = first + tl.arange(0, ROWS)
        real = row < end
        inside = real[:, None] & (column < dim)[None, :]
        far = row.to(tl.int64)[:, None]
        grad = tl.load(grad_data + far * grad_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        attn = tl.load(attn_data + far * attn_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        mean_x = tl.load(statistics + row, mask=real, other=0.0)
        inverse_std = tl.load(statistics + tokens + row, mask=real, other=0.0)
        u = attn
        if GATE != 0:
            u = tl.load(u_data + far * u_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        x = attn * u if GATE == 2 else attn
        unit = tl.where(inside, (x - mean_x[:, None]) * inverse_std[:, None], 0.0)
        group = row * 0
        if GROUPED:
            group = tl.load(group_data + row, mask=real, other=0)
        at = group[:, None] * dim + column[None, :]
        weight = tl.load(weight_data + at, mask=inside, other=0.0).to(tl.float32)
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
        if ABOVE:
            dx += tl.load(above_data + far * above_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        if ADD:
            tl.store(du_data + far * dim + column[None, :], (dx * scale).to(du_data.dtype.element_ty), mask=inside)
        if SHIFT:
            of_shift += dx
        tl.store(dattn_data + far * dim + column[None, :], dx.to(dattn_data.dtype.element_ty), mask=inside)
        if GROUPED:
            lowest = tl.min(tl.where(real, group, 1 << 30), 0)
            highest = tl.max(tl.where(real, group, -1), 0)
            if (lowest == current) & (highest == current):
                of_weight += grad * unit
                of_bias += grad
            else:
                mine = (which == current)[:, None]
                dweight += tl.where(mine, tl.sum(of_weight, 0)[None, :], 0.0)
                dbias += tl.where(mine, tl.sum(of_bias, 0)[None, :], 0.0)
                of_weight = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
                of_bias = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
                for g in range(lowest, highest + 1):
                    rows = (group == g)[:, None]
                    mine = (which == g)[:, None]
                    dweight += tl.where(mine, tl.sum(tl.where(rows, grad * unit, 0.0), 0)[None, :], 0.0)
                    dbias += tl.where(mine, tl.sum(tl.where(rows, grad, 0.0), 0)[None, :], 0.0)
                current = highest
        else:
            of_weight += grad * unit
            of_bias += grad
    mine = (which == current)[:, None]
    dweight += tl.where(mine, tl.sum(of_weight, 0)[None, :], 0.0)
    dbias += tl.where(mine, tl.sum(of_bias, 0)[None, :], 0.0)
    sums_data += pid * (2 * GROUPS + SHIFT) * dim
    at = which[:, None] * dim + column[None, :]
    there = (which < GROUPS)[:, None] & (column < dim)[None, :]
    tl.store(sums_data + at, dweight, mask=there)
    tl.store(sums_data + GROUPS * dim + at, dbias, mask=there)
    if SHIFT:
        tl.store(sums_data + 2 * GROUPS * dim + column, tl.sum(of_shift, 0) * scale, mask=column < dim)

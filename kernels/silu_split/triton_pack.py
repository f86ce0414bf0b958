"""Gradients of parts, side by side and times SiLU's slope, with their sums over rows."""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.launch import VARYING


@triton.jit(do_not_specialize=VARYING)
def pack_kernel(
    first, second, third, fourth, z_data, out, sums, tokens, width, active, end1, end2, end3, z_stride, stride1, stride2, stride3, stride4, strip,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """COLUMNS columns of a strip of rows: out = gradient * silu'(z) in the first `active` columns, the gradient in the others. Part i is columns
    [end i-1, end i); `sums` [strips, width] float32."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.program_id(0) * strip
    end = tl.minimum(begin + strip, tokens)
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    there = column < width
    for at in range(begin, end, ROWS):
        row = at + tl.arange(0, ROWS)
        real = (row < end)[:, None]
        far = row.to(tl.int64)[:, None]
        mine = real & (column < end1)[None, :]
        grad = tl.load(first + far * stride1 + column[None, :], mask=mine, other=0.0).to(tl.float32)
        mine = real & ((column >= end1) & (column < end2))[None, :]
        grad += tl.load(second + far * stride2 + (column - end1)[None, :], mask=mine, other=0.0).to(tl.float32)
        mine = real & ((column >= end2) & (column < end3))[None, :]
        grad += tl.load(third + far * stride3 + (column - end2)[None, :], mask=mine, other=0.0).to(tl.float32)
        mine = real & ((column >= end3) & there)[None, :]
        grad += tl.load(fourth + far * stride4 + (column - end3)[None, :], mask=mine, other=0.0).to(tl.float32)
        sloped = real & (column < active)[None, :]
        z = tl.load(z_data + far * z_stride + column[None, :], mask=sloped, other=0.0).to(tl.float32)
        share = 1.0 / (1.0 + tl.exp(-z))
        grad = tl.where(sloped, grad * share * (1.0 + z * (1.0 - share)), grad)
        tl.store(out + far * width + column[None, :], grad.to(out.dtype.element_ty), mask=real & there[None, :])
        total += grad
    tl.store(sums + tl.program_id(0) * width + column, tl.sum(total, 0), mask=there)

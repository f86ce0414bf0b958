"""The kernels that move rows to their place: a part's among other parts' rows, and rows in an order, with rows of a table added."""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.launch import VARYING
from genrank.kernels.lookups.triton_rows import owner_of


@triton.jit(do_not_specialize=VARYING)
def move_rows_kernel(
    part, whole, part_offsets, whole_offsets, before, tokens, dim, batch, steps, part_stride, whole_stride,
    SPLIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Copy a part's rows to their place in the whole, or (SPLIT) back."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = row < tokens
    sample = owner_of(part_offsets, batch, row, real, steps)
    place = tl.load(whole_offsets + sample, mask=real, other=0) + tl.load(before + sample, mask=real, other=0)
    place += row - tl.load(part_offsets + sample, mask=real, other=0)
    inside = real[:, None] & (column < dim)[None, :]
    at_part = part + row.to(tl.int64)[:, None] * part_stride + column[None, :]
    at_whole = whole + place.to(tl.int64)[:, None] * whole_stride + column[None, :]
    if SPLIT:
        tl.store(at_part, tl.load(at_whole, mask=inside, other=0.0), mask=inside)
    else:
        tl.store(at_whole, tl.load(at_part, mask=inside, other=0.0), mask=inside)


@triton.jit(do_not_specialize=VARYING)
def assemble_kernel(
    x_rows, order, table, one, other, out, tokens, dim, stride,
    TWO: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out[t] = x[order[t]] + table[one[order[t]]], and (TWO) + table[other[order[t]]]; table and out contiguous."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = row < tokens
    inside = real[:, None] & (column < dim)[None, :]
    source = tl.load(order + row, mask=real, other=0)
    x = tl.load(x_rows + source[:, None] * stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    first = tl.load(one + source, mask=real, other=0)
    x += tl.load(table + first[:, None] * dim + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if TWO:
        second = tl.load(other + source, mask=real, other=0)
        x += tl.load(table + second[:, None] * dim + column[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row.to(tl.int64)[:, None] * dim + column[None, :], x.to(out.dtype.element_ty), mask=inside)

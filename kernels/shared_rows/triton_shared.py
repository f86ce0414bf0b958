"""Rows plus their sample's row through ReLU, and back."""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.launch import VARYING
from genrank.kernels.lookups.triton_rows import owner_of


@triton.jit(do_not_specialize=[*VARYING, "batch", "steps"])
def shared_forward_kernel(
    rows, shared, offsets, out, count, dim, batch, steps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """ROWS rows of `count`, COLUMNS columns of `dim`; each row's sample is the last whose offset isn't beyond it."""
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = at < count
    sample = owner_of(offsets, batch, at, there, steps)
    inside = there[:, None] & (column < dim)[None, :]
    place = at.to(tl.int64)[:, None] * dim + column[None, :]
    total = tl.load(rows + place, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(shared + sample[:, None] * dim + column[None, :], mask=inside, other=0.0).to(tl.float32)
    # Not the maximum, which would hide NaN.
    tl.store(out + place, tl.where(total < 0, 0.0, total).to(out.dtype.element_ty), mask=inside)


@triton.jit
def shared_backward_kernel(
    grad, out, offsets, of_rows, of_shared, dim,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """COLUMNS columns of a sample: the gradients of its rows, where `out` isn't 0, and their sum, in order."""
    sample = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < dim
    begin = tl.load(offsets + sample).to(tl.int64)
    end = tl.load(offsets + sample + 1).to(tl.int64)
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for first in range(begin, end, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & there[None, :]
        place = row[:, None] * dim + column[None, :]
        slope = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        slope = tl.where(tl.load(out + place, mask=inside, other=0.0).to(tl.float32) <= 0, 0.0, slope)
        tl.store(of_rows + place, slope.to(of_rows.dtype.element_ty), mask=inside)
        total += slope
    tl.store(of_shared + sample * dim + column, tl.sum(total, 0).to(of_shared.dtype.element_ty), mask=there)

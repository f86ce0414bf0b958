"""The kernel that moves rows to their places in groups, or back."""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.launch import VARYING


@triton.jit(do_not_specialize=VARYING)
def merge_kernel(
    rows_data, groups_data, offsets, starts, count, dim, batch, steps, k, row_stride,
    BACK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of `count` places of all groups (contiguous, [count, dim]): the row that belongs there, or zeros. BACK: of `count` rows, the
    place that is theirs; zeros for rows beyond the last sample."""
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = at < count
    low = at * 0
    high = low + batch
    for _ in range(steps):
        middle = (low + high) // 2
        if BACK:
            bound = tl.load(offsets + middle, mask=there, other=0).to(tl.int64)
        else:
            bound = tl.load(starts + middle, mask=there, other=0).to(tl.int64) * k
        low = tl.where(bound <= at, middle, low)
        high = tl.where(bound <= at, high, middle)
    first = tl.load(offsets + low, mask=there, other=0).to(tl.int64)
    last = tl.load(offsets + low + 1, mask=there, other=0).to(tl.int64)
    end = tl.load(starts + low + 1, mask=there, other=0).to(tl.int64) * k
    inside = there[:, None] & (column < dim)[None, :]
    if BACK:
        real = at < last
        source = groups_data + (end - last + at)[:, None] * dim + column[None, :]
        target = rows_data + at.to(tl.int64)[:, None] * row_stride + column[None, :]
    else:
        row = last - end + at
        real = (row >= first) & (at < end)
        source = rows_data + row[:, None] * row_stride + column[None, :]
        target = groups_data + at.to(tl.int64)[:, None] * dim + column[None, :]
    tl.store(target, tl.load(source, mask=inside & real[:, None], other=0.0), mask=inside)

"""Initial weights of rows that got a new owner: `tokenization.initial_rows`, for rows that only the device knows."""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.lookups.triton_rows import mixed

MANTISSA = tl.constexpr((1 << 53) - 1)


@triton.jit
def polynomial(x, coefficients, TERMS: tl.constexpr):
    """The highest power's coefficient first."""
    total = tl.zeros_like(x) + tl.load(coefficients)
    for i in tl.static_range(1, TERMS):
        total = total * x + tl.load(coefficients + i)
    return total


@triton.jit
def inverse_normal(y, numbers):
    """The normal distribution's quantile of y in (0, 1), float64: Cephes's ndtri, as torch computes it. `numbers`: `gpu.QUANTILE`."""
    edge = tl.load(numbers + 1)
    upper = y > 1.0 - edge
    tail = tl.where(upper, 1.0 - y, y)
    middle = tail - 0.5
    square = middle * middle
    inner = middle + middle * (square * polynomial(square, numbers + 2, 5) / polynomial(square, numbers + 7, 9))
    x = tl.sqrt(-2.0 * tl.log(tail))
    z = 1.0 / x
    near = z * polynomial(z, numbers + 16, 9) / polynomial(z, numbers + 25, 9)
    far = z * polynomial(z, numbers + 34, 9) / polynomial(z, numbers + 43, 9)
    outer = (x - tl.log(x) / x) - tl.where(x < 8.0, near, far)
    return tl.where(tail > edge, inner * tl.load(numbers), tl.where(upper, outer, -outer))


@triton.jit(do_not_specialize=("count", "dim", "members"))
def reset_kernel(
    weight, first, second, rows, starts, seeds, numbers, count, dim, members,
    NORMAL: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK of `rows` [count] int64, all below 0 after the last, in WIDTH columns. `starts`, `seeds` [members] int64 of the logical tables;
    `numbers` float64: as `gpu.reset_numbers`."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + at, mask=at < count, other=-1)
    real = row >= 0
    if tl.max(real.to(tl.int32), 0) == 0:
        return
    start, seed = tl.zeros_like(row), tl.zeros_like(row)
    for member in range(members):
        begin = tl.load(starts + member)
        start = tl.where(row >= begin, begin, start)
        seed = tl.where(row >= begin, tl.load(seeds + member), seed)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = real[:, None] & (columns < dim)[None, :]
    counter = (row - start)[:, None] * dim + columns[None, :]
    bits = mixed(mixed(counter) ^ seed[:, None]) >> 11 & MANTISSA
    uniform = (bits.to(tl.float64) + 0.5) * tl.load(numbers + 1)
    scale = tl.load(numbers)
    value = inverse_normal(uniform, numbers + 2) * scale if NORMAL else (uniform * 2.0 - 1.0) * scale
    where = row[:, None] * dim + columns[None, :]
    tl.store(weight + where, value.to(tl.float32), mask=inside)
    if first is not None:
        tl.store(first + where, tl.zeros([BLOCK, WIDTH], dtype=tl.float32), mask=inside)
    if second is not None:
        tl.store(second + row, tl.zeros([BLOCK], dtype=tl.float32), mask=real)

"""What the attention kernels' tiles are made of: SiLU and its slope, biases, dropout, loads, and the walk over keys."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh_approx(x):
    """One special-function instruction; its error, 2^-11, drowns in bfloat16's 2^-9."""
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def silu(half, FAST: tl.constexpr):
    """silu(x) of x = 2 half: half (1 + tanh half), one multiply-add beside the special function."""
    if FAST:
        return tl.fma(half, tanh_approx(half), half)
    return 2.0 * half / (1.0 + tl.exp2(half * -2.8853900817779268))


@triton.jit
def silu_and_slope(half, visible, MASKED: tl.constexpr, FAST: tl.constexpr):
    """silu(x) and 2 silu'(x) - 1 of x = 2 half; with t = tanh half, the latter is t + half (1 - t^2). Whoever multiplies
    by the derivative then needs no addition: 2 silu' y = y (2 silu' - 1) + y. Hidden pairs get 0 and -1, so that both
    their weight and their derivative vanish, and the mask need not be kept for later."""
    if MASKED:
        half = tl.where(visible, half, 0.0)
    if FAST:
        t = tanh_approx(half)
        if MASKED:
            t = tl.where(visible, t, -1.0)
        return tl.fma(half, t, half), tl.fma(half, tl.fma(t, -t, 1.0), t)
    gate = 1.0 / (1.0 + tl.exp2(half * -2.8853900817779268))
    if MASKED:
        gate = tl.where(visible, gate, 0.0)
    weight = 2.0 * half * gate
    return weight, 2.0 * tl.fma(weight, 1.0 - gate, gate) - 1.0


@triton.jit
def add_bias(
    half,
    distance,
    elapsed,
    position_table,
    time_table,
    head,
    heads,
    reach,
    time_rows,
    HAS_POSITION: tl.constexpr,
    HAS_TIME: tl.constexpr,
):
    """half + (position_table[clamp(distance) + reach, head] + time_table[bucket(elapsed), head]) / 2"""
    if HAS_POSITION:
        row = tl.minimum(tl.maximum(distance, -reach), reach) + reach
        half += 0.5 * tl.load(position_table + row * heads + head).to(tl.float32)
    if HAS_TIME:
        half += 0.5 * tl.load(time_table + time_bucket(elapsed, time_rows) * heads + head).to(tl.float32)
    return half


@triton.jit
def time_bucket(elapsed, time_rows):
    """Row of the time table, as `kernels.attention.time_row`."""
    size = tl.maximum(tl.abs(elapsed).to(tl.float32), 1.0)
    return tl.minimum((tl.log(size) / 0.301).to(tl.int32), time_rows - 1)


@triton.jit
def split_stamp(stamp, base):
    """stamp - base as two float32, in units of 4096 and of 1: their differences need no 64-bit register a pair, are
    exact up to 2^36 from base, and beyond as good as the float32 whose logarithm is taken."""
    elapsed = stamp - base
    coarse = elapsed >> 12
    return coarse.to(tl.float32), (elapsed - (coarse << 12)).to(tl.float32)


@triton.jit
def dropout_scale(query, key, head, seed, threshold, inverse_keep):
    """0 or 1/(1-p) per pair, by counter (Philox, Salmon et al. 2011): the same in forward and both backward passes."""
    zero = query * 0 + key * 0
    random, _, _, _ = tl.philox(seed, key + zero, query + zero, head + zero, zero, n_rounds=7)
    return tl.where((random >> 8).to(tl.int32) >= threshold, inverse_keep, 0.0)


@triton.jit
def load_rows(base, row, stride, dim, valid, MASK_ROWS: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr):
    """[rows, WIDTH] of one head; columns beyond DIM, and rows that are not valid, are 0."""
    at = base + row[:, None] * stride + dim[None, :]
    if MASK_ROWS:
        if WIDTH == DIM:
            return tl.load(at, mask=valid[:, None], other=0.0)
        return tl.load(at, mask=valid[:, None] & (dim < DIM)[None, :], other=0.0)
    if WIDTH == DIM:
        return tl.load(at)
    return tl.load(at, mask=(dim < DIM)[None, :], other=0.0)


@triton.jit
def load_tile(
    base, descriptor, data_row, data_column, row, stride, dim, valid,
    MASKED: tl.constexpr, TMA: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """[rows, WIDTH] of one head of the sample that `base` points to; by the tensor memory accelerator (TMA) where every
    row of the tile belongs to the sample, that is in unmasked tiles: one thread then asks for the whole tile, and the
    product waits for it at a barrier instead of a fence. (data_row, data_column) is where the tile lies in the whole
    tensor, seen as a matrix with a row for each token."""
    if TMA and not MASKED:
        return descriptor.load([data_row, data_column])
    return load_rows(base, row, stride, dim, valid, MASKED, WIDTH, DIM)


@triton.jit
def own_tiles(own, alone, BLOCK: tl.constexpr):
    """Of rows that are alone (outside their own interval): the first tile that holds one's own key, and how many to
    the last.
    """
    far = 2147483647
    low = tl.min(tl.where(alone, own, far), 0) // BLOCK
    high = tl.max(tl.where(alone, own, -1), 0) // BLOCK
    count = tl.where(tl.max(alone.to(tl.int32), 0) > 0, high - low + 1, 0)
    return low * BLOCK, count


@triton.jit
def walk_of_keys(begin, end, valid, BLOCK_N: tl.constexpr):
    """Of a query block: the keys [low, high) that any row needs, and [full_low, full_high) of them, in whole key
    blocks, that all rows see. low and full_low are multiples of BLOCK_N; without a full block, full_low == full_high
    >= high."""
    far = 2147483647
    sees = valid & (begin < end)
    low = tl.min(tl.where(sees, begin, far), 0)
    high = tl.max(tl.where(sees, end, 0), 0)
    low = (tl.minimum(low, high) // BLOCK_N) * BLOCK_N
    full_low = tl.cdiv(tl.max(tl.where(valid, begin, 0), 0), BLOCK_N) * BLOCK_N
    full_high = (tl.min(tl.where(valid, end, far), 0) // BLOCK_N) * BLOCK_N
    none = full_high <= full_low
    beyond = low + tl.cdiv(high - low, BLOCK_N) * BLOCK_N
    full_low = tl.where(none, beyond, full_low)
    full_high = tl.where(none, beyond, full_high)
    return low, high, full_low, full_high

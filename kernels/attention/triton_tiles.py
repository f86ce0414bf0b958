"""What the attention kernels are made of: SiLU and its slope, scores with their bias, dropout, loads, and the walk over
keys."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh_approx(x):
    """One special-function instruction; its error, 2^-11, drowns in bfloat16's 2^-9."""
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def silu(half_score, FAST: tl.constexpr):
    """silu(x) of x = 2 half_score: half_score (1 + tanh half_score), one multiply-add beside the special function."""
    if FAST:
        return tl.fma(half_score, tanh_approx(half_score), half_score)
    return 2.0 * half_score / (1.0 + tl.exp2(half_score * -2.8853900817779268))


@triton.jit
def silu_and_slope(half_score, visible, MASKED: tl.constexpr, FAST: tl.constexpr):
    """silu(x) and 2 silu'(x) - 1 of x = 2 h, h the half score; with t = tanh h, the latter is t + h (1 - t^2). Whoever multiplies
    by the derivative then needs no addition: 2 silu' y = y (2 silu' - 1) + y. Hidden pairs get 0 and -1, so that both
    their weight and their derivative vanish, and the mask need not be kept for later."""
    if MASKED:
        half_score = tl.where(visible, half_score, 0.0)
    if FAST:
        t = tanh_approx(half_score)
        if MASKED:
            t = tl.where(visible, t, -1.0)
        return tl.fma(half_score, t, half_score), tl.fma(half_score, tl.fma(t, -t, 1.0), t)
    gate = 1.0 / (1.0 + tl.exp2(half_score * -2.8853900817779268))
    if MASKED:
        gate = tl.where(visible, gate, 0.0)
    weight = 2.0 * half_score * gate
    return weight, 2.0 * tl.fma(weight, 1.0 - gate, gate) - 1.0


@triton.jit
def time_bucket(elapsed, time_rows):
    """Row of the time table, as `kernels.attention.bias.time_row`."""
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
def block_place(own, valid, positions, stamps, HAS_POSITIONS: tl.constexpr, HAS_TIME: tl.constexpr):
    """Where a block's own tokens stand, for `half_scores`: (positions, coarse and fine time, and the time that these are
    relative to)."""
    position = own
    base_stamp = own * 0
    coarse = own.to(tl.float32)
    fine = coarse
    if HAS_POSITIONS:
        position = tl.load(positions + own, mask=valid, other=0)
    if HAS_TIME:
        base_stamp = tl.load(stamps + tl.max(tl.where(valid, own, 0), 0))
        coarse, fine = split_stamp(tl.load(stamps + own, mask=valid, other=0), base_stamp)
    return position, coarse, fine, base_stamp


@triton.jit
def half_scores(
    rows, columns, place, column, real, head, alpha, bias,
    TRANSPOSED: tl.constexpr, HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Half of `alpha rows columns^T + bias`, and where the bias depends on them the distance and the time between the tokens
    of each pair. Rows are queries, at `place`, and columns keys; TRANSPOSED, the other way round."""
    position_table, time_table, positions, stamps, reach, time_rows, heads = bias
    position, coarse, fine, base_stamp = place
    half_score = tl.dot(rows, tl.trans(columns), input_precision=PRECISION) * (0.5 * alpha)
    distance = position[:, None]
    elapsed = coarse[:, None]
    if HAS_POSITION:
        other = column
        if HAS_POSITIONS:
            other = tl.load(positions + column, mask=real, other=0)
        distance = other[None, :] - distance if TRANSPOSED else distance - other[None, :]
        half_score += 0.5 * tl.load(position_table + position_row(distance, reach) * heads + head).to(tl.float32)
    if HAS_TIME:
        other_coarse, other_fine = split_stamp(tl.load(stamps + column, mask=real, other=0), base_stamp)
        elapsed = (coarse[:, None] - other_coarse[None, :]) * 4096.0 + (fine[:, None] - other_fine[None, :])
        half_score += 0.5 * tl.load(time_table + time_bucket(elapsed, time_rows) * heads + head).to(tl.float32)
    return half_score, distance, elapsed


@triton.jit
def position_row(distance, reach):
    """Row of the position table, as `kernels.attention.bias.position_row`."""
    return tl.minimum(tl.maximum(distance, -reach), reach) + reach


@triton.jit
def dropout_scale(query, key, head, drop):
    """0 or 1/(1-p) per pair, by counter (Philox, Salmon et al. 2011): the same in forward and both backward passes."""
    seed, threshold, inverse_keep = drop
    zero = query * 0 + key * 0
    random, _, _, _ = tl.philox(seed, key + zero, query + zero, head + zero, zero, n_rounds=7)
    return tl.where((random >> 8).to(tl.int32) >= threshold, inverse_keep, 0.0)


@triton.jit
def sample_rows(data, start, token, head, head_step):
    """The first row of a sample, of one head, in 64 bits: a batch may be larger than 2^31 elements. Within a sample 32 bits
    do (`kernels.attention.gpu.check_reach`), which leaves more registers."""
    return data + start * token + head.to(tl.int64) * head_step


@triton.jit
def load_rows(
    base, first, stride, valid, MASK_ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr
):
    """[BLOCK, WIDTH] of one head, from row `first` on; columns beyond DIM, and rows that are not valid, are 0."""
    dim = tl.arange(0, WIDTH)
    row = first + tl.arange(0, BLOCK)
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
    source, first, valid,
    MASKED: tl.constexpr, TMA: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """[BLOCK, WIDTH] of one head of a sample, from row `first` on; by the tensor memory accelerator (TMA) where every row of
    the tile belongs to the sample, that is in unmasked tiles: one thread then asks for the whole tile, and the product waits
    for it at a barrier instead of a fence. source: (the sample's first row, stride of rows; for TMA the descriptor of the
    whole tensor, seen as a matrix with a row for each token, and where the sample's head begins in it: row, column)."""
    base, stride, descriptor, data_row, data_column = source
    if TMA and not MASKED:
        return descriptor.load([data_row + first, data_column])
    return load_rows(base, first, stride, valid, MASKED, BLOCK, WIDTH, DIM)


@triton.jit
def store_rows(base, first, stride, valid, values, BLOCK: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr):
    """Store [BLOCK, WIDTH] of one head, from row `first` on; only columns within DIM and rows that are valid."""
    dim = tl.arange(0, WIDTH)
    at = base + (first + tl.arange(0, BLOCK)).to(tl.int64)[:, None] * stride + dim[None, :]
    tl.store(at, values.to(base.dtype.element_ty), mask=valid[:, None] & (dim < DIM)[None, :])


@triton.jit
def clear_rows(base, first, stride, tokens, BLOCK: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr):
    """Zeros for rows that belong to no sample, as a batch that was padded to a fixed size has them."""
    zeros = tl.zeros([BLOCK, WIDTH], dtype=tl.float32)
    store_rows(base, first, stride, first + tl.arange(0, BLOCK) < tokens, zeros, BLOCK, WIDTH, DIM)


@triton.jit
def unit_of(units, heads, UNIT_ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """What this program does: (its first row in the sample; the sample's rows, int32, its first token, int64, and its number,
    as `kernels.attention.plan.units` packs them; head). Rows are -1 without a sample: the first row is then one of the whole
    batch. Four loads that don't wait for one another, from one 16-byte record."""
    block = tl.program_id(0) // heads
    parts: tl.constexpr = UNIT_ROWS // BLOCK
    unit = units + (block // parts) * 4
    first = tl.load(unit) + (block % parts) * BLOCK
    rows = tl.load(unit + 1)
    start = tl.load(unit + 2).to(tl.int64)
    return first, rows, start, tl.load(unit + 3), tl.program_id(0) % heads


@triton.jit
def extent(offsets, sample):
    """First token of a sample (int64), and how many it has (int32)."""
    start = tl.load(offsets + sample).to(tl.int64)
    return start, (tl.load(offsets + sample + 1).to(tl.int64) - start).to(tl.int32)


@triton.jit
def masked_tiles(low, high, full_low, full_high, own, self_only, EDGE: tl.constexpr):
    """Of a query block: the masked tiles (left of its run of full ones, in all, the first key of those that follow) that
    `masked_tile` gives one by one: the two edges of the run, and then, for rows that see themselves only in addition (outside their own
    interval), the tiles that hold their own keys."""
    far = 2147483647
    left = (full_low - low) // EDGE
    right = tl.cdiv(tl.maximum(high - full_high, 0), EDGE)
    own_low = tl.min(tl.where(self_only, own, far), 0) // EDGE
    own_high = tl.max(tl.where(self_only, own, -1), 0) // EDGE
    own_count = tl.where(tl.max(self_only.to(tl.int32), 0) > 0, own_high - own_low + 1, 0)
    return left, left + right, left + right + own_count, own_low * EDGE


@triton.jit
def masked_tile(at, tiles, low, full_high, own, self_only, begin, end, EDGE: tl.constexpr):
    """Of the masked tile number `at`: its first key, and the keys [from, to) that each row sees of it."""
    left, edges, _, own_first = tiles
    first = tl.where(at < left, low + at * EDGE, full_high + (at - left) * EDGE)
    to_self = at >= edges
    first = tl.where(to_self, own_first + (at - edges) * EDGE, first)
    return first, tl.where(to_self, own, begin), tl.where(to_self, tl.where(self_only, own + 1, own), end)


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

"""Interval attention on GPU: Triton kernels that touch the tiles that the intervals need, and no others.

    forward      a program per query block: walks the keys `[min begin, max end)` of its rows
    backward_q   the same walk, for dQ and the bias tables: a pass of its own, so that dQ sums in float32, in order
    backward_kv  a program per key block: walks the query blocks that see it, for dK and dV

Each walk has two parts. Tiles that every row sees whole run without mask arithmetic; the tiles at the edges of the
intervals are masked. Rows outside their own interval (candidates) meet their own keys in further masked tiles, so
that candidates cost their diagonal tiles only. Programs start in descending order of their work, over units of
`UNIT` rows: no launch slot waits for a sample that is not there, and the longest samples do not finish last.

Determinism: every sum has one owner and one order. Table gradients, which many programs share, add as 64-bit integers
in a fixed-point scale derived from the data, because integer sums do not depend on their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.interval import Problem, planned
from kernels.launch import INTERPRET, Tuned

if TYPE_CHECKING:
    from kernels.attention import RelativeBias

UNIT = 128
"""Rows of a unit of work; every block size divides it."""
CHUNK = 64
"""Query rows summarised together for `backward_kv`."""
HEADROOM = 256.0
"""`backward_kv` multiplies p and ds, which carry the factor 1/n, by this before they are rounded to float16."""

# --- pieces -----------------------------------------------------------------------------------------------------------


@triton.jit
def sigmoid(x, FAST: tl.constexpr):
    """FAST: one special-function instruction instead of two; its error, 2^-11, drowns in bfloat16's 2^-9."""
    if FAST:
        half = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x * 0.5], dtype=tl.float32, is_pure=True, pack=1
        )
        return half * 0.5 + 0.5
    return 1.0 / (1.0 + tl.exp2(x * -1.4426950408889634))


@triton.jit
def add_bias(
    score,
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
    """score + position_table[clamp(distance) + reach, head] + time_table[bucket(elapsed), head]"""
    if HAS_POSITION:
        row = tl.minimum(tl.maximum(distance, -reach), reach) + reach
        score += tl.load(position_table + row * heads + head).to(tl.float32)
    if HAS_TIME:
        score += tl.load(time_table + time_bucket(elapsed, time_rows) * heads + head).to(tl.float32)
    return score


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


# --- forward ----------------------------------------------------------------------------------------------------------


@triton.jit
def forward_tile(
    acc, q, first, begin, end, own_position, coarse, fine, base_stamp, query, head, heads, k_base, v_base, k_stride, v_stride, keys,
    position_table, time_table, stamps, positions, alpha, reach, time_rows, seed, threshold, inverse_keep,
    MASKED: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    DROPOUT: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    key = first + tl.arange(0, BLOCK_N)
    real = key < keys
    k = load_rows(k_base, key, k_stride, tl.arange(0, WIDTH), real, MASKED, WIDTH, DIM)
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * alpha
    distance = own_position[:, None]
    elapsed = coarse[:, None]
    if HAS_POSITION:
        if HAS_POSITIONS:
            distance = distance - tl.load(positions + key, mask=real, other=0)[None, :]
        else:
            distance = distance - key[None, :]
    if HAS_TIME:
        key_coarse, key_fine = split_stamp(tl.load(stamps + key, mask=real, other=0), base_stamp)
        elapsed = (coarse[:, None] - key_coarse[None, :]) * 4096.0 + (fine[:, None] - key_fine[None, :])
    score = add_bias(
        score, distance, elapsed, position_table, time_table, head, heads, reach, time_rows, HAS_POSITION, HAS_TIME
    )
    weight = score * sigmoid(score, FAST)
    if MASKED:
        visible = (key[None, :] >= begin[:, None]) & (key[None, :] < end[:, None])
        weight = tl.where(visible, weight, 0.0)
    if DROPOUT:
        weight *= dropout_scale(query[:, None], key[None, :], head, seed, threshold, inverse_keep)
    v = load_rows(v_base, key, v_stride, tl.arange(0, VALUE_WIDTH), real, MASKED, VALUE_WIDTH, VALUE_DIM)
    return tl.dot(weight.to(v.dtype), v, acc, input_precision=PRECISION)


@triton.jit
def forward_kernel(
    q_data, k_data, v_data, out_data, q_offsets, k_offsets, q_positions, begin_data, end_data, scale_data,
    unit_sample, unit_row, position_table, time_table, stamps, positions,
    alpha, reach, time_rows, seed, threshold, inverse_keep, heads,
    q_token, q_head, k_token, k_head, v_token, v_head, out_token, out_head, bucket,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    SELF: tl.constexpr, HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    DROPOUT: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, UNIT_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out = scale * (silu(alpha q k^T + bias) * visible) v, for BLOCK_M queries of one sample and head."""
    pid = tl.program_id(0)
    head = tl.program_id(1)
    parts: tl.constexpr = UNIT_ROWS // BLOCK_M
    sample = tl.load(unit_sample + pid // parts)
    if sample < 0:
        return
    q_start = tl.load(q_offsets + sample).to(tl.int64)
    k_start = tl.load(k_offsets + sample).to(tl.int64)
    queries = (tl.load(q_offsets + sample + 1).to(tl.int64) - q_start).to(tl.int32)
    keys = (tl.load(k_offsets + sample + 1).to(tl.int64) - k_start).to(tl.int32)
    row = tl.load(unit_row + pid // parts) + (pid % parts) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = row < queries
    if tl.max(valid.to(tl.int32), 0) == 0:
        return
    begin = tl.maximum(tl.load(begin_data + q_start + row, mask=valid, other=0), 0)
    end = tl.minimum(tl.load(end_data + q_start + row, mask=valid, other=0), keys)
    own = row if SELF else tl.load(q_positions + q_start + row, mask=valid, other=0)
    own_position = own
    base_stamp = row * 0
    coarse = row.to(tl.float32)
    fine = coarse
    if HAS_POSITIONS:
        own_position = tl.load(positions + k_start + own, mask=valid, other=0)
    if HAS_TIME:
        base_stamp = tl.load(stamps + k_start + tl.max(tl.where(valid, own, 0), 0))
        coarse, fine = split_stamp(tl.load(stamps + k_start + own, mask=valid, other=0), base_stamp)
    query = (q_start + row).to(tl.int32)
    k_base = k_data + k_start * k_token + head * k_head
    v_base = v_data + k_start * v_token + head * v_head
    stamps += k_start
    positions += k_start
    dim = tl.arange(0, WIDTH)
    value_dim = tl.arange(0, VALUE_WIDTH)
    q_base = q_data + q_start * q_token + head * q_head
    acc = tl.zeros([BLOCK_M, VALUE_WIDTH], dtype=tl.float32)
    q = load_rows(q_base, row, q_token, dim, valid, True, WIDTH, DIM)

    low, high, full_low, full_high = walk_of_keys(begin, end, valid, BLOCK_N)
    for first in range(full_low, full_high, BLOCK_N):
        acc = forward_tile(
            acc, q, first, begin, end, own_position, coarse, fine, base_stamp, query, head, heads, k_base, v_base, k_token, v_token,
            keys, position_table, time_table, stamps, positions, alpha, reach, time_rows, seed, threshold, inverse_keep,
            False, DIM, VALUE_DIM, WIDTH, VALUE_WIDTH, BLOCK_N, HAS_POSITION, HAS_TIME, HAS_POSITIONS, DROPOUT, FAST,
            PRECISION,
        )  # fmt: skip
    left = (full_low - low) // BLOCK_N
    right = tl.cdiv(tl.maximum(high - full_high, 0), BLOCK_N)
    alone = valid & ((own < begin) | (own >= end))
    own_first, own_count = own_tiles(own, alone, BLOCK_N)
    for edge in range(left + right + own_count):
        first = tl.where(edge < left, low + edge * BLOCK_N, full_high + (edge - left) * BLOCK_N)
        to_self = edge >= left + right
        first = tl.where(to_self, own_first + (edge - left - right) * BLOCK_N, first)
        sees_from = tl.where(to_self, own, begin)
        sees_to = tl.where(to_self, tl.where(alone, own + 1, own), end)
        acc = forward_tile(
            acc, q, first, sees_from, sees_to, own_position, coarse, fine, base_stamp, query, head, heads, k_base, v_base, k_token, v_token,
            keys, position_table, time_table, stamps, positions, alpha, reach, time_rows, seed, threshold, inverse_keep,
            True, DIM, VALUE_DIM, WIDTH, VALUE_WIDTH, BLOCK_N, HAS_POSITION, HAS_TIME, HAS_POSITIONS, DROPOUT, FAST,
            PRECISION,
        )  # fmt: skip

    acc *= tl.load(scale_data + q_start + row, mask=valid, other=0.0)[:, None]
    at = out_data + (q_start + row)[:, None] * out_token + head * out_head + value_dim[None, :]
    tl.store(at, acc.to(out_data.dtype.element_ty), mask=valid[:, None] & (value_dim < VALUE_DIM)[None, :])


# --- backward: dQ and the bias tables ---------------------------------------------------------------------------------


@triton.jit
def add_to_tables(
    slope, counted, distance, elapsed, position_sum, time_sum, head, heads, reach, time_rows, fixed_point,
    GRAD_POSITION: tl.constexpr, GRAD_TIME: tl.constexpr,
):  # fmt: skip
    """Add slope (the gradient of the scores) to the table rows of its pairs, as integers of `1 / fixed_point`."""
    slope = tl.where(counted, slope, 0.0)
    if GRAD_POSITION:
        row = tl.minimum(tl.maximum(distance, -reach), reach) + reach
        tl.atomic_add(
            position_sum + row * heads + head, (slope * fixed_point).to(tl.int64), mask=counted, sem="relaxed"
        )
    if GRAD_TIME:
        bucket = time_bucket(elapsed, time_rows)
        # A tile meets few buckets, most tiles one or two: sum in registers, then one addition a bucket.
        low = tl.min(tl.min(tl.where(counted, bucket, time_rows), 1), 0)
        high = tl.max(tl.max(tl.where(counted, bucket, -1), 1), 0)
        for at in range(low, high + 1):
            total = tl.sum(tl.sum(tl.where(bucket == at, slope, 0.0), 1), 0)
            tl.atomic_add(time_sum + at * heads + head, (total * fixed_point).to(tl.int64), sem="relaxed")


@triton.jit
def backward_q_tile(
    acc, q, above, scale, first, begin, end, valid, own_position, coarse, fine, base_stamp, query, head, heads,
    k_base, v_base, k_stride, v_stride, keys, position_table, time_table, stamps, positions, position_sum, time_sum,
    fixed_point, alpha, reach, time_rows, seed, threshold, inverse_keep,
    MASKED: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    GRAD_POSITION: tl.constexpr, GRAD_TIME: tl.constexpr, DROPOUT: tl.constexpr, FAST: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    key = first + tl.arange(0, BLOCK_N)
    real = key < keys
    k = load_rows(k_base, key, k_stride, tl.arange(0, WIDTH), real, MASKED, WIDTH, DIM)
    v = load_rows(v_base, key, v_stride, tl.arange(0, VALUE_WIDTH), real, MASKED, VALUE_WIDTH, VALUE_DIM)
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * alpha
    distance = own_position[:, None]
    elapsed = coarse[:, None]
    if HAS_POSITION:
        if HAS_POSITIONS:
            distance = distance - tl.load(positions + key, mask=real, other=0)[None, :]
        else:
            distance = distance - key[None, :]
    if HAS_TIME:
        key_coarse, key_fine = split_stamp(tl.load(stamps + key, mask=real, other=0), base_stamp)
        elapsed = (coarse[:, None] - key_coarse[None, :]) * 4096.0 + (fine[:, None] - key_fine[None, :])
    score = add_bias(
        score, distance, elapsed, position_table, time_table, head, heads, reach, time_rows, HAS_POSITION, HAS_TIME
    )
    gate = sigmoid(score, FAST)
    slope = tl.dot(above, tl.trans(v), input_precision=PRECISION)
    slope *= gate * (1.0 + score * (1.0 - gate))
    visible = valid[:, None] & real[None, :]
    if MASKED:
        visible = visible & (key[None, :] >= begin[:, None]) & (key[None, :] < end[:, None])
        slope = tl.where(visible, slope, 0.0)
    if DROPOUT:
        slope *= dropout_scale(query[:, None], key[None, :], head, seed, threshold, inverse_keep)
    if GRAD_POSITION or GRAD_TIME:
        add_to_tables(
            slope * scale[:, None], visible, distance, elapsed, position_sum, time_sum, head, heads, reach, time_rows,
            fixed_point, GRAD_POSITION, GRAD_TIME,
        )  # fmt: skip
    return tl.dot(slope.to(k.dtype), k, acc, input_precision=PRECISION)


@triton.jit
def backward_q_kernel(
    q_data, k_data, v_data, above_data, dq_data, offsets, begin_data, end_data, scale_data,
    unit_sample, unit_row, position_table, time_table, stamps, positions, position_sum, time_sum, fixed_point_data,
    alpha, reach, time_rows, seed, threshold, inverse_keep, heads,
    q_token, q_head, k_token, k_head, v_token, v_head, above_token, above_head, dq_token, dq_head, bucket,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    GRAD_POSITION: tl.constexpr, GRAD_TIME: tl.constexpr, DROPOUT: tl.constexpr, FAST: tl.constexpr,
    PRECISION: tl.constexpr, UNIT_ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dq = alpha * scale * (ds k), ds = (above v^T) * silu'(scores) * visible, and the sums of ds over the bias
    tables.
    """
    pid = tl.program_id(0)
    head = tl.program_id(1)
    parts: tl.constexpr = UNIT_ROWS // BLOCK_M
    sample = tl.load(unit_sample + pid // parts)
    if sample < 0:
        return
    start = tl.load(offsets + sample).to(tl.int64)
    keys = (tl.load(offsets + sample + 1).to(tl.int64) - start).to(tl.int32)
    row = tl.load(unit_row + pid // parts) + (pid % parts) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = row < keys
    if tl.max(valid.to(tl.int32), 0) == 0:
        return
    begin = tl.maximum(tl.load(begin_data + start + row, mask=valid, other=0), 0)
    end = tl.minimum(tl.load(end_data + start + row, mask=valid, other=0), keys)
    own_position = row
    base_stamp = row * 0
    coarse = row.to(tl.float32)
    fine = coarse
    if HAS_POSITIONS:
        own_position = tl.load(positions + start + row, mask=valid, other=0)
    if HAS_TIME:
        base_stamp = tl.load(stamps + start + tl.max(tl.where(valid, row, 0), 0))
        coarse, fine = split_stamp(tl.load(stamps + start + row, mask=valid, other=0), base_stamp)
    scale = tl.load(scale_data + start + row, mask=valid, other=0.0)
    fixed_point = 1.0
    if GRAD_POSITION or GRAD_TIME:
        fixed_point = tl.load(fixed_point_data)
    query = (start + row).to(tl.int32)
    k_base = k_data + start * k_token + head * k_head
    v_base = v_data + start * v_token + head * v_head
    stamps += start
    positions += start
    dim = tl.arange(0, WIDTH)
    value_dim = tl.arange(0, VALUE_WIDTH)
    q_base = q_data + start * q_token + head * q_head
    above_base = above_data + start * above_token + head * above_head
    acc = tl.zeros([BLOCK_M, WIDTH], dtype=tl.float32)
    q = load_rows(q_base, row, q_token, dim, valid, True, WIDTH, DIM)
    above = load_rows(above_base, row, above_token, value_dim, valid, True, VALUE_WIDTH, VALUE_DIM)

    low, high, full_low, full_high = walk_of_keys(begin, end, valid, BLOCK_N)
    for first in range(full_low, full_high, BLOCK_N):
        acc = backward_q_tile(
            acc, q, above, scale, first, begin, end, valid, own_position, coarse, fine, base_stamp, query, head, heads,
            k_base, v_base, k_token, v_token, keys, position_table, time_table, stamps, positions, position_sum,
            time_sum, fixed_point, alpha, reach, time_rows, seed, threshold, inverse_keep,
            False, DIM, VALUE_DIM, WIDTH, VALUE_WIDTH, BLOCK_N, HAS_POSITION, HAS_TIME, HAS_POSITIONS,
            GRAD_POSITION, GRAD_TIME, DROPOUT, FAST, PRECISION,
        )  # fmt: skip
    left = (full_low - low) // BLOCK_N
    right = tl.cdiv(tl.maximum(high - full_high, 0), BLOCK_N)
    alone = valid & ((row < begin) | (row >= end))
    own_first, own_count = own_tiles(row, alone, BLOCK_N)
    for edge in range(left + right + own_count):
        first = tl.where(edge < left, low + edge * BLOCK_N, full_high + (edge - left) * BLOCK_N)
        to_self = edge >= left + right
        first = tl.where(to_self, own_first + (edge - left - right) * BLOCK_N, first)
        sees_from = tl.where(to_self, row, begin)
        sees_to = tl.where(to_self, tl.where(alone, row + 1, row), end)
        acc = backward_q_tile(
            acc, q, above, scale, first, sees_from, sees_to, valid, own_position, coarse, fine, base_stamp, query, head, heads,
            k_base, v_base, k_token, v_token, keys, position_table, time_table, stamps, positions, position_sum,
            time_sum, fixed_point, alpha, reach, time_rows, seed, threshold, inverse_keep,
            True, DIM, VALUE_DIM, WIDTH, VALUE_WIDTH, BLOCK_N, HAS_POSITION, HAS_TIME, HAS_POSITIONS,
            GRAD_POSITION, GRAD_TIME, DROPOUT, FAST, PRECISION,
        )  # fmt: skip

    acc *= alpha * scale[:, None]
    at = dq_data + (start + row)[:, None] * dq_token + head * dq_head + dim[None, :]
    tl.store(at, acc.to(dq_data.dtype.element_ty), mask=valid[:, None] & (dim < DIM)[None, :])


# --- backward: dK and dV ----------------------------------------------------------------------------------------------


@triton.jit
def walk_of_queries(summary, chunks, first_key, last_key, far, CHUNK_ROWS: tl.constexpr):
    """Of a key block: the query rows [low, high) among which all that need it lie, and one run [full_low, full_high) of
    them that see it whole. Without such a run, full_low == full_high == high."""
    low = far
    high = 0
    full_low = far
    for at in range(0, chunks, 64):
        chunk = at + tl.arange(0, 64)
        there = chunk < chunks
        need = there & (tl.load(summary + chunk * 4, mask=there, other=0) < last_key)
        need = need & (tl.load(summary + chunk * 4 + 1, mask=there, other=0) > first_key)
        full = need & (tl.load(summary + chunk * 4 + 2, mask=there, other=0) <= first_key)
        full = full & (tl.load(summary + chunk * 4 + 3, mask=there, other=0) >= last_key)
        low = tl.minimum(low, tl.min(tl.where(need, chunk, far), 0))
        high = tl.maximum(high, tl.max(tl.where(need, chunk + 1, 0), 0))
        full_low = tl.minimum(full_low, tl.min(tl.where(full, chunk, far), 0))
    full_high = chunks
    for at in range((full_low // 64) * 64, chunks, 64):
        chunk = at + tl.arange(0, 64)
        there = chunk < chunks
        full = there & (tl.load(summary + chunk * 4 + 2, mask=there, other=0) <= first_key)
        full = full & (tl.load(summary + chunk * 4 + 3, mask=there, other=0) >= last_key)
        ends = there & (chunk > full_low) & (full == 0)
        full_high = tl.minimum(full_high, tl.min(tl.where(ends, chunk, far), 0))
    low = tl.minimum(low, high) * CHUNK_ROWS
    high = high * CHUNK_ROWS
    full_low = tl.minimum(full_low * CHUNK_ROWS, high)
    full_high = tl.minimum(full_high * CHUNK_ROWS, high)
    return low, high, full_low, full_high


@triton.jit
def backward_kv_tile(
    dk, dv, k, v, first, to_self, key, real, key_position, coarse, fine, base_stamp, start, rows, head, heads,
    q_base, above_base, q_stride, above_stride, begin_data, end_data, scale_data,
    position_table, time_table, stamps, positions, alpha, reach, time_rows, seed, threshold, inverse_keep,
    MASKED: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    DROPOUT: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    row = first + tl.arange(0, BLOCK_M)
    valid = row < rows
    q = load_rows(q_base, row, q_stride, tl.arange(0, WIDTH), valid, MASKED, WIDTH, DIM)
    above = load_rows(above_base, row, above_stride, tl.arange(0, VALUE_WIDTH), valid, MASKED, VALUE_WIDTH, VALUE_DIM)
    scale = tl.load(scale_data + row, mask=valid, other=0.0) * ROOM
    score = tl.dot(k, tl.trans(q), input_precision=PRECISION) * alpha
    distance = key_position[:, None]
    elapsed = coarse[:, None]
    if HAS_POSITION:
        if HAS_POSITIONS:
            distance = tl.load(positions + row, mask=valid, other=0)[None, :] - distance
        else:
            distance = row[None, :] - distance
    if HAS_TIME:
        row_coarse, row_fine = split_stamp(tl.load(stamps + row, mask=valid, other=0), base_stamp)
        elapsed = (row_coarse[None, :] - coarse[:, None]) * 4096.0 + (row_fine[None, :] - fine[:, None])
    score = add_bias(
        score, distance, elapsed, position_table, time_table, head, heads, reach, time_rows, HAS_POSITION, HAS_TIME
    )
    gate = sigmoid(score, FAST)
    weight = score * gate * scale[None, :]
    slope = tl.dot(v, tl.trans(above), input_precision=PRECISION)
    slope *= gate * (1.0 + score * (1.0 - gate)) * scale[None, :]
    if MASKED:
        begin = tl.load(begin_data + row, mask=valid, other=0)
        end = tl.load(end_data + row, mask=valid, other=0)
        alone = (row < begin) | (row >= end)
        begin = tl.where(to_self, row, begin)
        end = tl.where(to_self, tl.where(alone, row + 1, row), end)
        visible = (key[:, None] >= begin[None, :]) & (key[:, None] < end[None, :])
        weight = tl.where(visible, weight, 0.0)
        slope = tl.where(visible, slope, 0.0)
    if DROPOUT:
        kept = dropout_scale((start + row).to(tl.int32)[None, :], key[:, None], head, seed, threshold, inverse_keep)
        weight *= kept
        slope *= kept
    dv = tl.dot(weight.to(above.dtype), above, dv, input_precision=PRECISION)
    dk = tl.dot(slope.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def backward_kv_kernel(
    q_data, k_data, v_data, above_data, dk_data, dv_data, offsets, begin_data, end_data, scale_data,
    unit_sample, unit_row, summary, chunk_first, position_table, time_table, stamps, positions,
    alpha, reach, time_rows, seed, threshold, inverse_keep, heads,
    q_token, q_head, k_token, k_head, v_token, v_head, above_token, above_head, dk_token, dk_head, dv_token, dv_head,
    bucket,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    DROPOUT: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, ROOM: tl.constexpr,
    UNIT_ROWS: tl.constexpr, CHUNK_ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dv = (weights * scale)^T above and dk = alpha * (ds * scale)^T q, for BLOCK_N keys of one sample and head."""
    pid = tl.program_id(0)
    head = tl.program_id(1)
    parts: tl.constexpr = UNIT_ROWS // BLOCK_N
    sample = tl.load(unit_sample + pid // parts)
    if sample < 0:
        return
    start = tl.load(offsets + sample).to(tl.int64)
    rows = (tl.load(offsets + sample + 1).to(tl.int64) - start).to(tl.int32)
    first_key = tl.load(unit_row + pid // parts) + (pid % parts) * BLOCK_N
    if first_key >= rows:
        return
    key = first_key + tl.arange(0, BLOCK_N)
    real = key < rows
    begin_data += start
    end_data += start
    scale_data += start
    stamps += start
    positions += start
    key_position = key
    base_stamp = key * 0
    coarse = key.to(tl.float32)
    fine = coarse
    if HAS_POSITIONS:
        key_position = tl.load(positions + key, mask=real, other=0)
    if HAS_TIME:
        base_stamp = tl.load(stamps + first_key)
        coarse, fine = split_stamp(tl.load(stamps + key, mask=real, other=0), base_stamp)
    dim = tl.arange(0, WIDTH)
    value_dim = tl.arange(0, VALUE_WIDTH)
    q_base = q_data + start * q_token + head * q_head
    above_base = above_data + start * above_token + head * above_head
    k_base = k_data + start * k_token + head * k_head
    v_base = v_data + start * v_token + head * v_head
    dk = tl.zeros([BLOCK_N, WIDTH], dtype=tl.float32)
    dv = tl.zeros([BLOCK_N, VALUE_WIDTH], dtype=tl.float32)
    k = load_rows(k_base, key, k_token, dim, real, True, WIDTH, DIM)
    v = load_rows(v_base, key, v_token, value_dim, real, True, VALUE_WIDTH, VALUE_DIM)

    low, high, full_low, full_high = walk_of_queries(
        summary + tl.load(chunk_first + sample).to(tl.int64) * 4,
        tl.cdiv(rows, CHUNK_ROWS),
        first_key,
        tl.minimum(first_key + BLOCK_N, rows),
        1 << 24,
        CHUNK_ROWS,
    )
    high = tl.minimum(high, rows)
    full_low = tl.minimum(full_low, high)
    full_high = tl.minimum(full_high, rows)
    # The last rows of the run that do not fill a block go with the masked ones.
    full_high = full_low + (tl.maximum(full_high - full_low, 0) // BLOCK_M) * BLOCK_M
    for first in range(full_low, full_high, BLOCK_M):
        dk, dv = backward_kv_tile(
            dk, dv, k, v, first, False, key, real, key_position, coarse, fine, base_stamp, start, rows, head, heads,
            q_base, above_base, q_token, above_token, begin_data, end_data, scale_data,
            position_table, time_table, stamps, positions, alpha, reach, time_rows, seed, threshold, inverse_keep,
            False, DIM, VALUE_DIM, WIDTH, VALUE_WIDTH, BLOCK_M, HAS_POSITION, HAS_TIME, HAS_POSITIONS, DROPOUT, FAST,
            PRECISION, ROOM,
        )  # fmt: skip
    left = tl.cdiv(full_low - low, BLOCK_M)
    right = tl.cdiv(tl.maximum(high - full_high, 0), BLOCK_M)
    own_tiles: tl.constexpr = (BLOCK_N + BLOCK_M - 1) // BLOCK_M
    for edge in range(left + right + own_tiles):
        to_self = edge >= left + right
        first = tl.where(edge < left, low + edge * BLOCK_M, full_high + (edge - left) * BLOCK_M)
        first = tl.where(to_self, first_key + (edge - left - right) * BLOCK_M, first)
        stop = tl.where(edge < left, full_low, high)
        stop = tl.where(to_self, tl.minimum(first_key + BLOCK_N, rows), stop)
        row = first + tl.arange(0, BLOCK_M)
        near = row < stop
        sees_from = tl.load(begin_data + row, mask=near, other=0)
        sees_to = tl.load(end_data + row, mask=near, other=0)
        seen = (sees_from < sees_to) & (sees_from < first_key + BLOCK_N) & (sees_to > first_key)
        alone = (row < sees_from) | (row >= sees_to)
        needed = near & ((seen & (to_self == 0)) | (alone & to_self))
        # Between a window and a full-attention tail lie rows that see nothing of this block.
        if tl.max(needed.to(tl.int32), 0) > 0:
            dk, dv = backward_kv_tile(
                dk, dv, k, v, first, to_self, key, real, key_position, coarse, fine, base_stamp, start, stop, head, heads,
                q_base, above_base, q_token, above_token, begin_data, end_data, scale_data,
                position_table, time_table, stamps, positions, alpha, reach, time_rows, seed, threshold, inverse_keep,
                True, DIM, VALUE_DIM, WIDTH, VALUE_WIDTH, BLOCK_M, HAS_POSITION, HAS_TIME, HAS_POSITIONS, DROPOUT, FAST,
                PRECISION, ROOM,
            )  # fmt: skip

    dk *= alpha / ROOM
    dv *= 1.0 / ROOM
    dk_at = dk_data + (start + key)[:, None] * dk_token + head * dk_head + dim[None, :]
    dv_at = dv_data + (start + key)[:, None] * dv_token + head * dv_head + value_dim[None, :]
    tl.store(dk_at, dk.to(dk_data.dtype.element_ty), mask=real[:, None] & (dim < DIM)[None, :])
    tl.store(dv_at, dv.to(dv_data.dtype.element_ty), mask=real[:, None] & (value_dim < VALUE_DIM)[None, :])


# --- configurations ---------------------------------------------------------------------------------------------------


def config(rows: int, keys: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"BLOCK_M": rows, "BLOCK_N": keys}, num_warps=warps, num_stages=stages)


FORWARD_CONFIGS = [
    config(*c)
    for c in ((128, 64, 8, 3), (128, 128, 8, 2), (64, 64, 4, 3), (64, 64, 8, 2), (16, 32, 4, 1), (32, 32, 4, 2))
]
BACKWARD_Q_CONFIGS = [
    config(*c)
    for c in (
        (128, 64, 8, 2),
        (128, 32, 8, 3),
        (64, 32, 8, 2),
        (64, 32, 4, 3),
        (32, 32, 8, 2),
        (16, 32, 4, 1),
        (32, 32, 4, 2),
    )
]
BACKWARD_KV_CONFIGS = [
    config(*c)
    for c in ((64, 128, 8, 2), (32, 128, 8, 3), (32, 64, 8, 3), (32, 32, 8, 2), (16, 16, 8, 1), (32, 32, 4, 2))
]
TUNED_FOR = ["bucket", "DIM", "VALUE_DIM", "HAS_POSITION", "HAS_TIME", "DROPOUT"]
"""What a choice of configuration depends on; `bucket` is the batch's own mean length, so short batches never inherit
the choice made for long ones. Triton adds the dtypes."""


class Plan(NamedTuple):
    """Units of work on the device, heaviest first; unused ones at the end have sample -1. All int32 but `pairs`."""

    q_sample: Tensor
    q_row: Tensor
    """[units]: the sample of each unit of `UNIT` queries, and its first query in the sample."""
    k_sample: Tensor
    k_row: Tensor
    """The same of keys."""
    summary: Tensor
    """[chunks, 4]: of `CHUNK` queries, min begin and max end over those that see anything, max begin, min end over
    all.
    """
    chunk_first: Tensor
    """[B]: the first chunk of each sample."""
    pairs: Tensor
    """int64 []: visible pairs of the batch, one head."""


def make_plan(problem: Problem, key_tokens: int) -> Plan:
    """Never reads anything back from the device: the number of units is bounded by what the host knows."""
    q_offsets, k_offsets = problem.q_offsets.long(), problem.k_offsets.long()
    begin, end = problem.begin.long(), problem.end.long()
    device, queries, batch = begin.device, len(begin), len(q_offsets) - 1
    seen = (end - begin).clamp(min=0)
    by_query = F.pad(seen.cumsum(0), (1, 0))
    q_sample, q_row = units(q_offsets, queries, by_query)

    sample = torch.searchsorted(q_offsets, torch.arange(queries, device=device), right=True) - 1
    first_key = k_offsets[sample.clamp(0, max(batch - 1, 0))] if batch else sample
    change = torch.zeros(key_tokens + 1, dtype=torch.int64, device=device)
    counts = (seen > 0).long()
    change.index_add_(0, (first_key + begin).clamp(0, key_tokens), counts)
    change.index_add_(0, (first_key + end).clamp(0, key_tokens), -counts)
    by_key = F.pad(change[:-1].cumsum(0).cumsum(0), (1, 0))
    k_sample, k_row = units(k_offsets, key_tokens, by_key)

    lengths = q_offsets.diff()
    chunks = (lengths + CHUNK - 1) // CHUNK
    upto = chunks.cumsum(0)
    index = torch.arange(-(-queries // CHUNK) + batch, device=device)
    of = torch.searchsorted(upto, index, right=True)
    there = of < batch
    of = of.clamp(max=max(batch - 1, 0))
    if batch:
        rows = ((index - (upto - chunks)[of]) * CHUNK)[:, None] + torch.arange(CHUNK, device=device)
        real = there[:, None] & (rows < lengths[of][:, None])
        at = (q_offsets[of][:, None] + rows).clamp(0, max(queries - 1, 0))
    far = torch.iinfo(torch.int32).max
    if batch and queries:
        b, e = begin[at], end[at]
        sees = real & (b < e)
        columns = [
            torch.where(sees, b, far).amin(1),
            torch.where(sees, e, 0).amax(1),
            torch.where(real, b, 0).amax(1),
            torch.where(real, e, far).amin(1),
        ]
        summary = torch.stack(columns, 1).to(torch.int32)
    else:
        summary = torch.zeros(1, 4, dtype=torch.int32, device=device)
    return Plan(
        q_sample, q_row, k_sample, k_row, summary.contiguous(), (upto - chunks).to(torch.int32), seen.sum() + queries
    )


def units(offsets: Tensor, tokens: int, work: Tensor) -> tuple[Tensor, Tensor]:
    """Units of `UNIT` tokens by descending work; `work` [tokens + 1] is its running sum over tokens."""
    batch = len(offsets) - 1
    lengths = offsets.diff()
    count = (lengths + UNIT - 1) // UNIT
    upto = count.cumsum(0)
    index = torch.arange(-(-tokens // UNIT) + batch, device=offsets.device)
    sample = torch.searchsorted(upto, index, right=True)
    if not batch:
        return sample.to(torch.int32), index.to(torch.int32)
    there = sample < batch
    sample = sample.clamp(max=batch - 1)
    row = (index - (upto - count)[sample]) * UNIT
    first = offsets[sample] + row
    last = torch.minimum(first + UNIT, offsets[sample + 1])
    cost = torch.where(there, work[last.clamp(0, tokens)] - work[first.clamp(0, tokens)], -1)
    order = torch.argsort(cost, descending=True, stable=True)
    return torch.where(there, sample, -1)[order].to(torch.int32), row[order].to(torch.int32)


# --- launches ---------------------------------------------------------------------------------------------------------


def fits(chosen: triton.Config, arguments: dict[str, Any], arch: int) -> bool:
    """Whether accumulators and score tiles stay in registers and tiles in shared memory.

    The limits, in float32 values a thread, are where the compiler began to spill (`benchmarks/kernels_compile.py`).
    float32 inputs have less room, because each of their products is three TF32 products.
    """
    rows, keys, threads = chosen.kwargs["BLOCK_M"], chosen.kwargs["BLOCK_N"], 32 * chosen.num_warps
    width, size = max(arguments["WIDTH"], arguments["VALUE_WIDTH"]), arguments["k_data"].element_size()
    kv, dq = "dk_data" in arguments, "dq_data" in arguments
    values = ((2 * keys if kv else rows) * width + rows * keys) / threads
    limit = (144 if width <= 128 and arch >= 90 else 80) if kv else 80 if arch < 90 else 100
    if arguments["DROPOUT"]:
        limit = min(limit, 100 if kv else 90 if dq else 96)
    if arguments["HAS_POSITION"] or arguments["HAS_TIME"]:
        # Two gathers a pair, through 64-bit addresses.
        limit = min(limit, 72 if kv else 24 if dq else 44)
    if (arguments["DROPOUT"] or (kv and arguments["HAS_TIME"])) and chosen.num_warps == 4:
        limit = min(limit, 80 if arguments["DROPOUT"] else 60)
    if size == 4:
        limit = 34 if kv else 24
    if arguments["DROPOUT"] and rows * keys / threads > (16 if kv else 32):
        return False
    if dq and size == 4 and rows == 32 and chosen.num_warps == 4:
        return False
    if (rows == 16) != (size == 4 and width >= 128):
        return False
    held, streamed = (2 * keys, 2 * rows) if kv else (rows, 2 * keys)
    shared = (held + streamed * chosen.num_stages) * width * size
    return values <= limit and shared <= 160 * 1024


forward_tuned = Tuned(forward_kernel, FORWARD_CONFIGS, TUNED_FOR, fits)
backward_q_tuned = Tuned(backward_q_kernel, BACKWARD_Q_CONFIGS, TUNED_FOR, fits, sums=["position_sum", "time_sum"])
backward_kv_tuned = Tuned(backward_kv_kernel, BACKWARD_KV_CONFIGS, TUNED_FOR, fits)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    problem: Problem,
    scale: Tensor,
    bias: RelativeBias,
    alpha: float,
    dropout: float,
    seed: int,
    chosen: triton.Config | None = None,
) -> Tensor:
    """[Tq, H, Dv]; arguments as in `kernels.attention.reference_attention`. `chosen` overrides the autotuner."""
    q, k, v = (unit_stride(x) for x in (q, k, v))
    out = v.new_empty(q.shape[0], q.shape[1], v.shape[2])
    if not len(q):
        return out
    plan = planned(problem, ("triton", len(k)), lambda: make_plan(problem, len(k)))
    where = [problem.q_offsets, problem.k_offsets]
    where += [problem.begin if problem.q_positions is None else problem.q_positions, problem.begin, problem.end, scale]
    forward_tuned(
        per_unit(len(plan.q_sample), q.shape[1], "BLOCK_M"),
        [
            *(q, k, v, out, *where, plan.q_sample, plan.q_row, *pointers(bias, scale)),
            *(*scalars(bias, alpha, dropout, seed, q), *strides(q, k, v, out), bucket_of(problem)),
        ],
        constants(q, v, bias, dropout) | {"SELF": problem.q_positions is None},
        chosen,
    )
    return out


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    problem: Problem,
    scale: Tensor,
    bias: RelativeBias,
    alpha: float,
    dropout: float,
    seed: int,
    chosen: triton.Config | None = None,
) -> list[Tensor]:
    """Gradients of q, k, v and of whichever tables `bias` has."""
    grad, q, k, v = (unit_stride(x) for x in (grad, q, k, v))
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    tables = [t for t in (bias.position_table, bias.time_table) if t is not None]
    if not len(q):
        return [dq, dk, dv, *[torch.zeros_like(t) for t in tables]]
    plan = planned(problem, ("triton", len(k)), lambda: make_plan(problem, len(k)))
    sums = [torch.zeros(t.shape, dtype=torch.int64, device=t.device) for t in tables]
    fixed_point = fixed_point_for(grad, v, scale, dropout, plan) if tables else scale
    position_sum = sums[0] if bias.position_table is not None else plan.q_row
    time_sum = sums[-1] if bias.time_table is not None else plan.q_row
    where = [problem.q_offsets, problem.begin, problem.end, scale]
    biases, numbers = pointers(bias, scale), scalars(bias, alpha, dropout, seed, q)
    flags = constants(q, v, bias, dropout)
    backward_q_tuned(
        per_unit(len(plan.q_sample), q.shape[1], "BLOCK_M"),
        [
            *(q, k, v, grad, dq, *where, plan.q_sample, plan.q_row, *biases, position_sum, time_sum, fixed_point),
            *(*numbers, *strides(q, k, v, grad, dq), bucket_of(problem)),
        ],
        flags | {"GRAD_POSITION": bias.position_table is not None, "GRAD_TIME": bias.time_table is not None},
        chosen,
    )
    backward_kv_tuned(
        per_unit(len(plan.k_sample), q.shape[1], "BLOCK_N"),
        [
            *(q, k, v, grad, dk, dv, *where, plan.k_sample, plan.k_row, plan.summary, plan.chunk_first, *biases),
            *(*numbers, *strides(q, k, v, grad, dk, dv), bucket_of(problem)),
        ],
        flags | {"ROOM": HEADROOM, "CHUNK_ROWS": CHUNK},
        chosen,
    )
    return [dq, dk, dv, *[(s.double() / fixed_point).to(t.dtype) for s, t in zip(sums, tables, strict=True)]]


def per_unit(units: int, heads: int, block: str) -> Callable[[dict[str, Any]], tuple[int, ...]]:
    return lambda chosen: (units * (UNIT // chosen[block]), heads)


def bucket_of(problem: Problem) -> int:
    """The batch's mean length, rounded up to a power of two."""
    return 1 << (len(problem.begin) // max(len(problem.q_offsets) - 1, 1)).bit_length()


def pointers(bias: RelativeBias, absent: Tensor) -> list[Tensor]:
    return [absent if t is None else t.contiguous() for t in bias]


def scalars(bias: RelativeBias, alpha: float, dropout: float, seed: int, q: Tensor) -> list[Any]:
    reach = 0 if bias.position_table is None else (bias.position_table.shape[0] - 1) // 2
    time_rows = 0 if bias.time_table is None else bias.time_table.shape[0]
    return [alpha, reach, time_rows, seed, round(dropout * 2**24), 1.0 / (1.0 - dropout), q.shape[1]]


def strides(*tensors: Tensor) -> list[int]:
    return [step for t in tensors for step in t.stride()[:2]]


def constants(q: Tensor, v: Tensor, bias: RelativeBias, dropout: float) -> dict[str, Any]:
    return {
        "DIM": q.shape[2],
        "VALUE_DIM": v.shape[2],
        "WIDTH": max(16, triton.next_power_of_2(q.shape[2])),
        "VALUE_WIDTH": max(16, triton.next_power_of_2(v.shape[2])),
        "HAS_POSITION": bias.position_table is not None,
        "HAS_TIME": bias.time_table is not None,
        "HAS_POSITIONS": bias.positions is not None,
        "DROPOUT": dropout > 0.0,
        "FAST": q.dtype == torch.bfloat16 and not INTERPRET,
        "PRECISION": "tf32" if q.is_cuda and torch.backends.cuda.matmul.allow_tf32 else "tf32x3",
        "UNIT_ROWS": UNIT,
    }


def unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def fixed_point_for(grad: Tensor, v: Tensor, scale: Tensor, dropout: float, plan: Plan) -> Tensor:
    """float32 []: a power of two F such that all gradients of the scores, times F, add up to less than 2^61.

    |ds| <= |grad| |v| max|silu'| / n / (1 - dropout), and there are `plan.pairs` of them. NaN where a gradient is not
    finite.
    """
    largest_grad = (grad.float().norm(dim=2).amax(1) * scale).amax()
    bound = largest_grad * v.float().norm(dim=2).amax() * (1.1 / (1.0 - dropout))
    exponent = (61.0 - torch.log2(bound.double() * plan.pairs)).floor().clamp(max=100.0)
    return torch.where(bound.isfinite(), torch.exp2(exponent), torch.nan).float()

"""Interval attention forward: a program per query block walks the keys that its rows see."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.attention_tiles import (
    add_bias,
    dropout_scale,
    load_rows,
    load_tile,
    own_tiles,
    silu,
    split_stamp,
    walk_of_keys,
)


@triton.jit
def forward_tile(
    acc, q, k_desc, v_desc, k_row, k_column, v_column, first, begin, end, own_position, coarse, fine, base_stamp, query, head, heads, k_base, v_base, k_stride, v_stride, keys,
    position_table, time_table, stamps, positions, alpha, reach, time_rows, seed, threshold, inverse_keep,
    MASKED: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    DROPOUT: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    key = first + tl.arange(0, BLOCK_N)
    real = key < keys
    k = load_tile(
        k_base, k_desc, k_row + first, k_column, key, k_stride, tl.arange(0, WIDTH), real, MASKED, TMA, WIDTH, DIM
    )
    half = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (0.5 * alpha)
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
    half = add_bias(
        half, distance, elapsed, position_table, time_table, head, heads, reach, time_rows, HAS_POSITION, HAS_TIME
    )
    if MASKED:
        half = tl.where((key[None, :] >= begin[:, None]) & (key[None, :] < end[:, None]), half, 0.0)
    weight = silu(half, FAST)
    if DROPOUT:
        weight *= dropout_scale(query[:, None], key[None, :], head, seed, threshold, inverse_keep)
    v = load_tile(
        v_base, v_desc, k_row + first, v_column, key, v_stride, tl.arange(0, VALUE_WIDTH), real,
        MASKED, TMA, VALUE_WIDTH, VALUE_DIM,
    )  # fmt: skip
    return tl.dot(weight.to(v.dtype), v, acc, input_precision=PRECISION)


@triton.jit
def forward_kernel(
    q_data, k_data, v_data, k_desc, v_desc, out_data, q_offsets, k_offsets, q_positions, begin_data, end_data, scale_data,
    unit_sample, unit_row, position_table, time_table, stamps, positions,
    alpha, reach, time_rows, seed, threshold, inverse_keep, heads,
    q_token, q_head, k_token, k_head, v_token, v_head, out_token, out_head, bucket,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    SELF: tl.constexpr, HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    DROPOUT: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, UNIT_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TMA: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """out = scale * (silu(alpha q k^T + bias) * visible) v, for BLOCK_M queries of one sample and head."""
    pid = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
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
    own = row
    if not SELF:
        own = tl.load(q_positions + q_start + row, mask=valid, other=0)
        own = tl.maximum(tl.minimum(own, keys - 1), 0)
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
    k_row = k_start.to(tl.int32)
    k_column = head * k_head
    v_column = head * v_head
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
            acc, q, k_desc, v_desc, k_row, k_column, v_column, first, begin, end, own_position, coarse, fine, base_stamp, query, head, heads, k_base, v_base, k_token, v_token,
            keys, position_table, time_table, stamps, positions, alpha, reach, time_rows, seed, threshold, inverse_keep,
            False, DIM, VALUE_DIM, WIDTH, VALUE_WIDTH, BLOCK_N, HAS_POSITION, HAS_TIME, HAS_POSITIONS, DROPOUT, FAST,
            PRECISION, TMA,
        )  # fmt: skip
    # Masked tiles hold more beside the accumulators: they are half as wide.
    EDGE: tl.constexpr = BLOCK_N // 2 if BLOCK_N > 32 else BLOCK_N
    left = (full_low - low) // EDGE
    right = tl.cdiv(tl.maximum(high - full_high, 0), EDGE)
    alone = valid & ((own < begin) | (own >= end))
    own_first, own_count = own_tiles(own, alone, EDGE)
    for edge in range(left + right + own_count):
        first = tl.where(edge < left, low + edge * EDGE, full_high + (edge - left) * EDGE)
        to_self = edge >= left + right
        first = tl.where(to_self, own_first + (edge - left - right) * EDGE, first)
        sees_from = tl.where(to_self, own, begin)
        sees_to = tl.where(to_self, tl.where(alone, own + 1, own), end)
        acc = forward_tile(
            acc, q, k_desc, v_desc, k_row, k_column, v_column, first, sees_from, sees_to, own_position, coarse, fine, base_stamp, query, head, heads, k_base, v_base, k_token, v_token,
            keys, position_table, time_table, stamps, positions, alpha, reach, time_rows, seed, threshold, inverse_keep,
            True, DIM, VALUE_DIM, WIDTH, VALUE_WIDTH, EDGE, HAS_POSITION, HAS_TIME, HAS_POSITIONS, DROPOUT, FAST,
            PRECISION, TMA,
        )  # fmt: skip

    acc *= tl.load(scale_data + q_start + row, mask=valid, other=0.0)[:, None]
    at = out_data + (q_start + row)[:, None] * out_token + head * out_head + value_dim[None, :]
    tl.store(at, acc.to(out_data.dtype.element_ty), mask=valid[:, None] & (value_dim < VALUE_DIM)[None, :])

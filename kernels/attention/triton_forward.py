"""Interval attention forward: a program per query block walks the keys that its rows see."""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.attention.triton_tiles import (
    block_place,
    clear_rows,
    dropout_scale,
    extent,
    half_scores,
    load_rows,
    load_tile,
    masked_tile,
    masked_tiles,
    sample_rows,
    silu,
    store_rows,
    unit_of,
    walk_of_keys,
)
from genrank.kernels.launch import VARYING


@triton.jit
def forward_tile(
    acc, q, first, keys, sees_from, sees_to, place, query, head, k_source, v_source, alpha, bias, drop,
    MASKED: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    DROPOUT: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Add what one tile of keys gives to the output of a query block."""
    key = first + tl.arange(0, BLOCK_N)
    real = key < keys
    k = load_tile(k_source, first, real, MASKED, TMA, BLOCK_N, WIDTH, DIM)
    half_score, _, _ = half_scores(
        q, k, place, key, real, head, alpha, bias, False, HAS_POSITION, HAS_TIME, HAS_POSITIONS, PRECISION
    )
    if MASKED:
        half_score = tl.where((key[None, :] >= sees_from[:, None]) & (key[None, :] < sees_to[:, None]), half_score, 0.0)
    weight = silu(half_score, FAST)
    if DROPOUT:
        weight *= dropout_scale(query[:, None], key[None, :], head, drop)
    v = load_tile(v_source, first, real, MASKED, TMA, BLOCK_N, VALUE_WIDTH, VALUE_DIM)
    return tl.dot(weight.to(v.dtype), v, acc, input_precision=PRECISION)


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    q_data, k_data, v_data, k_desc, v_desc, out_data, k_offsets, q_positions, begin_data, end_data, scale_data,
    units, position_table, time_table, stamps, positions,
    alpha, reach, time_rows, seed, threshold, inverse_keep, heads, tokens,
    q_token, q_head, k_token, k_head, v_token, v_head, out_token, out_head, bucket,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    SELF: tl.constexpr, HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    DROPOUT: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, UNIT_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TMA: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """out = scale * (silu(alpha q k^T + bias) * visible) v, for BLOCK_M queries of one sample and head."""
    first_row, queries, q_start, sample, head = unit_of(units, heads, UNIT_ROWS, BLOCK_M)
    if queries < 0:
        out = sample_rows(out_data, 0, out_token, head, out_head)
        clear_rows(out, first_row, out_token, tokens, BLOCK_M, VALUE_WIDTH, VALUE_DIM)
        return
    k_start = q_start
    keys = queries
    if not SELF:
        k_start, keys = extent(k_offsets, sample)
    if first_row >= queries:
        return
    row = first_row + tl.arange(0, BLOCK_M)
    valid = row < queries
    begin = tl.maximum(tl.load(begin_data + q_start + row, mask=valid, other=0), 0)
    end = tl.minimum(tl.load(end_data + q_start + row, mask=valid, other=0), keys)
    own = row
    if not SELF:
        own = tl.load(q_positions + q_start + row, mask=valid, other=0)
        own = tl.maximum(tl.minimum(own, keys - 1), 0)
    stamps += k_start
    positions += k_start
    place = block_place(own, valid, positions, stamps, HAS_POSITIONS, HAS_TIME)
    bias = (position_table, time_table, positions, stamps, reach, time_rows, heads)
    drop = (seed, threshold, inverse_keep)
    query = (q_start + row).to(tl.int32)
    data_row = k_start.to(tl.int32)
    k_source = (sample_rows(k_data, k_start, k_token, head, k_head), k_token, k_desc, data_row, head * k_head)
    v_source = (sample_rows(v_data, k_start, v_token, head, v_head), v_token, v_desc, data_row, head * v_head)
    acc = tl.zeros([BLOCK_M, VALUE_WIDTH], dtype=tl.float32)
    q_rows = sample_rows(q_data, q_start, q_token, head, q_head)
    q = load_rows(q_rows, first_row, q_token, valid, True, BLOCK_M, WIDTH, DIM)

    low, high, full_low, full_high = walk_of_keys(begin, end, valid, BLOCK_N)
    for first in range(full_low, full_high, BLOCK_N):
        acc = forward_tile(
            acc, q, first, keys, begin, end, place, query, head, k_source, v_source, alpha, bias, drop,
            False, DIM, VALUE_DIM, WIDTH, VALUE_WIDTH, BLOCK_N, HAS_POSITION, HAS_TIME, HAS_POSITIONS, DROPOUT, FAST,
            PRECISION, TMA,
        )  # fmt: skip
    # Masked tiles hold more beside the accumulators: they are half_score as wide.
    EDGE: tl.constexpr = BLOCK_N // 2 if BLOCK_N > 32 else BLOCK_N
    self_only = valid & ((own < begin) | (own >= end))
    tiles = masked_tiles(low, high, full_low, full_high, own, self_only, EDGE)
    for at in range(tiles[2]):
        first, sees_from, sees_to = masked_tile(at, tiles, low, full_high, own, self_only, begin, end, EDGE)
        acc = forward_tile(
            acc, q, first, keys, sees_from, sees_to, place, query, head, k_source, v_source, alpha, bias, drop,
            True, DIM, VALUE_DIM, WIDTH, VALUE_WIDTH, EDGE, HAS_POSITION, HAS_TIME, HAS_POSITIONS, DROPOUT, FAST,
            PRECISION, TMA,
        )  # fmt: skip

    acc *= tl.load(scale_data + q_start + row, mask=valid, other=0.0)[:, None]
    out = sample_rows(out_data, q_start, out_token, head, out_head)
    store_rows(out, first_row, out_token, valid, acc, BLOCK_M, VALUE_WIDTH, VALUE_DIM)

"""Interval attention backward, in passes of which each sum has one owner:

backward_q_kernel    a program per query block, over its keys: dQ and the sums of the bias tables
backward_kv_kernel   a program per key block, over the queries that see it: dK and dV
"""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.attention.triton_plan import COLUMNS
from genrank.kernels.attention.triton_tiles import (
    block_place,
    clear_rows,
    dropout_scale,
    half_scores,
    load_rows,
    load_tile,
    masked_tile,
    masked_tiles,
    position_row,
    sample_rows,
    silu_and_slope,
    store_rows,
    time_bucket,
    unit_of,
    walk_of_keys,
)
from genrank.kernels.launch import VARYING

# --- dQ and the bias tables -------------------------------------------------------------------------------------------


@triton.jit
def add_to_tables(
    slope, counted, distance, elapsed, head, bias, sums, GRAD_POSITION: tl.constexpr, GRAD_TIME: tl.constexpr
):
    """Add slope (the gradient of the scores) to the table rows of its pairs, as integers of `1 / fixed_point`."""
    _, _, _, _, reach, time_rows, heads = bias
    position_sum, time_sum, fixed_point = sums
    slope = tl.where(counted, slope, 0.0)
    if GRAD_POSITION:
        at = position_sum + position_row(distance, reach) * heads + head
        tl.atomic_add(at, (slope * fixed_point).to(tl.int64), mask=counted, sem="relaxed")
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
    acc, q, grad_out, scale, first, keys, sees_from, sees_to, valid, place, query, head, k_source, v_source, alpha, bias,
    sums, drop,
    MASKED: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    GRAD_POSITION: tl.constexpr, GRAD_TIME: tl.constexpr, DROPOUT: tl.constexpr, FAST: tl.constexpr,
    PRECISION: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Add what one tile of keys gives to dQ of a query block, and to the tables."""
    key = first + tl.arange(0, BLOCK_N)
    real = key < keys
    k = load_tile(k_source, first, real, MASKED, TMA, BLOCK_N, WIDTH, DIM)
    if k.dtype == tl.float32:  # Its products take operands from registers: asked for later, v would spill.
        v = load_tile(v_source, first, real, MASKED, TMA, BLOCK_N, VALUE_WIDTH, VALUE_DIM)
    half_score, distance, elapsed = half_scores(
        q, k, place, key, real, head, alpha, bias, False, HAS_POSITION, HAS_TIME, HAS_POSITIONS, PRECISION
    )
    visible = valid[:, None]
    if MASKED:
        visible = (key[None, :] >= sees_from[:, None]) & (key[None, :] < sees_to[:, None])
    _, slope = silu_and_slope(half_score, visible, MASKED, FAST)
    if k.dtype != tl.float32:
        v = load_tile(v_source, first, real, MASKED, TMA, BLOCK_N, VALUE_WIDTH, VALUE_DIM)
    product = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION)
    slope = tl.fma(product, slope, product)
    if DROPOUT:
        slope *= dropout_scale(query[:, None], key[None, :], head, drop)
    if GRAD_POSITION or GRAD_TIME:
        of_scores = slope * (0.5 * scale)[:, None]
        add_to_tables(of_scores, visible, distance, elapsed, head, bias, sums, GRAD_POSITION, GRAD_TIME)
    return tl.dot(slope.to(k.dtype), k, acc, input_precision=PRECISION)


@triton.jit(do_not_specialize=VARYING)
def backward_q_kernel(
    q_data, k_data, v_data, k_desc, v_desc, grad_out_data, dq_data, begin_data, end_data, scale_data,
    units, position_table, time_table, stamps, positions, position_sum, time_sum, fixed_point_data,
    alpha, reach, time_rows, seed, threshold, inverse_keep, heads, tokens,
    q_token, q_head, k_token, k_head, v_token, v_head, grad_out_token, grad_out_head, dq_token, dq_head, bucket,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    GRAD_POSITION: tl.constexpr, GRAD_TIME: tl.constexpr, DROPOUT: tl.constexpr, FAST: tl.constexpr,
    PRECISION: tl.constexpr, UNIT_ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TMA: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """dq = alpha * scale * (ds k), ds = (grad_out v^T) * silu'(scores) * visible; the sums of ds over the bias tables."""
    first_row, keys, start, _, head = unit_of(units, heads, UNIT_ROWS, BLOCK_M)
    if keys < 0:
        dq = sample_rows(dq_data, 0, dq_token, head, dq_head)
        clear_rows(dq, first_row, dq_token, tokens, BLOCK_M, WIDTH, DIM)
        return
    if first_row >= keys:
        return
    row = first_row + tl.arange(0, BLOCK_M)
    valid = row < keys
    begin = tl.maximum(tl.load(begin_data + start + row, mask=valid, other=0), 0)
    end = tl.minimum(tl.load(end_data + start + row, mask=valid, other=0), keys)
    scale = tl.load(scale_data + start + row, mask=valid, other=0.0)
    fixed_point = 1.0
    if GRAD_POSITION or GRAD_TIME:
        fixed_point = tl.load(fixed_point_data)
    stamps += start
    positions += start
    place = block_place(row, valid, positions, stamps, HAS_POSITIONS, HAS_TIME)
    bias = (position_table, time_table, positions, stamps, reach, time_rows, heads)
    sums = (position_sum, time_sum, fixed_point)
    drop = (seed, threshold, inverse_keep)
    query = (start + row).to(tl.int32)
    data_row = start.to(tl.int32)
    k_source = (sample_rows(k_data, start, k_token, head, k_head), k_token, k_desc, data_row, head * k_head)
    v_source = (sample_rows(v_data, start, v_token, head, v_head), v_token, v_desc, data_row, head * v_head)
    acc = tl.zeros([BLOCK_M, WIDTH], dtype=tl.float32)
    q_rows = sample_rows(q_data, start, q_token, head, q_head)
    q = load_rows(q_rows, first_row, q_token, valid, True, BLOCK_M, WIDTH, DIM)
    grad_out_rows = sample_rows(grad_out_data, start, grad_out_token, head, grad_out_head)
    grad_out = load_rows(grad_out_rows, first_row, grad_out_token, valid, True, BLOCK_M, VALUE_WIDTH, VALUE_DIM)

    low, high, full_low, full_high = walk_of_keys(begin, end, valid, BLOCK_N)
    for first in range(full_low, full_high, BLOCK_N):
        acc = backward_q_tile(
            acc, q, grad_out, scale, first, keys, begin, end, valid, place, query, head, k_source, v_source, alpha, bias,
            sums, drop, False, DIM, VALUE_DIM, WIDTH, VALUE_WIDTH, BLOCK_N, HAS_POSITION, HAS_TIME, HAS_POSITIONS,
            GRAD_POSITION, GRAD_TIME, DROPOUT, FAST, PRECISION, TMA,
        )  # fmt: skip
    EDGE: tl.constexpr = BLOCK_N // 2 if BLOCK_N > 32 else BLOCK_N
    self_only = valid & ((row < begin) | (row >= end))
    tiles = masked_tiles(low, high, full_low, full_high, row, self_only, EDGE)
    for at in range(tiles[2]):
        first, sees_from, sees_to = masked_tile(at, tiles, low, full_high, row, self_only, begin, end, EDGE)
        acc = backward_q_tile(
            acc, q, grad_out, scale, first, keys, sees_from, sees_to, valid, place, query, head, k_source, v_source, alpha,
            bias, sums, drop, True, DIM, VALUE_DIM, WIDTH, VALUE_WIDTH, EDGE, HAS_POSITION, HAS_TIME, HAS_POSITIONS,
            GRAD_POSITION, GRAD_TIME, DROPOUT, FAST, PRECISION, TMA,
        )  # fmt: skip

    acc *= (0.5 * alpha) * scale[:, None]
    dq = sample_rows(dq_data, start, dq_token, head, dq_head)
    store_rows(dq, first_row, dq_token, valid, acc, BLOCK_M, WIDTH, DIM)


# --- dK and dV --------------------------------------------------------------------------------------------------------


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
        need = there & (tl.load(summary + chunk * COLUMNS, mask=there, other=0) < last_key)
        need = need & (tl.load(summary + chunk * COLUMNS + 1, mask=there, other=0) > first_key)
        full = need & (tl.load(summary + chunk * COLUMNS + 2, mask=there, other=0) <= first_key)
        full = full & (tl.load(summary + chunk * COLUMNS + 3, mask=there, other=0) >= last_key)
        low = tl.minimum(low, tl.min(tl.where(need, chunk, far), 0))
        high = tl.maximum(high, tl.max(tl.where(need, chunk + 1, 0), 0))
        full_low = tl.minimum(full_low, tl.min(tl.where(full, chunk, far), 0))
    full_high = chunks
    for at in range((full_low // 64) * 64, chunks, 64):
        chunk = at + tl.arange(0, 64)
        there = chunk < chunks
        full = there & (tl.load(summary + chunk * COLUMNS + 2, mask=there, other=0) <= first_key)
        full = full & (tl.load(summary + chunk * COLUMNS + 3, mask=there, other=0) >= last_key)
        ends = there & (chunk > full_low) & (full == 0)
        full_high = tl.minimum(full_high, tl.min(tl.where(ends, chunk, far), 0))
    low = tl.minimum(low, high) * CHUNK_ROWS
    high = high * CHUNK_ROWS
    full_low = tl.minimum(full_low * CHUNK_ROWS, high)
    full_high = tl.minimum(full_high * CHUNK_ROWS, high)
    return low, high, full_low, full_high


@triton.jit
def backward_kv_tile(
    dk, dv, k, v, first, rows, to_self, key, place, start, head, q_source, grad_out_source, begin_data, end_data, scale_data,
    alpha, bias, drop,
    MASKED: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    DROPOUT: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, HEADROOM: tl.constexpr,
    WANT_K: tl.constexpr, WANT_V: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Add what one tile of queries gives to dK and dV of a key block."""
    row = first + tl.arange(0, BLOCK_M)
    valid = row < rows
    q = load_tile(q_source, first, valid, MASKED, TMA, BLOCK_M, WIDTH, DIM)
    grad_out = load_tile(grad_out_source, first, valid, MASKED, TMA, BLOCK_M, VALUE_WIDTH, VALUE_DIM)
    half_score, _, _ = half_scores(
        k, q, place, row, valid, head, alpha, bias, True, HAS_POSITION, HAS_TIME, HAS_POSITIONS, PRECISION
    )
    visible = False
    if MASKED:
        begin = tl.load(begin_data + row, mask=valid, other=0)
        end = tl.load(end_data + row, mask=valid, other=0)
        self_only = (row < begin) | (row >= end)
        begin = tl.where(to_self, row, begin)
        end = tl.where(to_self, tl.where(self_only, row + 1, row), end)
        visible = (key[:, None] >= begin[None, :]) & (key[:, None] < end[None, :])
    weight, slope = silu_and_slope(half_score, visible, MASKED, FAST)
    if HEADROOM != 0.0:
        scale = tl.load(scale_data + row, mask=valid, other=0.0) * HEADROOM
    if DROPOUT:
        kept = dropout_scale((start + row).to(tl.int32)[None, :], key[:, None], head, drop)
    if WANT_V:
        if HEADROOM != 0.0:
            weight *= scale[None, :]
        if DROPOUT:
            weight *= kept
        weight = weight.to(grad_out.dtype)
    if WANT_K:
        product = tl.dot(v, tl.trans(grad_out), input_precision=PRECISION)
        slope = tl.fma(product, slope, product)
        if HEADROOM != 0.0:
            slope *= scale[None, :]
        if DROPOUT:
            slope *= kept
    if WANT_V:
        dv = tl.dot(weight, grad_out, dv, input_precision=PRECISION)
    if WANT_K:
        dk = tl.dot(slope.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=VARYING)
def backward_kv_kernel(
    q_data, k_data, v_data, q_desc, grad_out_desc, grad_out_data, dk_data, dv_data, begin_data, end_data, scale_data,
    units, summary, position_table, time_table, stamps, positions,
    alpha, reach, time_rows, seed, threshold, inverse_keep, heads, tokens,
    q_token, q_head, k_token, k_head, v_token, v_head, grad_out_token, grad_out_head, dk_token, dk_head, dv_token, dv_head,
    bucket,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    DROPOUT: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, HEADROOM: tl.constexpr,
    WANT_K: tl.constexpr, WANT_V: tl.constexpr, UNIT_ROWS: tl.constexpr, CHUNK_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TMA: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """dv = (weights * scale)^T grad_out and dk = alpha * (ds * scale)^T q, for BLOCK_N keys of one sample and head."""
    first_key, rows, start, first_chunk, head = unit_of(units, heads, UNIT_ROWS, BLOCK_N)
    if rows < 0:
        if WANT_K:
            rows_k = sample_rows(dk_data, 0, dk_token, head, dk_head)
            clear_rows(rows_k, first_key, dk_token, tokens, BLOCK_N, WIDTH, DIM)
        if WANT_V:
            rows_v = sample_rows(dv_data, 0, dv_token, head, dv_head)
            clear_rows(rows_v, first_key, dv_token, tokens, BLOCK_N, VALUE_WIDTH, VALUE_DIM)
        return
    if first_key >= rows:
        return
    key = first_key + tl.arange(0, BLOCK_N)
    real = key < rows
    begin_data += start
    end_data += start
    scale_data += start
    stamps += start
    positions += start
    place = block_place(key, real, positions, stamps, HAS_POSITIONS, HAS_TIME)
    bias = (position_table, time_table, positions, stamps, reach, time_rows, heads)
    drop = (seed, threshold, inverse_keep)
    data_row = start.to(tl.int32)
    q_source = (sample_rows(q_data, start, q_token, head, q_head), q_token, q_desc, data_row, head * q_head)
    grad_out_rows = sample_rows(grad_out_data, start, grad_out_token, head, grad_out_head)
    grad_out_source = (grad_out_rows, grad_out_token, grad_out_desc, data_row, head * grad_out_head)
    k_rows = sample_rows(k_data, start, k_token, head, k_head)
    k = load_rows(k_rows, first_key, k_token, real, True, BLOCK_N, WIDTH, DIM)
    dk = 0.0
    dv = 0.0
    v = k
    if WANT_K:
        dk = tl.zeros([BLOCK_N, WIDTH], dtype=tl.float32)
        v_rows = sample_rows(v_data, start, v_token, head, v_head)
        v = load_rows(v_rows, first_key, v_token, real, True, BLOCK_N, VALUE_WIDTH, VALUE_DIM)
    if WANT_V:
        dv = tl.zeros([BLOCK_N, VALUE_WIDTH], dtype=tl.float32)

    summary += first_chunk.to(tl.int64) * COLUMNS
    chunks = tl.cdiv(rows, CHUNK_ROWS)
    low, high, full_low, full_high = walk_of_queries(
        summary, chunks, first_key, tl.minimum(first_key + BLOCK_N, rows), 1 << 24, CHUNK_ROWS
    )
    high = tl.minimum(high, rows)
    full_low = tl.minimum(full_low, high)
    full_high = tl.minimum(full_high, rows)
    # The last rows of the run that do not fill a block go with the masked ones.
    full_high = full_low + (tl.maximum(full_high - full_low, 0) // BLOCK_M) * BLOCK_M
    for first in range(full_low, full_high, BLOCK_M):
        dk, dv = backward_kv_tile(
            dk, dv, k, v, first, rows, False, key, place, start, head, q_source, grad_out_source, begin_data, end_data,
            scale_data, alpha, bias, drop,
            False, DIM, VALUE_DIM, WIDTH, VALUE_WIDTH, BLOCK_M, HAS_POSITION, HAS_TIME, HAS_POSITIONS, DROPOUT, FAST,
            PRECISION, HEADROOM, WANT_K, WANT_V, TMA,
        )  # fmt: skip
    # Masked tiles hold begin and end of each row beside the accumulators: 32 rows at a time fit the registers.
    EDGE: tl.constexpr = min(BLOCK_M, 32)
    left = tl.cdiv(full_low - low, EDGE)
    right = tl.cdiv(tl.maximum(high - full_high, 0), EDGE)
    OWN_CHUNKS: tl.constexpr = (BLOCK_N + CHUNK_ROWS - 1) // CHUNK_ROWS
    own_chunk = first_key // CHUNK_ROWS + tl.arange(0, OWN_CHUNKS)
    any_self_only = tl.max(tl.load(summary + own_chunk * COLUMNS + 4, mask=own_chunk < chunks, other=0), 0)
    own_count = tl.where(any_self_only > 0, (BLOCK_N + EDGE - 1) // EDGE, 0)
    for edge in range(left + right + own_count):
        to_self = edge >= left + right
        first = tl.where(edge < left, low + edge * EDGE, full_high + (edge - left) * EDGE)
        first = tl.where(to_self, first_key + (edge - left - right) * EDGE, first)
        stop = tl.where(edge < left, full_low, high)
        stop = tl.where(to_self, tl.minimum(first_key + BLOCK_N, rows), stop)
        row = first + tl.arange(0, EDGE)
        near = row < stop
        sees_from = tl.load(begin_data + row, mask=near, other=0)
        sees_to = tl.load(end_data + row, mask=near, other=0)
        seen = (sees_from < sees_to) & (sees_from < first_key + BLOCK_N) & (sees_to > first_key)
        self_only = (row < sees_from) | (row >= sees_to)
        needed = near & ((seen & (to_self == 0)) | (self_only & to_self))
        # Between a window and a full-attention tail lie rows that see nothing of this block.
        if tl.max(needed.to(tl.int32), 0) > 0:
            dk, dv = backward_kv_tile(
                dk, dv, k, v, first, stop, to_self, key, place, start, head, q_source, grad_out_source, begin_data, end_data,
                scale_data, alpha, bias, drop,
                True, DIM, VALUE_DIM, WIDTH, VALUE_WIDTH, EDGE, HAS_POSITION, HAS_TIME, HAS_POSITIONS, DROPOUT, FAST,
                PRECISION, HEADROOM, WANT_K, WANT_V, TMA,
            )  # fmt: skip

    # One divisor for the whole sample multiplies its sums once; one of each query's own has multiplied every pair.
    share = 1.0 / HEADROOM if HEADROOM != 0.0 else tl.load(scale_data)
    if WANT_K:
        dk_rows = sample_rows(dk_data, start, dk_token, head, dk_head)
        store_rows(dk_rows, first_key, dk_token, real, dk * (0.5 * alpha * share), BLOCK_N, WIDTH, DIM)
    if WANT_V:
        dv_rows = sample_rows(dv_data, start, dv_token, head, dv_head)
        store_rows(dv_rows, first_key, dv_token, real, dv * share, BLOCK_N, VALUE_WIDTH, VALUE_DIM)

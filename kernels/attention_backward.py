"""Interval attention backward, in passes of which each sum has one owner:

backward_q_kernel    a program per query block, over its keys: dQ and the sums of the bias tables
backward_kv_kernel   a program per key block, over the queries that see it: dK and dV
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.attention_tiles import (
    add_bias,
    dropout_scale,
    load_rows,
    load_tile,
    own_tiles,
    silu_and_slope,
    split_stamp,
    time_bucket,
    walk_of_keys,
)

# --- dQ and the bias tables -------------------------------------------------------------------------------------------


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
    acc, q, above, k_desc, v_desc, data_row, k_column, v_column, scale, first, begin, end, valid, own_position, coarse, fine, base_stamp, query, head, heads,
    k_base, v_base, k_stride, v_stride, keys, position_table, time_table, stamps, positions, position_sum, time_sum,
    fixed_point, alpha, reach, time_rows, seed, threshold, inverse_keep,
    MASKED: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    GRAD_POSITION: tl.constexpr, GRAD_TIME: tl.constexpr, DROPOUT: tl.constexpr, FAST: tl.constexpr,
    PRECISION: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    key = first + tl.arange(0, BLOCK_N)
    real = key < keys
    k = load_tile(
        k_base, k_desc, data_row + first, k_column, key, k_stride, tl.arange(0, WIDTH), real, MASKED, TMA, WIDTH, DIM
    )
    v = load_tile(
        v_base, v_desc, data_row + first, v_column, key, v_stride, tl.arange(0, VALUE_WIDTH), real,
        MASKED, TMA, VALUE_WIDTH, VALUE_DIM,
    )  # fmt: skip
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
    visible = valid[:, None]
    if MASKED:
        visible = (key[None, :] >= begin[:, None]) & (key[None, :] < end[:, None])
    _, slope = silu_and_slope(half, visible, MASKED, FAST)
    product = tl.dot(above, tl.trans(v), input_precision=PRECISION)
    slope = tl.fma(product, slope, product)
    if DROPOUT:
        slope *= dropout_scale(query[:, None], key[None, :], head, seed, threshold, inverse_keep)
    if GRAD_POSITION or GRAD_TIME:
        add_to_tables(
            slope * (0.5 * scale)[:, None], visible, distance, elapsed, position_sum, time_sum, head, heads, reach, time_rows,
            fixed_point, GRAD_POSITION, GRAD_TIME,
        )  # fmt: skip
    return tl.dot(slope.to(k.dtype), k, acc, input_precision=PRECISION)


@triton.jit
def backward_q_kernel(
    q_data, k_data, v_data, k_desc, v_desc, above_data, dq_data, offsets, begin_data, end_data, scale_data,
    unit_sample, unit_row, position_table, time_table, stamps, positions, position_sum, time_sum, fixed_point_data,
    alpha, reach, time_rows, seed, threshold, inverse_keep, heads,
    q_token, q_head, k_token, k_head, v_token, v_head, above_token, above_head, dq_token, dq_head, bucket,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    GRAD_POSITION: tl.constexpr, GRAD_TIME: tl.constexpr, DROPOUT: tl.constexpr, FAST: tl.constexpr,
    PRECISION: tl.constexpr, UNIT_ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TMA: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """dq = alpha * scale * (ds k), ds = (above v^T) * silu'(scores) * visible, and the sums of ds over the bias
    tables.
    """
    pid = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
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
    data_row = start.to(tl.int32)
    k_column = head * k_head
    v_column = head * v_head
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
            acc, q, above, k_desc, v_desc, data_row, k_column, v_column, scale, first, begin, end, valid, own_position, coarse, fine, base_stamp, query, head, heads,
            k_base, v_base, k_token, v_token, keys, position_table, time_table, stamps, positions, position_sum,
            time_sum, fixed_point, alpha, reach, time_rows, seed, threshold, inverse_keep,
            False, DIM, VALUE_DIM, WIDTH, VALUE_WIDTH, BLOCK_N, HAS_POSITION, HAS_TIME, HAS_POSITIONS,
            GRAD_POSITION, GRAD_TIME, DROPOUT, FAST, PRECISION, TMA,
        )  # fmt: skip
    # Masked tiles hold more beside the accumulators: they are half as wide.
    EDGE: tl.constexpr = BLOCK_N // 2 if BLOCK_N > 32 else BLOCK_N
    left = (full_low - low) // EDGE
    right = tl.cdiv(tl.maximum(high - full_high, 0), EDGE)
    alone = valid & ((row < begin) | (row >= end))
    own_first, own_count = own_tiles(row, alone, EDGE)
    for edge in range(left + right + own_count):
        first = tl.where(edge < left, low + edge * EDGE, full_high + (edge - left) * EDGE)
        to_self = edge >= left + right
        first = tl.where(to_self, own_first + (edge - left - right) * EDGE, first)
        sees_from = tl.where(to_self, row, begin)
        sees_to = tl.where(to_self, tl.where(alone, row + 1, row), end)
        acc = backward_q_tile(
            acc, q, above, k_desc, v_desc, data_row, k_column, v_column, scale, first, sees_from, sees_to, valid, own_position, coarse, fine, base_stamp, query, head, heads,
            k_base, v_base, k_token, v_token, keys, position_table, time_table, stamps, positions, position_sum,
            time_sum, fixed_point, alpha, reach, time_rows, seed, threshold, inverse_keep,
            True, DIM, VALUE_DIM, WIDTH, VALUE_WIDTH, EDGE, HAS_POSITION, HAS_TIME, HAS_POSITIONS,
            GRAD_POSITION, GRAD_TIME, DROPOUT, FAST, PRECISION, TMA,
        )  # fmt: skip

    acc *= (0.5 * alpha) * scale[:, None]
    at = dq_data + (start + row)[:, None] * dq_token + head * dq_head + dim[None, :]
    tl.store(at, acc.to(dq_data.dtype.element_ty), mask=valid[:, None] & (dim < DIM)[None, :])


# --- dK and dV --------------------------------------------------------------------------------------------------------

COLUMNS = tl.constexpr(5)
"""Of `Plan.summary`."""


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
    dk, dv, k, v, q_desc, above_desc, data_row, q_column, above_column, first, to_self, key, real, key_position, coarse, fine, base_stamp, start, rows, head, heads,
    q_base, above_base, q_stride, above_stride, begin_data, end_data, scale_data,
    position_table, time_table, stamps, positions, alpha, reach, time_rows, seed, threshold, inverse_keep,
    MASKED: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    DROPOUT: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, ROOM: tl.constexpr,
    WANT_K: tl.constexpr, WANT_V: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    row = first + tl.arange(0, BLOCK_M)
    valid = row < rows
    q = load_tile(
        q_base, q_desc, data_row + first, q_column, row, q_stride, tl.arange(0, WIDTH), valid, MASKED, TMA, WIDTH, DIM
    )
    above = load_tile(
        above_base, above_desc, data_row + first, above_column, row, above_stride, tl.arange(0, VALUE_WIDTH), valid,
        MASKED, TMA, VALUE_WIDTH, VALUE_DIM,
    )  # fmt: skip
    half = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (0.5 * alpha)
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
    half = add_bias(
        half, distance, elapsed, position_table, time_table, head, heads, reach, time_rows, HAS_POSITION, HAS_TIME
    )
    visible = False
    if MASKED:
        begin = tl.load(begin_data + row, mask=valid, other=0)
        end = tl.load(end_data + row, mask=valid, other=0)
        alone = (row < begin) | (row >= end)
        begin = tl.where(to_self, row, begin)
        end = tl.where(to_self, tl.where(alone, row + 1, row), end)
        visible = (key[:, None] >= begin[None, :]) & (key[:, None] < end[None, :])
    weight, slope = silu_and_slope(half, visible, MASKED, FAST)
    if ROOM != 0.0:
        scale = tl.load(scale_data + row, mask=valid, other=0.0) * ROOM
    if DROPOUT:
        kept = dropout_scale((start + row).to(tl.int32)[None, :], key[:, None], head, seed, threshold, inverse_keep)
    if WANT_V:
        if ROOM != 0.0:
            weight *= scale[None, :]
        if DROPOUT:
            weight *= kept
        weight = weight.to(above.dtype)
    if WANT_K:
        product = tl.dot(v, tl.trans(above), input_precision=PRECISION)
        slope = tl.fma(product, slope, product)
        if ROOM != 0.0:
            slope *= scale[None, :]
        if DROPOUT:
            slope *= kept
    if WANT_V:
        dv = tl.dot(weight, above, dv, input_precision=PRECISION)
    if WANT_K:
        dk = tl.dot(slope.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def backward_kv_kernel(
    q_data, k_data, v_data, q_desc, above_desc, above_data, dk_data, dv_data, offsets, begin_data, end_data, scale_data,
    unit_sample, unit_row, summary, chunk_first, position_table, time_table, stamps, positions,
    alpha, reach, time_rows, seed, threshold, inverse_keep, heads,
    q_token, q_head, k_token, k_head, v_token, v_head, above_token, above_head, dk_token, dk_head, dv_token, dv_head,
    bucket,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    DROPOUT: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, ROOM: tl.constexpr,
    WANT_K: tl.constexpr, WANT_V: tl.constexpr, UNIT_ROWS: tl.constexpr, CHUNK_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TMA: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """dv = (weights * scale)^T above and dk = alpha * (ds * scale)^T q, for BLOCK_N keys of one sample and head."""
    pid = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
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
    data_row = start.to(tl.int32)
    q_column = head * q_head
    above_column = head * above_head
    k = load_rows(k_base, key, k_token, dim, real, True, WIDTH, DIM)
    dk = 0.0
    dv = 0.0
    v = k
    if WANT_K:
        dk = tl.zeros([BLOCK_N, WIDTH], dtype=tl.float32)
        v = load_rows(v_base, key, v_token, value_dim, real, True, VALUE_WIDTH, VALUE_DIM)
    if WANT_V:
        dv = tl.zeros([BLOCK_N, VALUE_WIDTH], dtype=tl.float32)

    summary += tl.load(chunk_first + sample).to(tl.int64) * COLUMNS
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
            dk, dv, k, v, q_desc, above_desc, data_row, q_column, above_column, first, False, key, real, key_position, coarse, fine, base_stamp, start, rows, head, heads,
            q_base, above_base, q_token, above_token, begin_data, end_data, scale_data,
            position_table, time_table, stamps, positions, alpha, reach, time_rows, seed, threshold, inverse_keep,
            False, DIM, VALUE_DIM, WIDTH, VALUE_WIDTH, BLOCK_M, HAS_POSITION, HAS_TIME, HAS_POSITIONS, DROPOUT, FAST,
            PRECISION, ROOM, WANT_K, WANT_V, TMA,
        )  # fmt: skip
    # Masked tiles hold begin and end of each row beside the accumulators: 32 rows at a time fit the registers.
    EDGE: tl.constexpr = min(BLOCK_M, 32)
    left = tl.cdiv(full_low - low, EDGE)
    right = tl.cdiv(tl.maximum(high - full_high, 0), EDGE)
    OWN_CHUNKS: tl.constexpr = (BLOCK_N + CHUNK_ROWS - 1) // CHUNK_ROWS
    own_chunk = first_key // CHUNK_ROWS + tl.arange(0, OWN_CHUNKS)
    lonely = tl.max(tl.load(summary + own_chunk * COLUMNS + 4, mask=own_chunk < chunks, other=0), 0)
    own_count = tl.where(lonely > 0, (BLOCK_N + EDGE - 1) // EDGE, 0)
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
        alone = (row < sees_from) | (row >= sees_to)
        needed = near & ((seen & (to_self == 0)) | (alone & to_self))
        # Between a window and a full-attention tail lie rows that see nothing of this block.
        if tl.max(needed.to(tl.int32), 0) > 0:
            dk, dv = backward_kv_tile(
                dk, dv, k, v, q_desc, above_desc, data_row, q_column, above_column, first, to_self, key, real, key_position, coarse, fine, base_stamp, start, stop, head, heads,
                q_base, above_base, q_token, above_token, begin_data, end_data, scale_data,
                position_table, time_table, stamps, positions, alpha, reach, time_rows, seed, threshold, inverse_keep,
                True, DIM, VALUE_DIM, WIDTH, VALUE_WIDTH, EDGE, HAS_POSITION, HAS_TIME, HAS_POSITIONS, DROPOUT, FAST,
                PRECISION, ROOM, WANT_K, WANT_V, TMA,
            )  # fmt: skip

    # One divisor for the whole sample multiplies its sums once; one of each query's own has multiplied every pair.
    share = 1.0 / ROOM if ROOM != 0.0 else tl.load(scale_data)
    if WANT_K:
        at = dk_data + (start + key)[:, None] * dk_token + head * dk_head + dim[None, :]
        dk *= 0.5 * alpha * share
        tl.store(at, dk.to(dk_data.dtype.element_ty), mask=real[:, None] & (dim < DIM)[None, :])
    if WANT_V:
        at = dv_data + (start + key)[:, None] * dv_token + head * dv_head + value_dim[None, :]
        dv *= share
        tl.store(at, dv.to(dv_data.dtype.element_ty), mask=real[:, None] & (value_dim < VALUE_DIM)[None, :])

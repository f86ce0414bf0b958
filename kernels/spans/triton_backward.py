"""Span attention backward, in passes of which each sum has one owner:

span_backward_q_kernel    a program per query block, over its keys: dQ and the sums of the bias tables
span_backward_kv_kernel   a program per key block, over the query chunks that see any of it: dK and dV
"""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.attention.triton_backward import add_to_tables
from genrank.kernels.attention.triton_tiles import (
    block_place,
    clear_rows,
    extent,
    half_scores,
    load_rows,
    sample_rows,
    store_rows,
    unit_of,
)
from genrank.kernels.launch import VARYING
from genrank.kernels.spans.triton_forward import walk
from genrank.kernels.spans.triton_tiles import LOG2E, weights_and_slopes


@triton.jit(do_not_specialize=VARYING)
def span_backward_q_kernel(
    q_data, k_data, v_data, grad_out_data, dq_data, lse_data, delta_data, k_offsets, begin_data, end_data, scale_data, units,
    position_table, time_table, q_positions, k_positions, q_times, k_times, position_sum, time_sum, fixed_point_data,
    alpha, reach, time_rows, heads, tokens,
    q_token, q_head, k_token, k_head, v_token, v_head, grad_out_token, grad_out_head, dq_token, dq_head, bucket,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, SPANS: tl.constexpr, SOFTMAX: tl.constexpr,
    FAST: tl.constexpr, PRECISION: tl.constexpr, UNIT_ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dq = alpha ds k, ds the gradient of the scores; the sums of ds over the bias tables."""
    first_row, queries, q_start, sample, head = unit_of(units, heads, UNIT_ROWS, BLOCK_M)
    if queries < 0:
        dq = sample_rows(dq_data, 0, dq_token, head, dq_head)
        clear_rows(dq, first_row, dq_token, tokens, BLOCK_M, WIDTH, DIM)
        return
    if first_row >= queries:
        return
    k_start, keys = extent(k_offsets, sample)
    row = first_row + tl.arange(0, BLOCK_M)
    valid = row < queries
    at = q_start + row
    place = block_place(row, valid, q_positions + q_start, q_times + q_start, HAS_POSITION, HAS_TIME)
    bias = (position_table, time_table, k_positions + k_start, k_times + k_start, reach, time_rows, heads)
    fixed_point = 1.0
    if HAS_POSITION or HAS_TIME:
        fixed_point = tl.load(fixed_point_data)
    sums = (position_sum, time_sum, fixed_point)
    k_rows = sample_rows(k_data, k_start, k_token, head, k_head)
    v_rows = sample_rows(v_data, k_start, v_token, head, v_head)
    q_rows = sample_rows(q_data, q_start, q_token, head, q_head)
    q = load_rows(q_rows, first_row, q_token, valid, True, BLOCK_M, WIDTH, DIM)
    grad_rows = sample_rows(grad_out_data, q_start, grad_out_token, head, grad_out_head)
    grad_out = load_rows(grad_rows, first_row, grad_out_token, valid, True, BLOCK_M, VALUE_WIDTH, VALUE_DIM)
    lse = tl.zeros([BLOCK_M], dtype=tl.float32)
    delta = lse
    scale = lse + 1.0
    if SOFTMAX:
        lse = tl.load(lse_data + at * heads + head, mask=valid, other=0.0) * LOG2E
        delta = tl.load(delta_data + at * heads + head, mask=valid, other=0.0)
    else:
        scale = tl.load(scale_data + at, mask=valid, other=0.0)
    acc = tl.zeros([BLOCK_M, WIDTH], dtype=tl.float32)

    for span in range(SPANS):
        bound = span * tokens.to(tl.int64) + at
        begin = tl.maximum(tl.load(begin_data + bound, mask=valid, other=0), 0)
        end = tl.minimum(tl.load(end_data + bound, mask=valid, other=0), keys)
        low, high = walk(begin, end, valid, BLOCK_N)
        for first in range(low, high, BLOCK_N):
            key = first + tl.arange(0, BLOCK_N)
            real = key < keys
            k = load_rows(k_rows, first, k_token, real, True, BLOCK_N, WIDTH, DIM)
            half_score, distance, elapsed = half_scores(
                q, k, place, key, real, head, alpha, bias, False, HAS_POSITION, HAS_TIME, HAS_POSITION, PRECISION
            )
            v = load_rows(v_rows, first, v_token, real, True, BLOCK_N, VALUE_WIDTH, VALUE_DIM)
            product = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION)
            visible = (key[None, :] >= begin[:, None]) & (key[None, :] < end[:, None])
            _, slope = weights_and_slopes(half_score, product, visible, lse[:, None], delta[:, None], SOFTMAX, FAST)
            if HAS_POSITION or HAS_TIME:
                of_scores = slope * (0.5 * scale)[:, None]
                add_to_tables(of_scores, visible, distance, elapsed, head, bias, sums, HAS_POSITION, HAS_TIME)
            acc = tl.dot(slope.to(k.dtype), k, acc, input_precision=PRECISION)

    dq = sample_rows(dq_data, q_start, dq_token, head, dq_head)
    store_rows(dq, first_row, dq_token, valid, acc * ((0.5 * alpha) * scale)[:, None], BLOCK_M, WIDTH, DIM)


@triton.jit(do_not_specialize=VARYING)
def span_backward_kv_kernel(
    q_data, k_data, v_data, grad_out_data, dk_data, dv_data, lse_data, delta_data, q_offsets, begin_data, end_data, scale_data,
    units, summary, chunk_starts, position_table, time_table, q_positions, k_positions, q_times, k_times,
    alpha, reach, time_rows, heads, tokens, count,
    q_token, q_head, k_token, k_head, v_token, v_head, grad_out_token, grad_out_head, dk_token, dk_head, dv_token, dv_head,
    bucket,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, SPANS: tl.constexpr, SOFTMAX: tl.constexpr, HEADROOM: tl.constexpr,
    FAST: tl.constexpr, PRECISION: tl.constexpr, UNIT_ROWS: tl.constexpr, CHUNK_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dv = weights^T grad_out and dk = alpha ds^T q, for BLOCK_N keys of one sample and head. tokens: queries of the batch; count: its
    keys. summary: [SPANS, 2, chunks], the least begin and the greatest end of CHUNK_ROWS queries each; chunk_starts: [B+1]."""
    first_key, keys, start, sample, head = unit_of(units, heads, UNIT_ROWS, BLOCK_N)
    if keys < 0:
        rows_k = sample_rows(dk_data, 0, dk_token, head, dk_head)
        clear_rows(rows_k, first_key, dk_token, count, BLOCK_N, WIDTH, DIM)
        rows_v = sample_rows(dv_data, 0, dv_token, head, dv_head)
        clear_rows(rows_v, first_key, dv_token, count, BLOCK_N, VALUE_WIDTH, VALUE_DIM)
        return
    if first_key >= keys:
        return
    q_start, queries = extent(q_offsets, sample)
    key = first_key + tl.arange(0, BLOCK_N)
    real = key < keys
    last_key = tl.minimum(first_key + BLOCK_N, keys)
    place = block_place(key, real, k_positions + start, k_times + start, HAS_POSITION, HAS_TIME)
    bias = (position_table, time_table, q_positions + q_start, q_times + q_start, reach, time_rows, heads)
    q_rows = sample_rows(q_data, q_start, q_token, head, q_head)
    grad_rows = sample_rows(grad_out_data, q_start, grad_out_token, head, grad_out_head)
    k_rows = sample_rows(k_data, start, k_token, head, k_head)
    v_rows = sample_rows(v_data, start, v_token, head, v_head)
    k = load_rows(k_rows, first_key, k_token, real, True, BLOCK_N, WIDTH, DIM)
    v = load_rows(v_rows, first_key, v_token, real, True, BLOCK_N, VALUE_WIDTH, VALUE_DIM)
    dk = tl.zeros([BLOCK_N, WIDTH], dtype=tl.float32)
    dv = tl.zeros([BLOCK_N, VALUE_WIDTH], dtype=tl.float32)
    chunk_start = tl.load(chunk_starts + sample)
    chunk_stop = tl.load(chunk_starts + sample + 1)
    chunks = tl.load(chunk_starts - 1)

    for chunk in range(chunk_start, chunk_stop):
        needed = 0
        for span in tl.static_range(SPANS):
            low = tl.load(summary + (2 * span) * chunks + chunk)
            high = tl.load(summary + (2 * span + 1) * chunks + chunk)
            needed += ((low < last_key) & (high > first_key)).to(tl.int32)
        if needed > 0:
            base = (chunk - chunk_start) * CHUNK_ROWS
            for first in range(base, tl.minimum(base + CHUNK_ROWS, queries), BLOCK_M):
                row = first + tl.arange(0, BLOCK_M)
                valid = row < queries
                at = q_start + row
                q = load_rows(q_rows, first, q_token, valid, True, BLOCK_M, WIDTH, DIM)
                grad_out = load_rows(grad_rows, first, grad_out_token, valid, True, BLOCK_M, VALUE_WIDTH, VALUE_DIM)
                half_score, _, _ = half_scores(
                    k, q, place, row, valid, head, alpha, bias, True, HAS_POSITION, HAS_TIME, HAS_POSITION, PRECISION
                )
                visible = key[:, None] < row[None, :] * 0
                for span in tl.static_range(SPANS):
                    bound = span * tokens.to(tl.int64) + at
                    begin = tl.load(begin_data + bound, mask=valid, other=0)
                    end = tl.load(end_data + bound, mask=valid, other=0)
                    visible = visible | ((key[:, None] >= begin[None, :]) & (key[:, None] < end[None, :]))
                visible = visible & real[:, None]
                lse = row * 0.0
                delta = lse
                if SOFTMAX:
                    lse = tl.load(lse_data + at * heads + head, mask=valid, other=0.0) * LOG2E
                    delta = tl.load(delta_data + at * heads + head, mask=valid, other=0.0)
                product = tl.dot(v, tl.trans(grad_out), input_precision=PRECISION)
                weight, slope = weights_and_slopes(
                    half_score, product, visible, lse[None, :], delta[None, :], SOFTMAX, FAST
                )
                if not SOFTMAX:
                    # Each query's 1/n, kept above float16's least number.
                    scale = tl.load(scale_data + at, mask=valid, other=0.0) * HEADROOM
                    weight *= scale[None, :]
                    slope *= scale[None, :]
                dv = tl.dot(weight.to(grad_out.dtype), grad_out, dv, input_precision=PRECISION)
                dk = tl.dot(slope.to(q.dtype), q, dk, input_precision=PRECISION)

    share = 1.0 if SOFTMAX else 1.0 / HEADROOM
    dk_rows = sample_rows(dk_data, start, dk_token, head, dk_head)
    store_rows(dk_rows, first_key, dk_token, real, dk * (0.5 * alpha * share), BLOCK_N, WIDTH, DIM)
    dv_rows = sample_rows(dv_data, start, dv_token, head, dv_head)
    store_rows(dv_rows, first_key, dv_token, real, dv * share, BLOCK_N, VALUE_WIDTH, VALUE_DIM)

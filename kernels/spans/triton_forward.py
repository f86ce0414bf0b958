"""Span attention forward: a program per query block walks the keys of each span of its rows."""

from __future__ import annotations

import triton
import triton.language as tl

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
from genrank.kernels.spans.triton_tiles import LN2, first_weights


@triton.jit
def walk(begin, end, valid, BLOCK_N: tl.constexpr):
    """Of a query block and one span: the keys [low, high) that any row sees; low is a multiple of BLOCK_N."""
    far = 2147483647
    sees = valid & (begin < end)
    low = tl.min(tl.where(sees, begin, far), 0)
    high = tl.max(tl.where(sees, end, 0), 0)
    return (tl.minimum(low, high) // BLOCK_N) * BLOCK_N, high


@triton.jit(do_not_specialize=VARYING)
def span_forward_kernel(
    q_data, k_data, v_data, out_data, lse_data, k_offsets, begin_data, end_data, scale_data, units,
    position_table, time_table, q_positions, k_positions, q_times, k_times,
    alpha, reach, time_rows, heads, tokens,
    q_token, q_head, k_token, k_head, v_token, v_head, out_token, out_head, bucket,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, SPANS: tl.constexpr, SOFTMAX: tl.constexpr,
    FAST: tl.constexpr, PRECISION: tl.constexpr, UNIT_ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out = softmax(alpha q k^T + bias) v over the visible keys, or scale * (silu(...) * visible) v, for BLOCK_M queries of one sample
    and head; lse: [tokens, heads], the softmax's log-sum-exp."""
    first_row, queries, q_start, sample, head = unit_of(units, heads, UNIT_ROWS, BLOCK_M)
    if queries < 0:
        out = sample_rows(out_data, 0, out_token, head, out_head)
        clear_rows(out, first_row, out_token, tokens, BLOCK_M, VALUE_WIDTH, VALUE_DIM)
        return
    if first_row >= queries:
        return
    k_start, keys = extent(k_offsets, sample)
    row = first_row + tl.arange(0, BLOCK_M)
    valid = row < queries
    at = q_start + row
    place = block_place(row, valid, q_positions + q_start, q_times + q_start, HAS_POSITION, HAS_TIME)
    bias = (position_table, time_table, k_positions + k_start, k_times + k_start, reach, time_rows, heads)
    k_rows = sample_rows(k_data, k_start, k_token, head, k_head)
    v_rows = sample_rows(v_data, k_start, v_token, head, v_head)
    q_rows = sample_rows(q_data, q_start, q_token, head, q_head)
    q = load_rows(q_rows, first_row, q_token, valid, True, BLOCK_M, WIDTH, DIM)
    acc = tl.zeros([BLOCK_M, VALUE_WIDTH], dtype=tl.float32)
    top = tl.full([BLOCK_M], -1.0e30, dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)

    for span in range(SPANS):
        bound = span * tokens.to(tl.int64) + at
        begin = tl.maximum(tl.load(begin_data + bound, mask=valid, other=0), 0)
        end = tl.minimum(tl.load(end_data + bound, mask=valid, other=0), keys)
        low, high = walk(begin, end, valid, BLOCK_N)
        for first in range(low, high, BLOCK_N):
            key = first + tl.arange(0, BLOCK_N)
            real = key < keys
            k = load_rows(k_rows, first, k_token, real, True, BLOCK_N, WIDTH, DIM)
            half_score, _, _ = half_scores(
                q, k, place, key, real, head, alpha, bias, False, HAS_POSITION, HAS_TIME, HAS_POSITION, PRECISION
            )
            visible = (key[None, :] >= begin[:, None]) & (key[None, :] < end[:, None])
            weight, top, total, acc = first_weights(half_score, visible, top, total, acc, SOFTMAX, FAST)
            v = load_rows(v_rows, first, v_token, real, True, BLOCK_N, VALUE_WIDTH, VALUE_DIM)
            acc = tl.dot(weight.to(v.dtype), v, acc, input_precision=PRECISION)

    if SOFTMAX:
        some = total > 0.0
        acc = acc / tl.where(some, total, 1.0)[:, None]
        lse = tl.where(some, (top + tl.log2(tl.where(some, total, 1.0))) * LN2, float("inf"))
        tl.store(lse_data + at * heads + head, lse, mask=valid)
    else:
        acc *= tl.load(scale_data + at, mask=valid, other=0.0)[:, None]
    out = sample_rows(out_data, q_start, out_token, head, out_head)
    store_rows(out, first_row, out_token, valid, acc, BLOCK_M, VALUE_WIDTH, VALUE_DIM)

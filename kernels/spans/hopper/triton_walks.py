"""What each unit of the Gluon kernels walks, as one record of 20 int32, of which keys have 10: a program learns all of it from one place.

    0  1 where there is something to do              5  the sample's first key (of a unit of keys: first query)
    1  the sample's first query (key)                6  its keys (queries)
    2  the unit's first row in the sample            7  queries: of each of three spans the first key that the unit needs and the end of them,
    3  end of the rows to be written                    and the first key and the end of those that all of its rows see; keys: the first query that
    4  the sample's rows; 0 without a sample            sees any of them, in whole chunks, 8 the end of them, and 9 the sample's chunk

A unit of queries walks one tile at least, which is hidden where they see nothing. Where there is no sample (tokens beyond the last offset) a
unit walks one tile beyond the last token, which TMA fills with zeros, and writes zeros.
"""

from __future__ import annotations

import triton
import triton.language as tl

COLUMNS = tl.constexpr(20)
FAR = tl.constexpr(2147483647)


@triton.jit
def chunk_of(start, sample, CHUNK: tl.constexpr):
    """Where a sample's chunks of queries begin among all samples' places, which overlap nowhere."""
    return start // CHUNK + sample


@triton.jit
def bounds_of(begin_data, end_data, span: tl.constexpr, tokens, start, row, valid, keys):
    """A span of some queries, from `FAR` to there where it is empty."""
    at = span * tokens.to(tl.int64) + start + row
    begin = tl.maximum(tl.load(begin_data + at, mask=valid, other=0), 0)
    end = tl.minimum(tl.load(end_data + at, mask=valid, other=0), keys)
    empty = begin >= end
    return tl.where(empty, FAR, begin), tl.where(empty, FAR, end)


@triton.jit
def in_order(begin, end, other_begin, other_end):
    """Two spans, that of the lesser begin first."""
    swap = other_begin < begin
    return (
        tl.where(swap, other_begin, begin), tl.where(swap, other_end, end),
        tl.where(swap, begin, other_begin), tl.where(swap, end, other_end),
    )  # fmt: skip


@triton.jit
def store_no_sample(at, first, tokens, others):
    """What the record of a unit without a sample says of its own tokens and of the others'."""
    tl.store(at, (first < tokens).to(tl.int32))
    tl.store(at + 1, 0)
    tl.store(at + 3, tokens)
    tl.store(at + 4, 0)
    tl.store(at + 5, others)
    tl.store(at + 6, 0)


@triton.jit(do_not_specialize=["tokens", "key_tokens", "width"])
def span_query_walks_kernel(
    begin_data, end_data, k_offsets, units, records, bounds, ordered, summary, tokens, key_tokens, width,
    SPANS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Of a unit of `ROWS` queries: its record; `bounds` and `ordered` (`plan.Walks`) [2 SPANS, width]; and `summary` [chunks, 4 SPANS] of
    each `CHUNK` of them: in a span the least begin and greatest end of those that see anything, the greatest begin and least end of all."""
    at = records + tl.program_id(0) * COLUMNS
    unit = units + tl.program_id(0) * 4
    first = tl.load(unit)
    queries = tl.load(unit + 1)
    start = tl.load(unit + 2)
    sample = tl.load(unit + 3)
    tl.store(at + 2, first)
    if queries < 0:
        store_no_sample(at, first, tokens, key_tokens)
        for span in tl.static_range(3):
            tl.store(at + 7 + 4 * span, 0)
            tl.store(at + 8 + 4 * span, 1 if span == 0 else 0)
            tl.store(at + 9 + 4 * span, 1)
            tl.store(at + 10 + 4 * span, 0)
        return
    k_start = tl.load(k_offsets + sample).to(tl.int32)
    keys = tl.load(k_offsets + sample + 1).to(tl.int32) - k_start
    tl.store(at, 1)
    tl.store(at + 1, start)
    tl.store(at + 3, queries)
    tl.store(at + 4, queries)
    tl.store(at + 5, k_start)
    tl.store(at + 6, keys)
    row = first + tl.arange(0, ROWS)
    valid = row < queries
    for span in tl.static_range(3):
        low = 0
        high = 1 if span == 0 else 0
        full_from = 1
        full_to = 0
        if span < SPANS:
            given = span * tokens.to(tl.int64) + start + row
            begin = tl.maximum(tl.load(begin_data + given, mask=valid, other=0), 0)
            end = tl.minimum(tl.load(end_data + given, mask=valid, other=0), keys)
            tl.store(bounds + (2 * span) * width.to(tl.int64) + start + row, begin, mask=valid)
            tl.store(bounds + (2 * span + 1) * width.to(tl.int64) + start + row, end, mask=valid)
            sees = valid & (begin < end)
            least = tl.where(sees, begin, FAR)
            greatest = tl.where(sees, end, 0)
            highest = tl.where(valid, begin, 0)
            lowest = tl.where(valid, end, FAR)
            low = tl.where(tl.max(greatest, 0) > 0, tl.min(least, 0), 0)
            high = tl.maximum(tl.max(greatest, 0), high)
            full_from = tl.max(highest, 0)
            full_to = tl.min(lowest, 0)
            chunk = chunk_of(start, sample, CHUNK) + first // CHUNK + tl.arange(0, ROWS // CHUNK)
            there = first + tl.arange(0, ROWS // CHUNK) * CHUNK < queries
            into = summary + chunk * (4 * SPANS) + 4 * span
            tl.store(into, tl.min(tl.reshape(least, [ROWS // CHUNK, CHUNK]), 1), mask=there)
            tl.store(into + 1, tl.max(tl.reshape(greatest, [ROWS // CHUNK, CHUNK]), 1), mask=there)
            tl.store(into + 2, tl.max(tl.reshape(highest, [ROWS // CHUNK, CHUNK]), 1), mask=there)
            tl.store(into + 3, tl.min(tl.reshape(lowest, [ROWS // CHUNK, CHUNK]), 1), mask=there)
        tl.store(at + 7 + 4 * span, low)
        tl.store(at + 8 + 4 * span, high)
        tl.store(at + 9 + 4 * span, full_from)
        tl.store(at + 10 + 4 * span, full_to)
    into = ordered + start + row
    step = width.to(tl.int64)
    begin, end = bounds_of(begin_data, end_data, 0, tokens, start, row, valid, keys)
    if SPANS > 1:
        second, second_end = bounds_of(begin_data, end_data, 1, tokens, start, row, valid, keys)
        begin, end, second, second_end = in_order(begin, end, second, second_end)
        if SPANS > 2:
            third, third_end = bounds_of(begin_data, end_data, 2, tokens, start, row, valid, keys)
            second, second_end, third, third_end = in_order(second, second_end, third, third_end)
            begin, end, second, second_end = in_order(begin, end, second, second_end)
            tl.store(into + 4 * step, third, mask=valid)
            tl.store(into + 5 * step, third_end, mask=valid)
        tl.store(into + 2 * step, second, mask=valid)
        tl.store(into + 3 * step, second_end, mask=valid)
    tl.store(into, begin, mask=valid)
    tl.store(into + step, end, mask=valid)


@triton.jit(do_not_specialize=["tokens", "key_tokens"])
def span_key_walks_kernel(
    q_offsets, units, summary, records, tokens, key_tokens, SPANS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr
):  # fmt: skip
    """The record of a unit of `ROWS` keys."""
    at = records + tl.program_id(0) * COLUMNS
    unit = units + tl.program_id(0) * 4
    first = tl.load(unit)
    keys = tl.load(unit + 1)
    start = tl.load(unit + 2)
    sample = tl.load(unit + 3)
    tl.store(at + 2, first)
    if keys < 0:
        store_no_sample(at, first, key_tokens, tokens)
        tl.store(at + 7, 0)
        tl.store(at + 8, 0)
        tl.store(at + 9, 0)
        return
    q_start = tl.load(q_offsets + sample).to(tl.int32)
    queries = tl.load(q_offsets + sample + 1).to(tl.int32) - q_start
    last = tl.minimum(first + ROWS, keys)
    chunks = tl.cdiv(queries, CHUNK)
    low = FAR
    high = 0
    for before in range(0, chunks, 64):
        chunk = before + tl.arange(0, 64)
        there = chunk < chunks
        needed = chunk < 0
        for span in tl.static_range(SPANS):
            of = summary + (chunk_of(q_start, sample, CHUNK) + chunk) * (4 * SPANS) + 4 * span
            least = tl.load(of, mask=there, other=0)
            greatest = tl.load(of + 1, mask=there, other=0)
            needed = needed | (there & (least < last) & (greatest > first))
        low = tl.minimum(low, tl.min(tl.where(needed, chunk, FAR), 0))
        high = tl.maximum(high, tl.max(tl.where(needed, chunk + 1, 0), 0))
    low = tl.minimum(low, high)
    tl.store(at, 1)
    tl.store(at + 1, start)
    tl.store(at + 3, keys)
    tl.store(at + 4, keys)
    tl.store(at + 5, q_start)
    tl.store(at + 6, queries)
    tl.store(at + 7, low * CHUNK)
    tl.store(at + 9, chunk_of(q_start, sample, CHUNK))
    tl.store(at + 8, tl.minimum(high * CHUNK, queries))

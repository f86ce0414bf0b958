"""The plan of a batch's programs in two launches: what each sample's chunks of queries see, then the units of work in their order."""

from __future__ import annotations

import triton
import triton.language as tl

FAR = tl.constexpr(2147483647)
COLUMNS = tl.constexpr(5)
"""Of `Plan.summary`."""


@triton.jit
def place_of(offsets, sample, ROWS: tl.constexpr):
    """Where a sample's pieces of `ROWS` tokens begin among all samples' places, which overlap nowhere and need no sum over the samples:
    a sample of n tokens has at most n / ROWS, rounded down, and one more than the multiples of ROWS that it holds."""
    return (tl.load(offsets + sample) // ROWS).to(tl.int32) + sample


@triton.jit(do_not_specialize=["tokens", "places"])
def summary_kernel(
    begin_data, end_data, q_offsets, summary, seen, pairs, tokens, places, CHUNK: tl.constexpr, CHUNKS: tl.constexpr
):
    """Of one sample: each chunk's row of `Plan.summary` and its visible pairs, and those of the sample."""
    sample = tl.program_id(0)
    start = tl.load(q_offsets + sample).to(tl.int64)
    rows = tl.load(q_offsets + sample + 1).to(tl.int64) - start
    place = place_of(q_offsets, sample, CHUNK)
    total = tl.zeros([1], dtype=tl.int64)
    for first in range(0, tl.cdiv(rows, CHUNK), CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        row = chunk[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
        real = (row < rows) & (start + row >= 0) & (start + row < tokens)
        begin = tl.load(begin_data + start + row, mask=real, other=0)
        end = tl.load(end_data + start + row, mask=real, other=0)
        sees = real & (begin < end)
        alone = real & ((row < begin) | (row >= end))
        counts = tl.sum(tl.where(sees, end - begin, 0).to(tl.int64), 1)
        at = place + chunk
        there = (chunk * CHUNK < rows) & (at >= 0) & (at < places)
        tl.store(summary + at * COLUMNS, tl.min(tl.where(sees, begin, FAR), 1), mask=there)
        tl.store(summary + at * COLUMNS + 1, tl.max(tl.where(sees, end, 0), 1), mask=there)
        tl.store(summary + at * COLUMNS + 2, tl.max(tl.where(real, begin, 0), 1), mask=there)
        tl.store(summary + at * COLUMNS + 3, tl.min(tl.where(real, end, FAR), 1), mask=there)
        tl.store(summary + at * COLUMNS + 4, tl.max(alone.to(tl.int32), 1), mask=there)
        tl.store(seen + at, counts, mask=there)
        total += tl.sum(counts, 0)
    tl.store(pairs + sample + tl.arange(0, 1), total)


@triton.jit
def unit_costs(
    unit, first_chunk, chunks, summary, seen, places,
    OF_KEYS: tl.constexpr, UNIT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What each of a sample's units costs, int64: the visible pairs of its queries; of keys, how many of them each chunk of queries walks."""
    cost = unit.to(tl.int64) * 0
    if OF_KEYS:
        first, last = unit * UNIT, unit * UNIT + UNIT
        for begin in range(0, chunks, BLOCK):
            chunk = begin + tl.arange(0, BLOCK)
            at = first_chunk + chunk
            there = (chunk < chunks) & (at >= 0) & (at < places)
            low = tl.load(summary + at * COLUMNS, mask=there, other=0)
            high = tl.load(summary + at * COLUMNS + 1, mask=there, other=0)
            both = tl.minimum(high[None, :], last[:, None]) - tl.maximum(low[None, :], first[:, None])
            cost += tl.sum(tl.maximum(both, 0), 1)
    else:
        for part in tl.static_range(UNIT // CHUNK):
            chunk = unit * (UNIT // CHUNK) + part
            at = first_chunk + chunk
            cost += tl.load(seen + at, mask=(chunk < chunks) & (at >= 0) & (at < places), other=0)
    return cost


@triton.jit
def place_unit(
    offsets, q_offsets, summary, seen, pairs, units, tokens, places, batch,
    OF_KEYS: tl.constexpr, BY_CHUNK: tl.constexpr, UNIT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, SAMPLES: tl.constexpr,
):  # fmt: skip
    """Write one unit to its place in the order. Its program counts what comes before it: nothing is sorted."""
    own_place = tl.program_id(0)
    count = tl.cdiv(tokens, UNIT) + batch
    if own_place >= count:
        return
    low = 0
    high = batch
    while low < high:
        middle = (low + high) // 2
        before = place_of(offsets, middle, UNIT) <= own_place
        low = tl.where(before, middle + 1, low)
        high = tl.where(before, high, middle)
    sample = low - 1
    own_pairs = tl.load(pairs + sample, mask=sample >= 0, other=0)
    every = 0
    until = 0
    ahead = 0
    for first in range(0, batch, SAMPLES):
        other = first + tl.arange(0, SAMPLES)
        there = other < batch
        rows = tl.load(offsets + other + 1, mask=there, other=0) - tl.load(offsets + other, mask=there, other=0)
        theirs = tl.cdiv(rows.to(tl.int32), UNIT)
        work = tl.load(pairs + other, mask=there, other=0)
        every += tl.sum(theirs, 0)
        until += tl.sum(tl.where(other <= sample, theirs, 0), 0)
        earlier = (work > own_pairs) | ((work == own_pairs) & (other < sample))
        ahead += tl.sum(tl.where(there & earlier, theirs, 0), 0)

    start = tl.load(offsets + tl.maximum(sample, 0)).to(tl.int32)
    rows = tl.load(offsets + tl.maximum(sample, 0) + tl.minimum(batch, 1)).to(tl.int32) - start
    unit = own_place - start // UNIT - sample
    mine = tl.cdiv(rows, UNIT)
    if (sample >= 0) & (unit < mine):
        first_chunk = place_of(q_offsets, sample, CHUNK)
        queries = tl.load(q_offsets + sample + 1).to(tl.int32) - tl.load(q_offsets + sample).to(tl.int32)
        chunks = tl.cdiv(queries, CHUNK)
        block = unit // BLOCK * BLOCK + tl.arange(0, BLOCK)
        costs = unit_costs(block, first_chunk, chunks, summary, seen, places, OF_KEYS, UNIT, CHUNK, BLOCK)
        own_cost = tl.sum(tl.where(block == unit, costs, 0), 0)
        for first in range(0, mine, BLOCK):
            other = first + tl.arange(0, BLOCK)
            costs = unit_costs(other, first_chunk, chunks, summary, seen, places, OF_KEYS, UNIT, CHUNK, BLOCK)
            earlier = (costs > own_cost) | ((costs == own_cost) & (other < unit))
            ahead += tl.sum(((other < mine) & earlier).to(tl.int32), 0)
        at = units + tl.minimum(ahead, count - 1) * 4
        tl.store(at, unit * UNIT)
        tl.store(at + 1, rows)
        tl.store(at + 2, start)
        tl.store(at + 3, first_chunk if BY_CHUNK else sample)
    else:
        rest = own_place - until
        at = units + tl.minimum(every + rest, count - 1) * 4
        tl.store(at, tl.load(offsets + batch).to(tl.int32) + rest * UNIT)
        tl.store(at + 1, -1)
        tl.store(at + 2, 0)
        tl.store(at + 3, 0)


@triton.jit(do_not_specialize=["queries", "keys", "places", "batch"])
def units_kernel(
    q_offsets, k_offsets, summary, seen, pairs, q_units, k_units, queries, keys, places, batch,
    BY_CHUNK: tl.constexpr, UNIT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, SAMPLES: tl.constexpr,
):  # fmt: skip
    """A unit of queries or, in the second row of programs, of keys. BY_CHUNK: that of keys names its sample's first chunk, not the sample."""
    if tl.program_id(1) == 0:
        place_unit(
            q_offsets, q_offsets, summary, seen, pairs, q_units, queries, places, batch,
            False, False, UNIT, CHUNK, BLOCK, SAMPLES,
        )  # fmt: skip
    else:
        place_unit(
            k_offsets, q_offsets, summary, seen, pairs, k_units, keys, places, batch, True, BY_CHUNK, UNIT, CHUNK, BLOCK, SAMPLES
        )  # fmt: skip

"""What each unit of the Gluon kernels walks, as one record of 12 int32: a program then learns all of it from one place.

    0  units of the program from this one on            6  end of them
    1  the sample's first token                         7  first row of those that only see themselves in addition
    2  the unit's first row in the sample               8  end of them
    3  end of the rows to be written                    9  from here on rows are seen by (see) all of the unit,
    4  the sample's rows; 0 without a sample           10  to here
    5  first row that the unit needs                   11  unused

Where there is no sample (tokens beyond the last offset) the unit walks one tile beyond the last token, which TMA fills with zeros, and
writes zeros.
"""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.attention.triton_backward import walk_of_queries

COLUMNS = tl.constexpr(12)
FAR = tl.constexpr(2147483647)
FINE_BITS = tl.constexpr(23)
"""Of a time in units: float32 holds so many, and the differences of two, exactly; the rest counts in units of 2^23, exact up to 2^47."""


@triton.jit
def store_record(at, units, start, first, rows, keys, low, high, own_low, own_high, full_from, full_to):
    """Write one record."""
    tl.store(at, units)
    tl.store(at + 1, start)
    tl.store(at + 2, first)
    tl.store(at + 3, rows)
    tl.store(at + 4, keys)
    tl.store(at + 5, low)
    tl.store(at + 6, high)
    tl.store(at + 7, own_low)
    tl.store(at + 8, own_high)
    tl.store(at + 9, full_from)
    tl.store(at + 10, full_to)


@triton.jit(do_not_specialize=["tokens"])
def query_walks_kernel(begin_data, end_data, units, pairs, records, tokens, ROWS: tl.constexpr):
    """The record of one place of `pairs` [programs, 2]: of the unit of `ROWS` queries whose number stands there, -1 for none."""
    place = tl.program_id(0)
    unit = tl.load(pairs + place)
    together = (unit >= 0).to(tl.int32)
    if place % 2 == 0:
        together += (tl.load(pairs + place + 1) >= 0).to(tl.int32)
    at = records + place * COLUMNS
    first = tl.load(units + unit * 4, mask=unit >= 0, other=0)
    keys = tl.load(units + unit * 4 + 1, mask=unit >= 0, other=0)
    start = tl.load(units + unit * 4 + 2, mask=unit >= 0, other=0)
    if keys <= 0:
        store_record(at, together, 0, first, tokens, 0, tokens, tokens + 1, 0, 0, 0, 0)
        return
    row = first + tl.arange(0, ROWS)
    valid = row < keys
    begin = tl.maximum(tl.load(begin_data + start + row, mask=valid, other=0), 0)
    end = tl.minimum(tl.load(end_data + start + row, mask=valid, other=0), keys)
    see = valid & (begin < end)
    alone = valid & ((row < begin) | (row >= end))
    high = tl.max(tl.where(see, end, 0), 0)
    low = tl.minimum(tl.min(tl.where(see, begin, FAR), 0), high)
    own_high = tl.max(tl.where(alone, row + 1, 0), 0)
    own_low = tl.minimum(tl.min(tl.where(alone, row, FAR), 0), own_high)
    full_from = tl.max(tl.where(valid, begin, 0), 0)
    full_to = tl.min(tl.where(valid, end, FAR), 0)
    store_record(at, together, start, first, keys, keys, low, high, own_low, own_high, full_from, full_to)


@triton.jit(do_not_specialize=["tokens"])
def key_walks_kernel(
    begin_data, end_data, units, summary, records, tokens, ROWS: tl.constexpr, UNIT_ROWS: tl.constexpr, CHUNK: tl.constexpr
):  # fmt: skip
    """The record of `ROWS` keys, a part of a unit of `UNIT_ROWS`: which queries see them."""
    place = tl.program_id(0)
    parts: tl.constexpr = UNIT_ROWS // ROWS
    unit = units + place // parts * 4
    first = tl.load(unit) + place % parts * ROWS
    keys = tl.load(unit + 1)
    start = tl.load(unit + 2)
    at = records + place * COLUMNS
    if keys < 0:
        store_record(at, (first < tokens).to(tl.int32), 0, first, tokens, 0, tokens, tokens + 1, 0, 0, 0, 0)
        return
    if first >= keys:
        store_record(at, 0, start, first, keys, keys, 0, 0, 0, 0, 0, 0)
        return
    low, high, full_from, full_to = walk_of_queries(
        summary + tl.load(unit + 3).to(tl.int64) * 5,
        tl.cdiv(keys, CHUNK),
        first,
        tl.minimum(first + ROWS, keys),
        1 << 24,
        CHUNK,
    )
    row = first + tl.arange(0, ROWS)
    valid = row < keys
    begin = tl.load(begin_data + start + row, mask=valid, other=0)
    end = tl.load(end_data + start + row, mask=valid, other=0)
    alone = valid & ((row < tl.maximum(begin, 0)) | (row >= tl.minimum(end, keys)))
    own_high = tl.max(tl.where(alone, row + 1, 0), 0)
    own_low = tl.minimum(tl.min(tl.where(alone, row, FAR), 0), own_high)
    high = tl.minimum(high, keys)
    low = tl.minimum(low, high)
    store_record(at, 1, start, first, keys, keys, low, high, own_low, own_high, full_from, tl.minimum(full_to, keys))


@triton.jit
def places_kernel(
    stamps, positions, units, out_positions, out_times, ROWS: tl.constexpr, HAS_TIMES: tl.constexpr, HAS_POSITIONS: tl.constexpr
):  # fmt: skip
    """`plan.Places` of a unit of `ROWS` tokens."""
    unit = units + tl.program_id(0) * 4
    keys = tl.load(unit + 1)
    start = tl.load(unit + 2)
    row = tl.load(unit) + tl.arange(0, ROWS)
    valid = row < keys
    position = row
    if HAS_POSITIONS:
        position = tl.load(positions + start + row, mask=valid, other=0)
    tl.store(out_positions + start + row, position, mask=valid)
    if HAS_TIMES:
        first = tl.load(stamps + start, mask=keys > 0, other=0)
        elapsed = tl.load(stamps + start + row, mask=valid, other=0) - first
        coarse = elapsed >> FINE_BITS
        fine = (elapsed - (coarse << FINE_BITS)).to(tl.float32).to(tl.int32, bitcast=True)
        packed = (coarse.to(tl.float32).to(tl.int32, bitcast=True).to(tl.int64) << 32) | fine.to(tl.int64)
        tl.store(out_times + start + row, packed, mask=valid)

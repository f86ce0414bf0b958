"""Where every token of a batch goes, and what is known of it before it is computed, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.launch import VARYING
from genrank.kernels.lookups.triton_rows import column, owner_of

BUCKETS = tl.constexpr(64)


@triton.jit(do_not_specialize=(*VARYING, "samples", "steps", "zero"))
def arrange_kernel(
    parts, starts, order, inverse, timestamps, groups, position, users, known, sees, offsets, users_of, known_of, positions, buckets,
    tokens, samples, steps, zero, USER: tl.constexpr, HISTORY: tl.constexpr, REALTIME: tl.constexpr, CANDIDATE: tl.constexpr,
    PARTS: tl.constexpr, FIELDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK tokens of a part, or (beyond the last part) what is known of BLOCK samples. `parts` [PARTS, FIELDS] as `gpu.Part`; `starts`
    [samples] int64, each window's start."""
    which = tl.program_id(1)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if which == PARTS:
        real = at < samples
        if tl.program_id(0).to(tl.int64) * BLOCK > samples:
            return
        of_users, of_known, begin = at * 0, at * 0, at * 0
        for other in tl.static_range(PARTS):
            per_row, kind = tl.load(parts + other * FIELDS + 3), tl.load(parts + other * FIELDS + 4)
            address = tl.load(parts + other * FIELDS)
            first, last = at, at + 1
            if address != 0:
                first = tl.load(column(address, tl.int64) + at, mask=at <= samples, other=0)
                last = tl.load(column(address, tl.int64) + at + 1, mask=real, other=0)
            begin += first * per_row
            of_users += tl.where(kind == USER, (last - first) * per_row, 0)
            of_known += tl.where(kind <= HISTORY, (last - first) * per_row, 0)
        tl.store(offsets + at, begin, mask=at <= samples)
        tl.store(users_of + at, of_users, mask=real)
        tl.store(known_of + at, of_known, mask=real)
        return
    part = parts + which * FIELDS
    count = tl.load(part + 2)
    if tl.program_id(0).to(tl.int64) * BLOCK >= count:
        return
    real = at < count
    address, k, kind, first = tl.load(part), tl.load(part + 3), tl.load(part + 4), tl.load(part + 5)
    row = at // k
    sample, begin, end = row, row, row + 1
    if address != 0:
        own = column(address, tl.int64)
        sample = owner_of(own, samples, row, real, steps)
        begin = tl.load(own + sample, mask=real, other=0)
        end = tl.load(own + sample + 1, mask=real, other=0)
    # Where the sample begins, and this part in it.
    start, before = at * 0, at * 0
    of_users, of_known, realtime = at * 0, at * 0, at * 0
    for other in tl.static_range(PARTS):
        per_row, of_kind = tl.load(parts + other * FIELDS + 3), tl.load(parts + other * FIELDS + 4)
        others = tl.load(parts + other * FIELDS)
        low, high = sample, sample + 1
        if others != 0:
            low = tl.load(column(others, tl.int64) + sample, mask=real, other=0)
            high = tl.load(column(others, tl.int64) + sample + 1, mask=real, other=0)
        start += low * per_row
        size = (high - low) * per_row
        before += tl.where(other < which, size, 0)
        of_users += tl.where(of_kind == USER, size, 0)
        of_known += tl.where(of_kind <= HISTORY, size, 0)
        realtime = tl.where((of_kind == REALTIME) & (realtime == 0), per_row, realtime)
    within = before + at - begin * k
    place = start + within
    seen = at * 0
    if tl.load(part + 6) != 0:
        seen = tl.load(column(tl.load(part + 6), tl.int32) + row, mask=real, other=0).to(tl.int64)
        if kind == CANDIDATE:
            seen = seen * realtime
        else:
            seen = seen * k
            # An interleaved token sees its own event's earlier tokens too, where they follow what the event sees: not after a tie.
            seen += tl.where((k > 1) & (seen == (row - begin) * k), at - row * k, 0)
    ts = tl.load(column(tl.load(part + 1), tl.int64) + row, mask=real, other=0)
    tl.store(order + place, first + at, mask=real)
    tl.store(inverse + first + at, place, mask=real)
    tl.store(timestamps + place, ts, mask=real)
    tl.store(groups + place, (at * 0 + kind).to(tl.int32), mask=real)
    tl.store(position + place, within, mask=real)
    tl.store(users + place, of_users, mask=real)
    tl.store(known + place, of_known, mask=real)
    tl.store(sees + place, seen, mask=real)
    where, limit, newest = tl.load(part + 7), tl.load(part + 8), tl.load(part + 9)
    positional = at * 0 + zero
    if where >= 0:
        counted = tl.where(newest == 1, end * k - 1 - at, at - begin * k)
        positional = where + tl.minimum(counted, limit)
    tl.store(positions + first + at, positional, mask=real)
    buckets_at = tl.load(part + 10)
    timed = at * 0 + zero
    if buckets_at >= 0:
        delta = ts - tl.load(starts + sample, mask=real, other=0)
        octaves = tl.log2(1.0 + tl.abs(delta).to(tl.float64) / 1000.0)
        bucket = tl.minimum((2.0 * octaves).to(tl.int64), BUCKETS - 1)
        timed = buckets_at + tl.where(delta < 0, BUCKETS - 1 - bucket, BUCKETS + bucket)
    tl.store(buckets + first + at, timed, mask=real)

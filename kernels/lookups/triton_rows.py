"""Ids and numbers of a batch to rows of tables and inputs, every feature in one launch."""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.launch import VARYING

MISSING = tl.constexpr(-(2**63))
MISSING_ROW, UNKNOWN_ROW, SPECIAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
DAY = tl.constexpr(86_400_000)
HOUR = tl.constexpr(3_600_000)


@triton.jit
def column(address, kind: tl.constexpr):
    """A pointer from an address."""
    return address.to(tl.pointer_type(kind))


@triton.jit
def floor_divide(a, b):
    """Rounded down, of any sign; b > 0."""
    rest = a % b
    return (a - tl.where(rest < 0, rest + b, rest)) // b


@triton.jit
def mixed(x):
    """splitmix64's finaliser with its increment, as `tokenization.hashing.splitmix64`."""
    x = x.to(tl.uint64, bitcast=True) + 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return (x ^ (x >> 31)).to(tl.int64, bitcast=True)


@triton.jit
def count_up_to(values, count, x, real, steps, RIGHT: tl.constexpr):
    """How many of `count` ascending values are below x, or (RIGHT) not above it."""
    low = tl.zeros(x.shape, dtype=tl.int64)
    high = low + count
    for _ in range(steps):
        going = real & (low < high)
        middle = (low + high) // 2
        value = tl.load(values + middle, mask=going, other=0)
        before = (value <= x) if RIGHT else (value < x)
        low = tl.where(going & before, middle + 1, low)
        high = tl.where(going & (before == 0), middle, high)
    return low


@triton.jit
def owner_of(offsets, batch, at, real, steps):
    """The sample of each row of a group."""
    return count_up_to(offsets, batch + 1, at, real, steps, True) - 1


@triton.jit
def part_of(local, part):
    """`tokenization.feature_kinds.times.time_part`; parts numbered as `instructions.PARTS`."""
    days = floor_divide(local, DAY)
    hour = (local - days * DAY) // HOUR
    weekday = days + 3 - floor_divide(days + 3, 7) * 7
    z = days + 719_468
    era = floor_divide(z, 146_097)
    doe = z - era * 146_097
    yoe = (doe - doe // 1_460 + doe // 36_524 - doe // 146_096) // 365
    doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    march = (5 * doy + 2) // 153
    day = doy - (153 * march + 2) // 5
    found = tl.where(part == 0, hour, weekday)
    found = tl.where(part == 2, weekday * 24 + hour, found)
    found = tl.where(part == 3, day, found)
    return tl.where(part == 4, (march + 2) % 12, found)


@triton.jit
def newest_seen(groups, histories, seen_data, realtime, sample, at, real, HISTORIES: tl.constexpr):
    """Epoch ms of the newest event that each candidate sees: histories' last events, and realtime ones by prefix."""
    newest = tl.full(at.shape, MISSING, dtype=tl.int64)
    for i in tl.static_range(HISTORIES):
        group = tl.load(histories + i)
        ts, offsets = column(tl.load(groups + 2 * group), tl.int64), column(tl.load(groups + 2 * group + 1), tl.int64)
        begin = tl.load(offsets + sample, mask=real, other=0)
        end = tl.load(offsets + sample + 1, mask=real, other=0)
        last = tl.load(ts + end - 1, mask=real & (end > begin), other=MISSING)
        newest = tl.maximum(newest, last)
    if realtime >= 0:
        ts, offsets = (
            column(tl.load(groups + 2 * realtime), tl.int64),
            column(tl.load(groups + 2 * realtime + 1), tl.int64),
        )
        begin = tl.load(offsets + sample, mask=real, other=0)
        sees = tl.load(seen_data + at, mask=real, other=0).to(tl.int64)
        most = tl.max(sees, 0)
        for j in range(most):
            newest = tl.maximum(newest, tl.load(ts + begin + j, mask=real & (j < sees), other=MISSING))
    return newest


@triton.jit
def log1p(x):
    """Of x >= 0, to the last digits where 1 + x loses them (Goldberg 1991, theorem 4)."""
    u = 1.0 + x
    small = u == 1.0
    large = tl.log(u) * (x / tl.where(small, 1.0, u - 1.0))
    return tl.where(small, x, tl.where(u > 1e30, tl.log(u), large))


@triton.jit(do_not_specialize=(*VARYING, "batch", "row_steps", "edge_steps", "moment_count", "realtime"))
def rows_kernel(
    instructions, scales, ids, id_rows, edges, moments, clocks, histories, operands, places, groups, seen, rows, numbers,
    batch, row_steps, edge_steps, moment_count, realtime,
    HISTORIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK rows of one instruction: `instructions` [P, 8] and `scales` [P, 2] as `RowInstruction`; `places` [P, 3], `groups` [G, 2] and
    `operands` [O, 2] (address, whether the user's) of the batch; `rows` int64 and `numbers` float32 are written."""
    instruction = tl.program_id(1)
    what = instructions + instruction * 8
    place = places + instruction * 3
    count = tl.load(place + 1)
    if tl.program_id(0).to(tl.int64) * BLOCK >= count:
        return
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = at < count
    source, encoding, group, argument = tl.load(what), tl.load(what + 1), tl.load(what + 2), tl.load(what + 3)
    ts, offsets = column(tl.load(groups + 2 * group), tl.int64), column(tl.load(groups + 2 * group + 1), tl.int64)
    address = tl.load(place)
    id_ = tl.full([BLOCK], MISSING, dtype=tl.int64)
    number = tl.full([BLOCK], float("nan"), dtype=tl.float32)
    if source == 0:
        id_ = tl.load(column(address, tl.int64) + at, mask=real, other=MISSING)
    if source == 1:
        number = tl.load(column(address, tl.float32) + at, mask=real, other=float("nan"))
    if source == 2:
        sample = owner_of(offsets, batch, at, real, row_steps)
        id_ = tl.zeros([BLOCK], dtype=tl.int64)
        missing = real
        operand_at = operands + 2 * tl.load(what + 4)
        for i in range(argument):
            operand = column(tl.load(operand_at + 2 * i), tl.int64)
            whose = tl.where(tl.load(operand_at + 2 * i + 1) == 1, sample, at)
            each = tl.load(operand + whose, mask=real, other=MISSING)
            id_ = mixed(id_ ^ mixed(each))
            missing = missing & (each == MISSING)
        id_ = tl.where(missing, MISSING, id_)
    if source == 3:
        time = tl.load(ts + at, mask=real, other=0)
        stretch = count_up_to(moments, moment_count, time, real, edge_steps, True)
        id_ = part_of(time + tl.load(clocks + stretch, mask=real, other=0), argument)
    if source >= 4:
        since = tl.full([BLOCK], MISSING, dtype=tl.int64)
        if source == 4:
            since = tl.load(column(address, tl.int64) + at, mask=real, other=MISSING)
        else:
            sample = owner_of(offsets, batch, at, real, row_steps)
            if source == 5:
                first_row = tl.load(offsets + sample, mask=real, other=0)
                since = tl.load(ts + at - 1, mask=real & (at > first_row), other=MISSING)
            else:
                since = newest_seen(groups, histories, seen, realtime, sample, at, real, HISTORIES)
        known = since != MISSING
        now = tl.load(ts + at, mask=real, other=0)
        seconds = (now - tl.where(known, since, 0)).to(tl.float64) / 1000.0
        number = tl.where(known, seconds.to(tl.float32), float("nan"))
    size, first, start = tl.load(what + 5), tl.load(what + 6), tl.load(what + 7)
    out = tl.load(place + 2) + at
    if encoding >= 5:
        found = number
        if encoding == 5:
            sign = tl.where(number > 0.0, 1.0, tl.where(number < 0.0, -1.0, number))
            found = sign * log1p(tl.abs(number))
        else:
            found = (number - tl.load(scales + 2 * instruction)) * tl.load(scales + 2 * instruction + 1)
        tl.store(numbers + out, found, mask=real)
    else:
        row = id_
        if encoding == 1:
            place_of = count_up_to(ids + first, size, id_, real, edge_steps, False)
            there = real & (place_of < size)
            same = there & (tl.load(ids + first + place_of, mask=there, other=MISSING) == id_)
            row = tl.load(id_rows + first + place_of, mask=same, other=UNKNOWN_ROW)
        if encoding == 2:
            row = tl.where((id_ >= 0) & (id_ < size), id_ + SPECIAL, UNKNOWN_ROW)
        if encoding == 3:
            row = (mixed(id_) & 0x7FFFFFFFFFFFFFFF) % size + SPECIAL
        if encoding == 4:
            x = number.to(tl.float64)
            bucket = count_up_to(edges + first, size, x, real, edge_steps, True)
            row = tl.where(number == number, bucket + SPECIAL, MISSING_ROW)
        elif encoding > 0:
            row = tl.where(id_ == MISSING, MISSING_ROW, row)
        tl.store(rows + out, row + start, mask=real)

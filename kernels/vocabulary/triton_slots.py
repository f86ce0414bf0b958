"""The slots of dynamic vocabularies: linear probing, entered by compare-and-swap, with tombstones that go when the table is filled anew."""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.lookups.triton_rows import column, mixed

FIELDS = tl.constexpr(23)
EMPTY, TOMBSTONE = tl.constexpr(-(2**63)), tl.constexpr(-(2**63) + 1)
MISSING_ROW, UNKNOWN_ROW, SPECIAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
# As `layout.Counter`.
USED, FREE, ROWS, HIGH, REBUILD = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3), tl.constexpr(4)
WAITING, SEEN, EVICTED, GIVEN = tl.constexpr(5), tl.constexpr(6), tl.constexpr(7), tl.constexpr(8)
FORGOTTEN = tl.constexpr(9)


@triton.jit
def allowed(ids):
    """The two smallest int64 mean something to the slots; as ids they're read as the third."""
    return tl.maximum(ids, TOMBSTONE + 1)


@triton.jit
def find(keys, mask, wanted, real):
    """The slot of each id, -1 where there is none. A probe ends at an EMPTY slot, of which there are always some."""
    slot = mixed(wanted) & mask
    found = tl.full(wanted.shape, -1, dtype=tl.int64)
    active = real
    while tl.max(active.to(tl.int32), 0) > 0:
        key = tl.load(keys + slot, mask=active, other=EMPTY)
        found = tl.where(active & (key == wanted), slot, found)
        active = active & (key != wanted) & (key != EMPTY)
        slot = (slot + 1) & mask
    return found


@triton.jit
def claim(keys, mask, wanted, real):
    """The slot of each of distinct ids, which takes the first EMPTY one where it had none; and whether it did."""
    slot = mixed(wanted) & mask
    found = tl.zeros(wanted.shape, dtype=tl.int64)
    fresh = real & (wanted != wanted)
    active = real
    while tl.max(active.to(tl.int32), 0) > 0:
        key = tl.load(keys + slot, mask=active, other=EMPTY)
        vacant = active & (key == EMPTY)
        # Where there is nothing to claim the id swaps with itself, which changes nothing.
        before = tl.atomic_cas(keys + slot, tl.where(vacant, EMPTY, wanted), wanted)
        won = vacant & (before == EMPTY)
        done = won | (active & (key == wanted))
        found = tl.where(done, slot, found)
        fresh = fresh | won
        active = active & (done == 0)
        # Also past a slot that it lost: another id is there now, whatever this processor's cache still says.
        slot = (slot + 1) & mask
    return found, fresh


@triton.jit
def forget(what, entry, id_, those, indexed):
    """Ids leave their entries, and those that are `indexed` their slots."""
    keys, ids = column(tl.load(what), tl.int64), column(tl.load(what + 2), tl.int64)
    slot = find(keys, tl.load(what + 8), id_, those & indexed)
    tl.store(keys + slot, tl.full(id_.shape, TOMBSTONE, dtype=tl.int64), mask=those & indexed)
    tl.store(ids + entry, tl.full(id_.shape, EMPTY, dtype=tl.int64), mask=those)


@triton.jit
def put_back(what, entry, those):
    """Entries beyond the rows are free again."""
    counters, stack = column(tl.load(what + 7), tl.int64), column(tl.load(what + 6), tl.int32)
    number = those.to(tl.int64)
    top = tl.atomic_add(counters + FREE, tl.sum(number, 0))
    tl.store(stack + top + tl.cumsum(number, 0) - 1, entry.to(tl.int32), mask=those)


@triton.jit
def clear_kernel(vocabularies, BLOCK: tl.constexpr):
    """All slots EMPTY where REBUILD says so. `vocabularies`: [T, FIELDS] int64 as `layout.VocabularyPlace`, here and everywhere."""
    what = vocabularies + tl.program_id(1) * FIELDS
    counters = column(tl.load(what + 7), tl.int64)
    if tl.load(counters + REBUILD) == 0:
        return
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = at <= tl.load(what + 8)
    tl.store(column(tl.load(what), tl.int64) + at, tl.full([BLOCK], EMPTY, dtype=tl.int64), mask=real)
    if tl.program_id(0) == 0:
        tl.store(counters + USED, tl.zeros([], dtype=tl.int64))


@triton.jit
def enter_kernel(vocabularies, BLOCK: tl.constexpr):
    """Every entry's id into the slots that were cleared."""
    what = vocabularies + tl.program_id(1) * FIELDS
    counters = column(tl.load(what + 7), tl.int64)
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if (tl.load(counters + REBUILD) == 0) | (tl.program_id(0).to(tl.int64) * BLOCK >= tl.load(what + 11)):
        return
    id_ = tl.load(column(tl.load(what + 2), tl.int64) + entry, mask=entry < tl.load(what + 11), other=EMPTY)
    live = id_ > TOMBSTONE
    slot, fresh = claim(column(tl.load(what), tl.int64), tl.load(what + 8), id_, live)
    tl.store(column(tl.load(what + 1), tl.int32) + slot, entry.to(tl.int32), mask=live)
    tl.atomic_add(counters + USED, tl.sum(fresh.to(tl.int64), 0))


@triton.jit
def look_up_kernel(vocabularies, BLOCK: tl.constexpr):
    """The physical rows of the ids that are asked for."""
    what = vocabularies + tl.program_id(1) * FIELDS
    count = tl.load(what + 21)
    if tl.program_id(0).to(tl.int64) * BLOCK >= count:
        return
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = at < count
    raw = tl.load(column(tl.load(what + 19), tl.int64) + at, mask=real, other=EMPTY)
    known = raw != EMPTY
    slot = find(column(tl.load(what), tl.int64), tl.load(what + 8), allowed(raw), known)
    entry = tl.load(column(tl.load(what + 1), tl.int32) + slot, mask=slot >= 0, other=0).to(tl.int64)
    row = tl.where((slot >= 0) & (entry < tl.load(what + 10)), entry + SPECIAL, UNKNOWN_ROW)
    row = tl.where(known, row, MISSING_ROW)
    tl.store(column(tl.load(what + 20), tl.int64) + at, row + tl.load(what + 22), mask=real)

"""A step of dynamic vocabularies: what `tokenization.dynamic.DynamicVocabulary.update` does, without a number that the host must know."""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.lookups.triton_rows import column, count_up_to
from genrank.kernels.vocabulary.triton_slots import (
    EMPTY,
    EVICTED,
    FIELDS,
    FORGOTTEN,
    FREE,
    GIVEN,
    HIGH,
    REBUILD,
    ROWS,
    SEEN,
    SPECIAL,
    TOMBSTONE,
    USED,
    WAITING,
    allowed,
    claim,
    find,
    forget,
    put_back,
)


@triton.jit
def begin_kernel(vocabularies, BLOCK: tl.constexpr):
    """Rows unseen for longer than max_age before the step's time lose their owners; whether the slots have room for the step."""
    what = vocabularies + tl.program_id(1) * FIELDS
    counters = column(tl.load(what + 7), tl.int64)
    full = tl.load(counters + USED) + tl.load(what + 17) > tl.load(what + 9)
    if tl.program_id(0) == 0:
        tl.store(counters + REBUILD, full.to(tl.int64))
        tl.store(counters + WAITING, tl.zeros([], dtype=tl.int64))
        tl.store(counters + SEEN, tl.zeros([], dtype=tl.int64))
    capacity, max_age = tl.load(what + 10), tl.load(what + 14)
    if (max_age < 0) | (tl.program_id(0).to(tl.int64) * BLOCK >= capacity):
        return
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    id_ = tl.load(column(tl.load(what + 2), tl.int64) + entry, mask=entry < capacity, other=EMPTY)
    live = id_ > TOMBSTONE
    time = tl.load(column(tl.load(what + 5), tl.int64) + entry, mask=live, other=0)
    old = live & (time < tl.load(column(tl.load(what + 18), tl.int64)) - max_age)
    # Slots that are filled anew in a moment may never have been filled: they grew, and their memory holds anything.
    forget(what, entry, id_, old, old & (full == 0))
    tl.atomic_add(counters + ROWS, -tl.sum(old.to(tl.int64), 0))


@triton.jit(do_not_specialize=("steps",))
def count_kernel(vocabularies, ordered, waiting, due, steps, BLOCK: tl.constexpr):
    """Counts the sightings of `ordered` ascending ids, the first of equal ones for all; new ids get entries. Writes to `waiting` the entry of
    each id that is due a row, else -1, and to `due` whether it is. `steps`: of a binary search among them."""
    what = vocabularies + tl.program_id(1) * FIELDS
    first, count = tl.load(what + 16), tl.load(what + 17)
    if tl.program_id(0).to(tl.int64) * BLOCK >= count:
        return
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = at < count
    sorted_ids = ordered + first
    raw = tl.load(sorted_ids + at, mask=real, other=EMPTY)
    before = tl.load(sorted_ids + at - 1, mask=real & (at > 0), other=EMPTY)
    id_ = allowed(raw)
    head = (raw != EMPTY) & ((before == EMPTY) | (allowed(before) != id_))
    seen = count_up_to(sorted_ids, count, id_, head, steps, True) - at
    slot, fresh = claim(column(tl.load(what), tl.int64), tl.load(what + 8), id_, head)
    counters, places = column(tl.load(what + 7), tl.int64), column(tl.load(what + 1), tl.int32)
    number = fresh.to(tl.int64)
    new = tl.sum(number, 0)
    top = tl.atomic_add(counters + FREE, -new)
    stack = column(tl.load(what + 6), tl.int32)
    entry = tl.load(stack + top - tl.cumsum(number, 0), mask=fresh, other=0)
    tl.store(places + slot, entry, mask=fresh)
    entry = tl.where(fresh, entry, tl.load(places + slot, mask=head & (fresh == 0), other=0)).to(tl.int64)
    counts = column(tl.load(what + 3), tl.int64) + entry
    seen += tl.load(counts, mask=head & (fresh == 0), other=0)
    tl.store(counts, seen, mask=head)
    tl.store(column(tl.load(what + 4), tl.int64) + entry, tl.zeros_like(entry) + tl.load(what + 15), mask=head)
    now = tl.load(column(tl.load(what + 18), tl.int64))
    tl.store(column(tl.load(what + 5), tl.int64) + entry, tl.zeros_like(entry) + now, mask=head)
    tl.store(column(tl.load(what + 2), tl.int64) + entry, id_, mask=fresh)
    has_row = head & (entry < tl.load(what + 10))
    waits = head & (has_row == 0) & (seen >= tl.load(what + 12))
    tl.store(waiting + first + at, tl.where(waits, entry, -1), mask=real)
    tl.store(due + first + at, waits.to(tl.int32), mask=real)
    tl.atomic_add(counters + USED, new)
    tl.atomic_add(counters + WAITING, tl.sum(waits.to(tl.int64), 0))
    tl.atomic_add(counters + SEEN, tl.sum(has_row.to(tl.int64), 0))


@triton.jit
def rank_of(ranks, first, at, real):
    """The place of each id that is due a row among those of its vocabulary, from the running sum over all vocabularies."""
    base = tl.load(ranks + first - 1, mask=first > 0, other=0)
    return tl.load(ranks + first + at, mask=real, other=0) - base - 1


@triton.jit
def plan_kernel(vocabularies, waiting, ranks, SHARE: tl.constexpr, BLOCK: tl.constexpr):
    """How many rows are evicted and given and how many ids without a row are forgotten; marks the entries of ids that will get a row. At least
    1 / SHARE of the rows are evicted at once."""
    what = vocabularies + tl.program_id(1) * FIELDS
    first, count, capacity = tl.load(what + 16), tl.load(what + 17), tl.load(what + 10)
    counters = column(tl.load(what + 7), tl.int64)
    rows, due = tl.load(counters + ROWS), tl.load(counters + WAITING)
    needed = due - (capacity - rows)
    evicted = tl.minimum(tl.maximum(needed, capacity // SHARE), rows - tl.load(counters + SEEN))
    evicted = tl.where(needed > 0, evicted, 0)
    given = tl.minimum(due, capacity - rows + evicted)
    if tl.program_id(0) == 0:
        pending = tl.load(what + 11) - capacity - tl.load(counters + FREE) - given
        tl.store(counters + EVICTED, evicted)
        tl.store(counters + GIVEN, given)
        tl.store(counters + FORGOTTEN, tl.where(pending > capacity, pending - capacity // 2, 0))
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = at < count
    entry = tl.load(waiting + first + at, mask=real, other=-1)
    chosen = (entry >= 0) & (rank_of(ranks, first, at, real) < given)
    ids = column(tl.load(what + 2), tl.int64)
    tl.store(ids + entry, tl.full([BLOCK], TOMBSTONE, dtype=tl.int64), mask=chosen)


@triton.jit(do_not_specialize=("blocks",))
def free_rows_kernel(vocabularies, free, before, given, blocks, BLOCK: tl.constexpr):
    """The lowest free rows, as physical rows, to `given`. `free`, `before` [T, blocks]: free rows of each block of BLOCK, and their
    running sum."""
    what = vocabularies + tl.program_id(1) * FIELDS
    wanted = tl.load(column(tl.load(what + 7), tl.int64) + GIVEN)
    capacity = tl.load(what + 10)
    if (wanted == 0) | (tl.program_id(0).to(tl.int64) * BLOCK >= capacity):
        return
    block = tl.program_id(1).to(tl.int64) * blocks + tl.program_id(0)
    rank = tl.load(before + block) - tl.load(free + block)
    if rank >= wanted:
        return
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    id_ = tl.load(column(tl.load(what + 2), tl.int64) + entry, mask=entry < capacity, other=TOMBSTONE)
    vacant = id_ == EMPTY
    rank += tl.cumsum(vacant.to(tl.int64), 0) - 1
    row = entry + SPECIAL + tl.load(what + 22)
    tl.store(given + tl.load(what + 16) + rank, row, mask=vacant & (rank < wanted))


@triton.jit
def give_kernel(vocabularies, ordered, waiting, ranks, given, BLOCK: tl.constexpr):
    """Ids that are due a row move to theirs, the lowest id to the lowest row, with all that is known of them."""
    what = vocabularies + tl.program_id(1) * FIELDS
    first, count = tl.load(what + 16), tl.load(what + 17)
    counters = column(tl.load(what + 7), tl.int64)
    wanted = tl.load(counters + GIVEN)
    if (wanted == 0) | (tl.program_id(0).to(tl.int64) * BLOCK >= count):
        return
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = at < count
    entry = tl.load(waiting + first + at, mask=real, other=-1)
    rank = rank_of(ranks, first, at, real)
    moves = (entry >= 0) & (rank < wanted)
    row = tl.load(given + first + rank, mask=moves, other=0) - SPECIAL - tl.load(what + 22)
    id_ = allowed(tl.load(ordered + first + at, mask=moves, other=EMPTY))
    for field in tl.static_range(3, 6):
        known = column(tl.load(what + field), tl.int64)
        tl.store(known + row, tl.load(known + entry, mask=moves, other=0), mask=moves)
    ids = column(tl.load(what + 2), tl.int64)
    tl.store(ids + row, id_, mask=moves)
    tl.store(ids + entry, tl.full([BLOCK], EMPTY, dtype=tl.int64), mask=moves)
    slot = find(column(tl.load(what), tl.int64), tl.load(what + 8), id_, moves)
    tl.store(column(tl.load(what + 1), tl.int32) + slot, row.to(tl.int32), mask=moves)
    put_back(what, entry, moves)
    tl.atomic_max(counters + HIGH, tl.max(tl.where(moves, row + 1, 0), 0))
    if tl.program_id(0) == 0:
        tl.atomic_add(counters + ROWS, wanted - tl.load(counters + EVICTED))

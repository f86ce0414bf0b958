"""Which rows are evicted and which ids without a row are forgotten: the k lowest by (score, row) or (score, id), k known to the device alone.

A radix select (Alabi et al. 2012, "Fast k-selection algorithms for graphics processing units"): a pass a digit from the highest counts the
candidates' digits; the next pass keeps those in the bin where the k-th lies. No two keys are equal, so the last digit leaves the k-th itself. Where
k is 0 every pass ends at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.lookups.triton_rows import column
from genrank.kernels.vocabulary.triton_slots import (
    EMPTY,
    EVICTED,
    FIELDS,
    FORGOTTEN,
    GIVEN,
    TOMBSTONE,
    forget,
    put_back,
)


@triton.jit
def keys_of(what, entry, inside, of_rows, step_bits, COUNT_BITS: tl.constexpr):
    """(id, whether it may go, score, order among equals) of entries. Rows of the current step stay; marked entries do, too."""
    id_ = tl.load(column(tl.load(what + 2), tl.int64) + entry, mask=inside, other=EMPTY)
    live = id_ > TOMBSTONE
    step = tl.load(column(tl.load(what + 4), tl.int64) + entry, mask=live, other=0)
    count = tl.load(column(tl.load(what + 3), tl.int64) + entry, mask=live, other=0)
    count = tl.minimum(count, (1 << COUNT_BITS) - 1)
    may_go = live & ((step < tl.load(what + 15)) | (of_rows == 0))
    by_age = (of_rows == 0) | (tl.load(what + 13) == 1)
    score = tl.where(by_age, (step << COUNT_BITS) + count, (count << step_bits) + step)
    return id_, may_go, score, tl.where(of_rows, entry, id_) ^ EMPTY


@triton.jit
def narrowed(counted, kept, wanted, earlier, of_order, shift, BINS: tl.constexpr):
    """The digits that are known after a pass (score, order) and how many of the k lowest have exactly these. `counted` [BINS] and `kept` [3]: of
    the pass; `earlier`: 0 before the first one."""
    score, order, left = tl.zeros([], dtype=tl.int64), tl.zeros([], dtype=tl.int64), wanted
    if earlier:
        bins = tl.arange(0, BINS)
        inside = tl.load(counted + bins)
        score, order, left = tl.load(kept), tl.load(kept + 1), tl.load(kept + 2)
        digit = tl.sum((tl.cumsum(inside, 0) < left).to(tl.int32), 0).to(tl.int64)
        left -= tl.sum(tl.where(bins < digit, inside, 0), 0)
        score += tl.where(of_order, 0, digit << shift)
        order += tl.where(of_order, digit << shift, 0)
    return score, order, left


@triton.jit(do_not_specialize=("number", "of_order", "shift", "last_of_order", "last_shift", "step_bits"))
def select_kernel(
    vocabularies, counted, kept, number, of_order, shift, last_of_order, last_shift, step_bits,
    COUNT_BITS: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass `number`: counts a digit of the candidates' scores or (`of_order`) orders. A selection is a vocabulary's rows, or its ids without.
    `counted` [passes, 2 T, BINS] int32 of zeros, `kept` [passes, 2 T, 3] int64; `last_*`: of the pass before."""
    selection, selections = tl.program_id(1), tl.num_programs(1)
    what = vocabularies + selection // 2 * FIELDS
    of_rows = selection % 2 == 0
    wanted = tl.load(column(tl.load(what + 7), tl.int64) + tl.where(of_rows, EVICTED, FORGOTTEN))
    if wanted == 0:
        return
    last = (number - 1) * selections + selection
    score, order, left = narrowed(
        counted + last * BINS, kept + last * 3, wanted, number > 0, last_of_order != 0, last_shift, BINS
    )
    own = number * selections + selection
    if tl.program_id(0) == 0:
        tl.store(kept + own * 3, score)
        tl.store(kept + own * 3 + 1, order)
        tl.store(kept + own * 3 + 2, left)
    # The digits before this one.
    above = (tl.full([], -1, dtype=tl.int64) << shift) * BINS
    keep_score, keep_order = tl.where(of_order != 0, -1, above), tl.where(of_order != 0, above, 0)
    capacity, entries = tl.load(what + 10), tl.load(what + 11)
    begin, end = tl.where(of_rows, 0, capacity), tl.where(of_rows, capacity, entries)
    found = tl.zeros([BINS], dtype=tl.int32)
    for at in range(begin + tl.program_id(0) * BLOCK, end, tl.num_programs(0) * BLOCK):
        entry = at + tl.arange(0, BLOCK).to(tl.int64)
        _, may_go, own_score, own_order = keys_of(what, entry, entry < end, of_rows, step_bits, COUNT_BITS)
        same = may_go & ((own_score & keep_score) == score) & ((own_order & keep_order) == order)
        digit = (tl.where(of_order != 0, own_order, own_score) >> shift) & (BINS - 1)
        found += tl.histogram(digit.to(tl.int32), BINS, mask=same)
    tl.atomic_add(counted + own * BINS + tl.arange(0, BINS), found, mask=found > 0)


@triton.jit(do_not_specialize=("passes", "last_shift", "step_bits", "blocks"))
def release_kernel(
    vocabularies, counted, kept, free, passes, last_shift, step_bits, blocks,
    COUNT_BITS: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The selected rows and ids go; and how many rows are free in each block of BLOCK, to `free` [T, blocks] int32."""
    what = vocabularies + tl.program_id(1) * FIELDS
    counters = column(tl.load(what + 7), tl.int64)
    capacity, entries = tl.load(what + 10), tl.load(what + 11)
    row_blocks = (capacity + BLOCK - 1) // BLOCK
    of_rows = tl.program_id(0) < row_blocks
    wanted = tl.load(counters + tl.where(of_rows, EVICTED, FORGOTTEN))
    if (wanted == 0) & ((of_rows == 0) | (tl.load(counters + GIVEN) == 0)):
        return
    block = tl.program_id(0).to(tl.int64)
    begin = tl.where(of_rows, block * BLOCK, capacity + (block - row_blocks) * BLOCK)
    end = tl.where(of_rows, capacity, entries)
    if begin >= end:
        return
    entry = begin + tl.arange(0, BLOCK)
    id_, may_go, score, order = keys_of(what, entry, entry < end, of_rows, step_bits, COUNT_BITS)
    goes = may_go & (wanted > 0)
    if wanted > 0:
        last = (passes - 1) * 2 * tl.num_programs(1) + 2 * tl.program_id(1) + tl.where(of_rows, 0, 1)
        limit, limit_order, _ = narrowed(
            counted + last * BINS, kept + last * 3, wanted, passes > 0, passes > 0, last_shift, BINS
        )
        below = (score == limit) & ((order ^ EMPTY) <= (limit_order ^ EMPTY))
        goes = goes & ((score < limit) | below)
        forget(what, entry, id_, goes, goes)
    if of_rows:
        vacant = (entry < end) & ((id_ == EMPTY) | goes)
        tl.store(free + tl.program_id(1).to(tl.int64) * blocks + block, tl.sum(vacant.to(tl.int32), 0))
    else:
        put_back(what, entry, goes)

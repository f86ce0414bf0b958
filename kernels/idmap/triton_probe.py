"""The id map's kernels: probing with compare-and-swap."""

from __future__ import annotations

import triton
import triton.language as tl

from genrank.kernels.launch import VARYING

EMPTY_KEY = tl.constexpr(-(2**63))
TOMBSTONE_KEY = tl.constexpr(-(2**63) + 1)


@triton.jit
def hashed(x):
    """splitmix64's finaliser, as `kernels.idmap.hash_ids`."""
    x = x.to(tl.uint64, bitcast=True)
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return (x ^ (x >> 31)).to(tl.int64, bitcast=True)


@triton.jit(do_not_specialize=VARYING)
def find_kernel(keys, ids, found, count, mask, BLOCK: tl.constexpr):
    """The slot of each id, -1 where there is none. A probe ends at an EMPTY slot, of which the map always has some."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = at < count
    wanted = tl.load(ids + at, mask=real, other=0)
    slot = hashed(wanted) & mask
    result = tl.full([BLOCK], -1, dtype=tl.int64)
    active = real
    while tl.max(active.to(tl.int32), 0) > 0:
        key = tl.load(keys + slot, mask=active, other=EMPTY_KEY)
        result = tl.where(active & (key == wanted), slot, result)
        active = active & (key != wanted) & (key != EMPTY_KEY)
        slot = (slot + 1) & mask
    tl.store(found + at, result, mask=real)


@triton.jit(do_not_specialize=VARYING)
def place_kernel(keys, rows, ids, new_rows, taken, count, mask, BLOCK: tl.constexpr):
    """Store distinct ids that the map does not hold; `taken` counts the EMPTY slots used."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = at < count
    mine = tl.load(ids + at, mask=real, other=0)
    row = tl.load(new_rows + at, mask=real, other=0)
    slot = hashed(mine) & mask
    fresh = tl.zeros([BLOCK], dtype=tl.int64)
    active = real
    while tl.max(active.to(tl.int32), 0) > 0:
        key = tl.load(keys + slot, mask=active, other=0)
        vacant = active & (key <= TOMBSTONE_KEY)
        # Where there is nothing to claim the id swaps with itself, which changes nothing.
        before = tl.atomic_cas(keys + slot, tl.where(vacant, key, mine), mine)
        won = vacant & (before == key)
        tl.store(rows + slot, row, mask=won)
        fresh += tl.where(won & (key == EMPTY_KEY), 1, 0)
        active = active & (won == 0)
        # Also past a slot that it lost: another id is there now, whatever this processor's cache still says.
        slot = (slot + 1) & mask
    tl.atomic_add(taken, tl.sum(fresh, 0))

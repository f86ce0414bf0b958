"""Id map and sparse optimisers for GPU: probing with compare-and-swap, and one pass over each touched row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from genrank.kernels.launch import VARYING, Tuned

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


@triton.jit(do_not_specialize=VARYING)
def enter_kernel(keys, first, counts, ids, slots, count, mask, BLOCK: tl.constexpr):
    """Give each id a slot of its own kind; of each slot, the first place where its id stands, and how many do.

    Behind the `mask + 1` slots of `keys` come one for the id that looks like an EMPTY slot, and BLOCK that absorb the
    swaps of lanes that have nothing to claim: compare-and-swap knows no mask, and lanes with one popular id would
    otherwise all hold on to its slot.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = at < count
    mine = tl.load(ids + at, mask=real, other=0)
    odd = mine == EMPTY_KEY
    slot = tl.where(odd, mask + 1, hashed(mine) & mask)
    aside = mask + 2 + tl.arange(0, BLOCK)
    active = real & (odd == 0)
    while tl.max(active.to(tl.int32), 0) > 0:
        key = tl.load(keys + slot, mask=active, other=0)
        vacant = active & (key == EMPTY_KEY)
        before = key
        if tl.max(vacant.to(tl.int32), 0) > 0:
            where = tl.where(vacant, slot, aside)
            swapped = tl.atomic_cas(keys + where, tl.where(vacant, EMPTY_KEY, mine), mine)
            before = tl.where(vacant, swapped, key)
        mine_now = (before == mine) | (vacant & (before == EMPTY_KEY))
        active = active & (mine_now == 0)
        slot = tl.where(active, (slot + 1) & mask, slot)
    tl.store(slots + at, slot, mask=real)
    earlier = tl.load(first + slot, mask=real, other=0) <= at
    tl.atomic_min(first + slot, at, mask=real & (earlier == 0), sem="relaxed")
    tl.atomic_add(counts + slot, 1, mask=real, sem="relaxed")


@triton.jit(do_not_specialize=VARYING)
def rowwise_kernel(
    table, mean, state, rows, order, grads, count, dim, lr, eps, beta1, beta2, correction1, correction2, weight_decay,
    ADAM: tl.constexpr, WIDTH: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """One touched row a program: sum its gradients, in order, and update it. `rows` is sorted; a program that is not
    at the first of equal rows has nothing to do."""
    first = tl.program_id(0)
    row = tl.load(rows + first)
    if tl.load(rows + first - 1, mask=first > 0, other=-1) == row:
        return
    column = tl.arange(0, WIDTH)
    inside = column < dim
    total = tl.zeros([WIDTH], dtype=tl.float32)
    start = first
    more = 1
    while more > 0:
        at = start + tl.arange(0, PIECE)
        same = (at < count) & (tl.load(rows + at, mask=at < count, other=-1) == row)
        source = tl.load(order + at, mask=same, other=0)
        grad = tl.load(grads + source[:, None] * dim + column[None, :], mask=same[:, None] & inside[None, :], other=0.0)
        total += tl.sum(grad.to(tl.float32), 0)
        more = tl.min(same.to(tl.int32), 0)
        start += PIECE
    square = tl.sum(total * total, 0) / dim
    at = table + row * dim + column
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if ADAM:
        m = beta1 * tl.load(mean + row * dim + column, mask=inside, other=0.0) + (1.0 - beta1) * total
        v = beta2 * tl.load(state + row) + (1.0 - beta2) * square
        tl.store(mean + row * dim + column, m, mask=inside)
        tl.store(state + row, v)
        value -= lr * (m / correction1 / (tl.sqrt(v / correction2) + eps) + weight_decay * value)
    else:
        v = tl.load(state + row) + square
        tl.store(state + row, v)
        value -= lr * total / (tl.sqrt(v) + eps)
    tl.store(at, value.to(table.dtype.element_ty), mask=inside)


PROBES = [triton.Config({"BLOCK": block}, num_warps=4, num_stages=1) for block in (256, 128)]
# Writes to its own inputs: tuning would apply each update many times, so these have one configuration.
find_tuned = Tuned(find_kernel, PROBES[:1], [])
enter_tuned = Tuned(enter_kernel, PROBES[:1], [])
place_tuned = Tuned(place_kernel, PROBES[:1], [])
rowwise_tuned = Tuned(rowwise_kernel, [triton.Config({"PIECE": 16}, num_warps=4, num_stages=1)], [])


def find_slots(keys: Tensor, ids: Tensor) -> Tensor:
    found = torch.empty_like(ids)
    if len(ids):
        find_tuned(
            lambda chosen: (triton.cdiv(len(ids), chosen["BLOCK"]),),
            [keys, ids.contiguous(), found, len(ids), len(keys) - 1],
            {},
        )
    return found


def place(keys: Tensor, rows: Tensor, ids: Tensor, new_rows: Tensor) -> int:
    taken = torch.zeros(1, dtype=torch.int64, device=keys.device)
    if len(ids):
        place_tuned(
            lambda chosen: (triton.cdiv(len(ids), chosen["BLOCK"]),),
            [keys, rows, ids.contiguous(), new_rows.contiguous(), taken, len(ids), len(keys) - 1],
            {},
        )
    return int(taken.item())


def enter(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The slot of each id, and of each slot the first place of its id and how often it occurs: int64 [N], int32, int32."""
    size = 1 << max(4, (2 * len(ids) - 1).bit_length())
    block = PROBES[0].kwargs["BLOCK"]
    keys = torch.full((size + 1 + block,), -(2**63), dtype=torch.int64, device=ids.device)
    first = torch.full((size + 1,), len(ids), dtype=torch.int32, device=ids.device)
    counts = torch.zeros(size + 1, dtype=torch.int32, device=ids.device)
    slots = torch.empty_like(ids)
    enter_tuned(
        lambda chosen: (triton.cdiv(len(ids), chosen["BLOCK"]),),
        [keys, first, counts, ids.contiguous(), slots, len(ids), size - 1],
        {},
    )
    return slots, first, counts


@torch.library.custom_op("genrank::unique_by_first", mutates_args=())
def unique_op(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not len(ids):
        return torch.empty_like(ids), torch.empty_like(ids), torch.empty_like(ids)
    slots, first, counts = enter(ids)
    places = first[slots].long()
    begins = places == torch.arange(len(ids), device=ids.device)
    rank = begins.cumsum(0) - 1
    at = begins.nonzero().flatten()
    return ids[at], rank[places], counts[slots[at]].long()


@unique_op.register_fake
def _(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    distinct = torch.library.get_ctx().new_dynamic_size()
    return ids.new_empty(distinct), torch.empty_like(ids), ids.new_empty(distinct)


def rowwise(
    table: Tensor,
    mean: Tensor | None,
    state: Tensor,
    rows: Tensor,
    grads: Tensor,
    *,
    lr: float,
    eps: float,
    betas: tuple[float, float],
    step: int,
    weight_decay: float,
) -> None:
    """Adam where `mean` is given, Adagrad where not."""
    if not len(rows):
        return
    if not all(t.is_contiguous() for t in (table, state, mean) if t is not None):
        raise ValueError("table and the optimizer's state must be contiguous: they are updated in place")
    if grads.shape != (len(rows), table.shape[1]):
        raise ValueError(f"grads must be [{len(rows)}, {table.shape[1]}], got {list(grads.shape)}")
    ordered, order = torch.sort(rows, stable=True)
    corrections = (1 - betas[0] ** step, 1 - betas[1] ** step) if mean is not None else (1.0, 1.0)
    rowwise_tuned(
        lambda chosen: (len(rows),),
        [
            *(table, state if mean is None else mean, state, ordered, order, grads.contiguous(), len(rows)),
            *(table.shape[1], float(lr), float(eps), *map(float, (*betas, *corrections, weight_decay))),
        ],
        {"ADAM": mean is not None, "WIDTH": max(16, triton.next_power_of_2(table.shape[1]))},
    )

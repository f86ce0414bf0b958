"""Units of work for the Gluon kernels: made once per batch on the device, from those of `kernels.attention.plan`, in its order."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from genrank.kernels.attention.bias import RelativeBias
from genrank.kernels.attention.hopper.triton_walks import key_walks_kernel, places_kernel, query_walks_kernel
from genrank.kernels.attention.interval import IntervalMask, local_positions, planned
from genrank.kernels.attention.plan import CHUNK, UNIT, Plan, make_plan
from genrank.kernels.launch import Tuned

COLUMNS = 12
"""int32 of a record: `triton_walks.py` says which."""

BEYOND = 128
"""Tokens after the last one that the kernels may read intervals of, and write gradients of keys and values to."""

query_walks = Tuned(query_walks_kernel, [triton.Config({}, num_warps=4)], [])
key_walks = Tuned(key_walks_kernel, [triton.Config({}, num_warps=4)], [])
places_tuned = Tuned(places_kernel, [triton.Config({}, num_warps=4)], [])
KERNELS = (query_walks, key_walks, places_tuned)


class Places(NamedTuple):
    """Where the tokens stand, for relative biases; zeros for those without a sample."""

    positions: Tensor
    """int32 [T + BEYOND]: given ones, or those in the sample."""
    times: Tensor
    """int64 [T + BEYOND], two float32 each: the units of time since the sample's first token as a coarse number (in 2^23, the upper half) and
    a fine one, [0, 2^23). The difference of two tokens is then right to float32's own rounding, up to 2^47 units from the first one."""


class PlaceSources(NamedTuple):
    """What places are made of, kept as long as the first of these tensors."""

    begin: Tensor
    offsets: Tensor
    more: Tensor | None


def base_plan(mask: IntervalMask, key_tokens: int) -> Plan:
    """The plan that the other kernels share."""
    return planned(mask, ("triton", key_tokens), lambda: make_plan(mask, key_tokens))


def query_records(mask: IntervalMask) -> Tensor:
    """int32 [programs, 2, COLUMNS]: of `UNIT` queries each, a heavy and a light unit of one sample together."""
    return planned(mask, "hopper queries", lambda: make_query_records(mask))


def key_records(mask: IntervalMask, rows: int) -> Tensor:
    """int32 [units, COLUMNS]: of `rows` keys each, a divisor of `UNIT`."""
    return planned(mask, ("hopper keys", rows), lambda: make_key_records(mask, rows))


def intervals(mask: IntervalMask) -> Tensor:
    """int32 [4, T + BEYOND]: first key and end of the keys that each query sees in tiles of its interval, and the same in tiles
    of own keys, where only those outside their own interval see themselves. All within the sample."""
    return planned(mask, "hopper intervals", lambda: make_intervals(mask))


def places(mask: IntervalMask, bias: RelativeBias) -> Places:
    """Made once a batch."""
    sources = [t for t in (bias.timestamps, bias.positions) if t is not None]
    kept = PlaceSources(sources[0], mask.q_offsets, sources[1] if len(sources) > 1 else None) if sources else mask
    key = ("hopper places", bias.timestamps is None)
    return planned(kept, key, lambda: make_places(mask, bias))


def make_places(mask: IntervalMask, bias: RelativeBias) -> Places:
    """See `places`."""
    tokens = len(mask.begin)
    units = base_plan(mask, tokens).q_units
    made = Places(units.new_zeros(tokens + BEYOND), units.new_zeros(tokens + BEYOND, dtype=torch.int64))
    absent = units
    stamps, positions = (absent if t is None else t.contiguous() for t in (bias.timestamps, bias.positions))
    places_tuned(
        lambda _: (len(units),),
        [stamps, positions, units, *made],
        {"ROWS": UNIT, "HAS_TIMES": bias.timestamps is not None, "HAS_POSITIONS": bias.positions is not None},
    )
    return made


def make_query_records(mask: IntervalMask) -> Tensor:
    """See `query_records`."""
    tokens = len(mask.begin)
    plan = base_plan(mask, tokens)
    pairs = pair_units(plan.q_units, tokens, len(mask.q_offsets) - 1)
    records = torch.empty(len(pairs), 2, COLUMNS, dtype=torch.int32, device=pairs.device)
    query_walks(
        lambda _: (2 * len(pairs),), [mask.begin, mask.end, plan.q_units, pairs, records, tokens], {"ROWS": UNIT}
    )
    return records


def make_key_records(mask: IntervalMask, rows: int) -> Tensor:
    """See `key_records`."""
    tokens = len(mask.begin)
    plan = base_plan(mask, tokens)
    count = len(plan.k_units) * (UNIT // rows)
    records = torch.empty(count, COLUMNS, dtype=torch.int32, device=plan.k_units.device)
    key_walks(
        lambda _: (count,),
        [mask.begin, mask.end, plan.k_units, plan.summary, records, tokens],
        {"ROWS": rows, "UNIT_ROWS": UNIT, "CHUNK": CHUNK},
    )
    return records


def make_intervals(mask: IntervalMask) -> Tensor:
    """See `intervals`."""
    tokens, last = len(mask.begin), len(mask.q_offsets) - 2
    own = local_positions(mask.q_offsets, tokens)
    index = torch.arange(tokens, device=own.device, dtype=mask.q_offsets.dtype)
    lengths = mask.q_offsets.diff().to(torch.int32)
    sample = (torch.searchsorted(mask.q_offsets, index, right=True) - 1).clamp(0, max(last, 0))
    begin, end = mask.begin.clamp(min=0), torch.minimum(mask.end, lengths[sample]) if last >= 0 else mask.end
    alone = (own < begin) | (own >= end)
    return F.pad(torch.stack([begin, end, own, own + alone]), (0, BEYOND))


def pair_units(units: Tensor, tokens: int, batch: int) -> Tensor:
    """int32 [programs, 2]: which two of `kernels.attention.plan.Plan.q_units` each program computes; -1 for none.

    Of a sample's m units, the heaviest first, program j has j and m - 1 - j. The units without a sample, which stand last, are paired
    likewise, as far as there are tokens. The number of programs is bounded by what the host knows.
    """
    count = len(units)
    place = torch.arange(count, device=units.device)
    rows = units[:, 1].long()
    placed = rows >= 0
    many = torch.where(placed, (rows + UNIT - 1) // UNIT, count - placed.sum())
    begins = torch.ones_like(placed)
    begins[1:] = (units[1:, 3] != units[:-1, 3]) | (placed[1:] != placed[:-1])
    first = torch.where(begins, place, 0).cummax(0).values if count else place
    partner = 2 * first + many - 1 - place
    there = placed | (units[:, 0] < tokens)
    leads = there & (place <= partner)
    alone = (partner == place) | ~there[partner.clamp(0, max(count - 1, 0))]
    program = leads.long().cumsum(0) - 1
    programs = (count + batch + 2) // 2
    # What leads nothing is written beyond the programs.
    pairs = torch.full((programs + 1, 2), -1, dtype=torch.int32, device=units.device)
    at = torch.where(leads, program, programs)
    both = torch.stack([place, torch.where(alone, -1, partner)], 1).to(torch.int32)
    pairs[at] = torch.where(leads[:, None], both, -1)
    return pairs[:programs].contiguous()

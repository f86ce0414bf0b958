"""Units of work for the attention kernels: made once per batch, on the device, without reading anything back.

Programs start in the order of the units. The units of a sample stand together, so that the programs of one moment read the
same keys and values, which then come from the L2 cache; samples with the most work come first, so that none of them
finishes last, and so do the heaviest units inside a sample. Heads are innermost (`kernels.attention.triton_tiles.unit_of`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from genrank.kernels.attention.interval import IntervalMask
from genrank.kernels.attention.triton_plan import summary_kernel, units_kernel
from genrank.kernels.launch import Tuned

UNIT = 128
"""Rows of a unit of work; every block size divides it."""
CHUNK = 64
"""Query rows summarised together for `backward_kv_kernel`."""

summary_tuned = Tuned(summary_kernel, [triton.Config({"CHUNKS": 16}, num_warps=4)], [])
units_tuned = Tuned(units_kernel, [triton.Config({"BLOCK": 32, "SAMPLES": 256}, num_warps=4)], [])


class Plan(NamedTuple):
    """Units of work on the device, in the order in which their programs start. All int32 but `pairs`."""

    q_units: Tensor
    """[units, 4]: of `UNIT` queries, as `units` packs them; the last column is the sample."""
    k_units: Tensor
    """[units, 4]: of `UNIT` keys; the last column is the sample's first row of `summary`."""
    summary: Tensor
    """[chunks, 5]: of `CHUNK` queries, min begin and max end over those that see anything, max begin and min end over
    all, and whether any lies outside its own interval. A sample's chunks stand together; what lies between two samples' is not written.
    """
    pairs: Tensor
    """int64 [B]: pairs of each sample's intervals, one head."""


def make_plan(mask: IntervalMask, key_tokens: int) -> Plan:
    """Two launches. Never reads anything back from the device: the number of units is bounded by what the host knows."""
    device, queries, batch = mask.begin.device, len(mask.begin), len(mask.q_offsets) - 1
    chunks, places = -(-queries // CHUNK) + batch, [-(-tokens // UNIT) + batch for tokens in (queries, key_tokens)]
    summary = torch.empty(max(chunks, 1), 5, dtype=torch.int32, device=device)
    seen, pairs = (torch.empty(size, dtype=torch.int64, device=device) for size in (chunks, batch))
    q_units, k_units = (torch.empty(count, 4, dtype=torch.int32, device=device) for count in places)
    if batch:
        given = [mask.begin, mask.end, mask.q_offsets, summary, seen, pairs, queries, chunks]
        summary_tuned(lambda _: (batch,), given, {"CHUNK": CHUNK})
    if max(places):
        given = [mask.q_offsets, mask.k_offsets, summary, seen, pairs, q_units, k_units]
        units_tuned(
            lambda _: (max(places), 2), [*given, queries, key_tokens, chunks, batch], {"UNIT": UNIT, "CHUNK": CHUNK}
        )
    return Plan(q_units, k_units, summary, pairs)


def units(offsets: Tensor, tokens: int, work: Tensor, of_sample: Tensor) -> Tensor:
    """[units, 4] int32, 16 bytes a unit of `UNIT` tokens, so that a program learns all of it from one place: its first row
    in the sample, the sample's rows, the sample's first token, and the sample's number in `of_sample` [B].

    What has no sample stands last, with -1 for the sample's rows, and with its first row in the whole batch: tokens beyond
    the last offset, or nothing at all.

    Args:
        offsets: [B + 1] of samples among tokens.
        tokens: how many there are; the host knows it, and bounds the number of units by it.
        work: [tokens + 1], the running sum over tokens of what each costs.
    """
    batch = len(offsets) - 1
    lengths = offsets.diff()
    count = (lengths + UNIT - 1) // UNIT
    upto = count.cumsum(0)
    index = torch.arange(-(-tokens // UNIT) + batch, device=offsets.device)
    if not batch:
        zero = torch.zeros_like(index)
        return torch.stack([index * UNIT, zero - 1, zero, zero], 1).to(torch.int32)
    sample = torch.searchsorted(upto, index, right=True)
    there = sample < batch
    sample = sample.clamp(max=batch - 1)
    row = torch.where(there, (index - (upto - count)[sample]) * UNIT, offsets[-1] + (index - upto[-1]) * UNIT)
    first = offsets[sample] + row
    last = torch.minimum(first + UNIT, offsets[sample + 1])
    cost = work[last.clamp(0, tokens)] - work[first.clamp(0, tokens)]
    bounds = offsets.clamp(0, tokens)
    heaviest = torch.argsort(work[bounds[1:]] - work[bounds[:-1]], descending=True, stable=True)
    rank = torch.empty_like(heaviest)
    rank[heaviest] = torch.arange(batch, device=offsets.device)
    # One key for both: a unit's rows see fewer than 2^31 tokens each, so it costs less than 2^38.
    order = torch.argsort(
        torch.where(there, ((rank[sample] + 1) << 38) - cost, torch.iinfo(torch.int64).max), stable=True
    )
    columns = (row, torch.where(there, lengths[sample], -1), offsets[sample], of_sample[sample])
    return torch.stack([column[order] for column in columns], 1).to(torch.int32)

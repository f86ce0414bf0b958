"""Units of work for the attention kernels: made once per batch, on the device, without reading anything back.

Programs start in the order of the units. The units of a sample stand together, so that the programs of one moment read the
same keys and values, which then come from the L2 cache; samples with the most work come first, so that none of them
finishes last, and so do the heaviest units inside a sample. Heads are innermost (`kernels.attention.triton_tiles.unit_of`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genrank.kernels.attention.interval import IntervalMask

UNIT = 128
"""Rows of a unit of work; every block size divides it."""
CHUNK = 64
"""Query rows summarised together for `backward_kv_kernel`."""


class Plan(NamedTuple):
    """Units of work on the device, in the order in which their programs start. All int32 but `pairs`."""

    q_units: Tensor
    """[units, 4]: of `UNIT` queries, as `units` packs them; the last column is the sample."""
    k_units: Tensor
    """[units, 4]: of `UNIT` keys; the last column is the sample's first row of `summary`."""
    summary: Tensor
    """[chunks, 5]: of `CHUNK` queries, min begin and max end over those that see anything, max begin and min end over
    all, and whether any lies outside its own interval.
    """
    pairs: Tensor
    """int64 []: visible pairs of the batch, one head."""


def make_plan(mask: IntervalMask, key_tokens: int) -> Plan:
    """Never reads anything back from the device: the number of units is bounded by what the host knows."""
    q_offsets, k_offsets = mask.q_offsets.long(), mask.k_offsets.long()
    begin, end = mask.begin.long(), mask.end.long()
    device, queries, batch = begin.device, len(begin), len(q_offsets) - 1
    seen = (end - begin).clamp(min=0)
    by_query = F.pad(seen.cumsum(0), (1, 0))
    q_units = units(q_offsets, queries, by_query, torch.arange(batch, device=device))

    sample = torch.searchsorted(q_offsets, torch.arange(queries, device=device), right=True) - 1
    first_key = k_offsets[sample.clamp(0, max(batch - 1, 0))] if batch else sample
    change = torch.zeros(key_tokens + 1, dtype=torch.int64, device=device)
    counts = (seen > 0).long()
    change.index_add_(0, (first_key + begin).clamp(0, key_tokens), counts)
    change.index_add_(0, (first_key + end).clamp(0, key_tokens), -counts)
    by_key = F.pad(change[:-1].cumsum(0).cumsum(0), (1, 0))
    lengths = q_offsets.diff()
    chunks = (lengths + CHUNK - 1) // CHUNK
    upto = chunks.cumsum(0)
    k_units = units(k_offsets, key_tokens, by_key, upto - chunks)

    index = torch.arange(-(-queries // CHUNK) + batch, device=device)
    of = torch.searchsorted(upto, index, right=True)
    there = of < batch
    of = of.clamp(max=max(batch - 1, 0))
    if batch:
        rows = ((index - (upto - chunks)[of]) * CHUNK)[:, None] + torch.arange(CHUNK, device=device)
        real = there[:, None] & (rows < lengths[of][:, None])
        at = (q_offsets[of][:, None] + rows).clamp(0, max(queries - 1, 0))
    far = torch.iinfo(torch.int32).max
    if batch and queries:
        b, e = begin[at], end[at]
        sees = real & (b < e)
        columns = [
            torch.where(sees, b, far).amin(1),
            torch.where(sees, e, 0).amax(1),
            torch.where(real, b, 0).amax(1),
            torch.where(real, e, far).amin(1),
            (real & ((rows < b) | (rows >= e))).any(1),
        ]
        summary = torch.stack(columns, 1).to(torch.int32)
    else:
        summary = torch.zeros(1, 5, dtype=torch.int32, device=device)
    return Plan(q_units, k_units, summary.contiguous(), seen.sum() + queries)


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

"""Units of work for the attention kernels: made once per batch, on the device, without reading anything back."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genrank.kernels.interval import Problem

UNIT = 128
"""Rows of a unit of work; every block size divides it."""
CHUNK = 64
"""Query rows summarised together for `backward_kv_kernel`."""


class Plan(NamedTuple):
    """Units of work on the device, heaviest first; unused ones at the end have sample -1. All int32 but `pairs`."""

    q_sample: Tensor
    q_row: Tensor
    """[units]: the sample of each unit of `UNIT` queries, and its first query in the sample."""
    k_sample: Tensor
    k_row: Tensor
    """The same of keys."""
    summary: Tensor
    """[chunks, 5]: of `CHUNK` queries, min begin and max end over those that see anything, max begin and min end over
    all, and whether any lies outside its own interval.
    """
    chunk_first: Tensor
    """[B]: the first chunk of each sample."""
    pairs: Tensor
    """int64 []: visible pairs of the batch, one head."""


def make_plan(problem: Problem, key_tokens: int) -> Plan:
    """Never reads anything back from the device: the number of units is bounded by what the host knows."""
    q_offsets, k_offsets = problem.q_offsets.long(), problem.k_offsets.long()
    begin, end = problem.begin.long(), problem.end.long()
    device, queries, batch = begin.device, len(begin), len(q_offsets) - 1
    seen = (end - begin).clamp(min=0)
    by_query = F.pad(seen.cumsum(0), (1, 0))
    q_sample, q_row = units(q_offsets, queries, by_query)

    sample = torch.searchsorted(q_offsets, torch.arange(queries, device=device), right=True) - 1
    first_key = k_offsets[sample.clamp(0, max(batch - 1, 0))] if batch else sample
    change = torch.zeros(key_tokens + 1, dtype=torch.int64, device=device)
    counts = (seen > 0).long()
    change.index_add_(0, (first_key + begin).clamp(0, key_tokens), counts)
    change.index_add_(0, (first_key + end).clamp(0, key_tokens), -counts)
    by_key = F.pad(change[:-1].cumsum(0).cumsum(0), (1, 0))
    k_sample, k_row = units(k_offsets, key_tokens, by_key)

    lengths = q_offsets.diff()
    chunks = (lengths + CHUNK - 1) // CHUNK
    upto = chunks.cumsum(0)
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
    return Plan(
        q_sample, q_row, k_sample, k_row, summary.contiguous(), (upto - chunks).to(torch.int32), seen.sum() + queries
    )


def units(offsets: Tensor, tokens: int, work: Tensor) -> tuple[Tensor, Tensor]:
    """Units of `UNIT` tokens by descending work; `work` [tokens + 1] is its running sum over tokens."""
    batch = len(offsets) - 1
    lengths = offsets.diff()
    count = (lengths + UNIT - 1) // UNIT
    upto = count.cumsum(0)
    index = torch.arange(-(-tokens // UNIT) + batch, device=offsets.device)
    sample = torch.searchsorted(upto, index, right=True)
    if not batch:
        return torch.full_like(index, -1, dtype=torch.int32), (index * UNIT).to(torch.int32)
    there = sample < batch
    sample = sample.clamp(max=batch - 1)
    row = torch.where(there, (index - (upto - count)[sample]) * UNIT, offsets[-1] + (index - upto[-1]) * UNIT)
    first = offsets[sample] + row
    last = torch.minimum(first + UNIT, offsets[sample + 1])
    cost = torch.where(there, work[last.clamp(0, tokens)] - work[first.clamp(0, tokens)], -1)
    order = torch.argsort(cost, descending=True, stable=True)
    return torch.where(there, sample, -1)[order].to(torch.int32), row[order].to(torch.int32)

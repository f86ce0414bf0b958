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
from genrank.kernels.attention.triton_plan import COLUMNS, summary_kernel, units_kernel
from genrank.kernels.launch import Tuned

UNIT = 128
"""Rows of a unit of work; every block size divides it."""
CHUNK = 64
"""Query rows summarised together for `backward_kv_kernel`."""

summary_tuned = Tuned(summary_kernel, [triton.Config({"CHUNKS": 16}, num_warps=4)], [])
units = Tuned(units_kernel, [triton.Config({"BLOCK": 32, "SAMPLES": 256}, num_warps=4)], [])
"""Packs the units of a plan."""


class Plan(NamedTuple):
    """Units of work on the device, in the order in which their programs start. All int32 but `pairs`."""

    q_units: Tensor
    """[units, 4], 16 bytes a unit of `UNIT` queries, so that a program learns all of it from one place: its first row in the sample, the sample's
    rows, the sample's first token, and the sample. What has no sample stands last, with -1 for the sample's rows, and with its first row in the
    whole batch: tokens beyond the last offset, or nothing at all."""
    k_units: Tensor
    """[units, 4]: the same of `UNIT` keys; but the last column is the sample's first row of `summary`."""
    summary: Tensor
    """[chunks, 5]: of `CHUNK` queries, min begin and max end over those that see anything, max begin and min end over
    all, and whether any lies outside its own interval. A sample's chunks stand together; what lies between two samples' is not written.
    """
    pairs: Tensor
    """int64 [B]: pairs of each sample's intervals, one head."""


def make_plan(mask: IntervalMask, key_tokens: int) -> Plan:
    """Two launches. Never reads anything back from the device: the number of units is bounded by what the host knows."""
    device, queries, batch = mask.begin.device, len(mask.begin), len(mask.q_offsets) - 1
    chunks = -(-queries // CHUNK) + batch
    summary = torch.empty(max(chunks, 1), COLUMNS.value, dtype=torch.int32, device=device)
    seen, pairs = (torch.empty(size, dtype=torch.int64, device=device) for size in (chunks, batch))
    if batch:
        given = [mask.begin, mask.end, mask.q_offsets, summary, seen, pairs, queries, chunks]
        summary_tuned(lambda _: (batch,), given, {"CHUNK": CHUNK})
    offsets = (mask.q_offsets, mask.k_offsets)
    return Plan(*ordered_units(offsets, (queries, key_tokens), summary, seen, pairs, by_chunk=True), summary, pairs)


def ordered_units(
    offsets: tuple[Tensor, Tensor],
    tokens: tuple[int, int],
    summary: Tensor,
    seen: Tensor,
    pairs: Tensor,
    *,
    by_chunk: bool,
) -> tuple[Tensor, Tensor]:
    """(q_units, k_units) of a plan, in one launch.

    Args:
        offsets: [B + 1] of queries and of keys; tokens: how many there are.
        summary: int32 [chunks, COLUMNS]: of `CHUNK` queries, the least begin and the greatest end first.
        seen: int64 [chunks]; pairs: int64 [B]: visible pairs of a chunk and of a sample.
        by_chunk: the last column of `k_units` is the sample's first chunk; else the sample.
    """
    batch = len(pairs)
    places = [-(-count // UNIT) + batch for count in tokens]
    q_units, k_units = (torch.empty(count, 4, dtype=torch.int32, device=pairs.device) for count in places)
    if max(places):
        units(
            lambda _: (max(places), 2),
            [*offsets, summary, seen, pairs, q_units, k_units, *tokens, len(seen), batch],
            {"BY_CHUNK": by_chunk, "UNIT": UNIT, "CHUNK": CHUNK},
        )
    return q_units, k_units

"""Units of work for the span kernels: made once per batch, on the device, in the order of `kernels.attention.plan`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from genrank.kernels.attention.plan import CHUNK, ordered_units
from genrank.kernels.attention.triton_plan import COLUMNS
from genrank.kernels.launch import Tuned
from genrank.kernels.spans.call import Spans
from genrank.kernels.spans.triton_plan import span_summary_kernel

summary_tuned = Tuned(span_summary_kernel, [triton.Config({"CHUNKS": 16}, num_warps=4)], [])


class Plan(NamedTuple):
    """Units of work on the device, in the order in which their programs start."""

    q_units: Tensor
    """[units, 4] int32 of `UNIT` queries, as `kernels.attention.plan.Plan` has them; the last column is the sample."""
    k_units: Tensor
    """The same of keys."""
    summary: Tensor
    """[S, 2, chunks] int32: of `CHUNK` queries, the least begin and the greatest end of those that see anything in a span."""
    chunk_starts: Tensor
    """[1 + B+1] int32: the number of chunks that there is memory for, then each sample's first chunk. Between two samples' lies at most one that
    nobody reads the rows of."""
    pairs: Tensor
    """int64 [B]: visible pairs of each sample, one head."""


def make_plan(spans: Spans, key_tokens: int) -> Plan:
    """Two launches. Never reads anything back from the device."""
    device, (count, queries), batch = spans.begin.device, spans.begin.shape, len(spans.q_offsets) - 1
    chunks = -(-queries // CHUNK) + batch
    summary = torch.empty(count, 2, max(chunks, 1), dtype=torch.int32, device=device)
    # Over all spans; the order of units reads two of its columns.
    hull = torch.empty(max(chunks, 1), COLUMNS.value, dtype=torch.int32, device=device)
    seen, pairs = (torch.empty(size, dtype=torch.int64, device=device) for size in (chunks, batch))
    starts = torch.empty(batch + 2, dtype=torch.int32, device=device)
    if batch:
        given = [spans.begin.contiguous(), spans.end.contiguous(), spans.q_offsets, summary, hull, seen, pairs, starts]
        summary_tuned(lambda _: (batch,), [*given, queries, max(chunks, 1), batch], {"SPANS": count, "CHUNK": CHUNK})
    offsets = (spans.q_offsets, spans.k_offsets)
    q_units, k_units = ordered_units(offsets, (queries, key_tokens), hull, seen, pairs, by_chunk=False)
    return Plan(q_units, k_units, summary, starts, pairs)

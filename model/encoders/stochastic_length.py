"""Stochastic length (HSTU, arXiv:2402.17152, section 2.2): in training, long histories are read in part."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from genrank.model.encoders.jagged_rows import places
from genrank.tokenization.jagged_tokens import Candidates, Tokens
from genrank.tokenization.visibility import HISTORY


def stochastic_length(
    tokens: Tokens,
    alpha: float,
    longest: int,
    *,
    keep: Literal["random", "recent", "weighted"] = "weighted",
    event_tokens: int = 1,
    generator: torch.Generator | None = None,
) -> Tokens:
    """Section 2.2, equation 4: with N = `longest`, a history of n tokens is used whole if n <= N^(alpha/2); else it is used whole with
    probability N^alpha / n^2, and otherwise as N^(alpha/2) of its tokens, in order. Other groups are untouched.

    Args:
        tokens: any `Tokens`; history is group 1, contiguous in each sample.
        keep: how the subsequence is drawn; `weighted` draws event i with weight 1 - age_i / sum(ages).
        event_tokens: history tokens per event, kept or dropped together.
        generator: of the draw, for tokens on a CPU; PyTorch's default where None.
    Returns: tokens with fewer rows; offsets, intervals and candidate rows say the same things about the rows that are left.

    Which histories are shortened is drawn on the host, so that it knows how many tokens are left without asking the device.
    """
    device = tokens.x.device
    samples = len(tokens.lengths)
    target = int(longest ** (alpha / 2))
    chance = (longest**alpha / tokens.history_lengths.clamp(min=1).double().square()).clamp(max=1)
    drawn = torch.rand(samples, generator=generator, dtype=torch.float64)
    shorten = (tokens.history_lengths > target) & (drawn >= chance)
    budget = target // event_tokens * event_tokens
    left = torch.where(shorten, budget, tokens.history_lengths)

    # One key an event; the `budget` largest of a shortened sample stay.
    n = tokens.history_lengths.to(device, non_blocking=True)
    lengths = (tokens.offsets[1:] - tokens.offsets[:-1]).long()
    sample = torch.repeat_interleave(torch.arange(samples, device=device), lengths, output_size=len(tokens.x))
    rows = places(tokens.group_ids == HISTORY, int(tokens.history_lengths.sum()))
    of = sample[rows]
    first = torch.cumsum(n, 0) - n
    place = torch.arange(len(rows), device=device) - first[of]
    event = place // event_tokens
    if keep == "recent":
        key = event.double()
    else:
        key = -torch.log(-torch.log(torch.rand(len(rows), device=device, generator=generator, dtype=torch.float64)))
        if keep == "weighted":
            age = (_newest(tokens.timestamps[rows], of, samples)[of] - tokens.timestamps[rows]).double()
            total = torch.zeros(samples, device=device, dtype=torch.float64).index_add_(0, of, age)
            key = key + torch.log1p(-(age / total[of].clamp(min=1)).clamp(max=1 - 1e-9))
        head = first[of] + event * event_tokens
        key = key[head]  # the event's first token decides for all of them
    order = torch.argsort(key, descending=True, stable=True)
    order = order[torch.argsort(of[order], stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(rows), device=device) - first[of[order]]
    kept = torch.ones(len(tokens.x), dtype=torch.bool, device=device)
    kept[rows] = ~shorten.to(device, non_blocking=True)[of] | (rank < budget)
    return _select(tokens, kept, sample, left)


def _newest(timestamps: Tensor, of: Tensor, samples: int) -> Tensor:
    newest = torch.full((samples,), torch.iinfo(torch.int64).min, device=timestamps.device)
    return newest.scatter_reduce(0, of, timestamps, "amax")


def _select(tokens: Tokens, kept: Tensor, sample: Tensor, history_lengths: Tensor) -> Tokens:
    """The kept rows; an interval's bounds become the number of kept tokens before them."""
    lengths = tokens.lengths - tokens.history_lengths + history_lengths
    rows = places(kept, int(lengths.sum()))
    before = torch.zeros(len(kept) + 1, dtype=torch.int64, device=kept.device)
    torch.cumsum(kept, 0, out=before[1:])
    offsets = tokens.offsets.long()
    start = offsets[:-1][sample]

    def renumber(bound: Tensor) -> Tensor:
        return (before[start + bound] - before[start])[rows].to(torch.int32)

    return dataclasses.replace(
        tokens,
        x=tokens.x.index_select(0, rows),
        offsets=before[offsets].to(tokens.offsets.dtype),
        group_ids=tokens.group_ids[rows],
        begin=renumber(tokens.begin),
        end=renumber(tokens.end),
        timestamps=tokens.timestamps[rows],
        candidate_rows=before[tokens.candidate_rows],
        max_length=int(lengths.max()) if len(lengths) else 0,
        lengths=lengths,
        history_lengths=history_lengths,
        slots=None if tokens.slots is None else tokens.slots[rows],
        sequence_ids=None if tokens.sequence_ids is None else tokens.sequence_ids[rows],
        event_types=None if tokens.event_types is None else tokens.event_types[rows],
        candidates=None if tokens.candidates is None else _see(tokens.candidates, offsets[:-1], before),
    )


def _see(candidates: Candidates, starts: Tensor, before: Tensor) -> Candidates:
    """Candidates beside the rows, whose bounds count the kept rows."""
    start = starts[candidates.owner]
    begin, end = (
        (before[start + bound] - before[start]).to(torch.int32) for bound in (candidates.begin, candidates.end)
    )
    return dataclasses.replace(candidates, begin=begin, end=end)

"""Candidates that see the rivals of their request: those that were exposed no later than they were, as `WithinRequest` compares them.

A request's candidates must lie side by side for a span of keys to name them. `Rivals.of` sorts candidates by sample, request and time; a candidate's
rivals are then a run that begins where its request begins and ends with the last candidate of its own time. All of a request with one time see
each other; where a request has several, the later ones see the earlier ones, which were known when they were ranked, and not the other way.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from genrank.kernels.attention import RelativeBias
from genrank.kernels.spans import SpanBias, Spans, make_spans, span_attention
from genrank.tokenization.jagged_tokens import Candidates, Tokens

NEEDS_REQUESTS = (
    "listwise=true: tokens don't say of which request each candidate is; ask for them by Wants(requests=True)"
)


class Rivals(NamedTuple):
    """C candidates, sorted."""

    order: Tensor
    """[C] int64: which candidate stands where."""
    first: Tensor
    last: Tensor
    """[C] int64: the rivals of the candidate at each place, itself among them, are at the places first .. last."""

    @classmethod
    def of(cls, owner: Tensor, requests: Tensor, timestamps: Tensor) -> Rivals:
        """By sample, request and time ([C] int64 each). Never waits for the device."""
        order = torch.argsort(timestamps, stable=True)
        for key in (requests, owner):
            order = order[torch.argsort(key[order], stable=True)]
        place = torch.arange(len(order), device=order.device)
        begins = torch.ones_like(order, dtype=torch.bool)
        begins[1:] = (owner[order].diff() != 0) | (requests[order].diff() != 0)
        ends = torch.ones_like(begins)
        ends[:-1] = begins[1:] | (timestamps[order].diff() != 0)
        first = torch.where(begins, place, 0).cummax(0).values if len(place) else place
        last = torch.where(ends, place, len(place)).flip(0).cummin(0).values.flip(0) if len(place) else place
        return cls(order, first, last)


class ByRequest(NamedTuple):
    """The tokens of a batch with each request's candidates side by side."""

    tokens: Tokens
    place: Tensor
    """[T] int64: where each row of the tokens that were given lies now."""
    spans: Spans
    """What each row sees, itself among it."""


def by_request(tokens: Tokens) -> ByRequest:
    """Candidates are sorted within their samples, whose other rows stay where they are; `candidate_rows` still has the batch's order.

    Raises:
        ValueError: the tokens have no requests.
    """
    if tokens.requests is None:
        raise ValueError(NEEDS_REQUESTS)
    rows, offsets = tokens.candidate_rows, tokens.offsets.long()
    owner = torch.searchsorted(offsets, rows, right=True) - 1
    rivals = Rivals.of(owner, tokens.requests, tokens.timestamps[rows])
    # Rows ascend with the candidates, and each sample has as many places as candidates.
    own = torch.arange(len(tokens.x), device=rows.device)
    source = own.index_copy(0, rows, rows[rivals.order])
    place = own.index_copy(0, source, own)
    moved = dataclasses.replace(
        tokens,
        x=tokens.x.index_select(0, source),
        group_ids=tokens.group_ids[source],
        begin=tokens.begin[source],
        end=tokens.end[source],
        timestamps=tokens.timestamps[source],
        candidate_rows=place[rows],
        slots=None if tokens.slots is None else tokens.slots[source],
        sequence_ids=None if tokens.sequence_ids is None else tokens.sequence_ids[source],
        event_types=None if tokens.event_types is None else tokens.event_types[source],
    )
    starts = torch.repeat_interleave(offsets[:-1], offsets.diff(), output_size=len(own))
    first = (own - starts).index_copy(0, rows, rows[rivals.first] - offsets[owner])
    last = (own - starts).index_copy(0, rows, rows[rivals.last] - offsets[owner])
    spans = make_spans(tokens.offsets, tokens.offsets, [(moved.begin, moved.end), (first, last + 1)])
    return ByRequest(moved, place, spans)


def rivals_of(candidates: Candidates) -> Rivals:
    """Of candidates beside their sequences.

    Raises:
        ValueError: they have no requests.
    """
    if candidates.requests is None:
        raise ValueError(NEEDS_REQUESTS)
    return Rivals.of(candidates.owner, candidates.requests, candidates.timestamps)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Spans,
    own: Tensor | None,
    *,
    alpha: float | None,
    divisor: int | None,
    bias: RelativeBias | None,
    max_length: int | None = None,
) -> Tensor:
    """[Tq, H, Dv]: `kernels.interval_attention` with spans in place of an interval and oneself.

    Args:
        own: [Tq] int64, which of the keys is each query's own; None: there are as many queries as keys.
        divisor: a number of keys; None: as many as the query sees.
        bias: of the keys.
    """
    of_pairs = None
    if bias is not None:
        positions, times = bias.positions, bias.timestamps
        of_pairs = SpanBias(
            bias.position_table,
            bias.time_table,
            positions if own is None or positions is None else positions[own],
            positions,
            times if own is None or times is None else times[own],
            times,
        )
    return span_attention(
        q, k, v, spans, weighting="silu", alpha=alpha, divisor=divisor, bias=of_pairs, max_length=max_length
    )

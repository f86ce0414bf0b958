"""Units of work for the Gluon kernels: made once per batch on the device, in the order of `kernels.spans.plan.make_plan`."""

from __future__ import annotations

from typing import NamedTuple

import triton
from torch import Tensor

from genrank.kernels.attention.interval import planned
from genrank.kernels.attention.plan import UNIT
from genrank.kernels.launch import Tuned
from genrank.kernels.spans.call import Spans
from genrank.kernels.spans.hopper.triton_walks import span_key_walks_kernel, span_query_walks_kernel
from genrank.kernels.spans.plan import make_plan

COLUMNS = 20
"""int32 of a record: `triton_walks.py` says which."""
CHUNK = 64
"""Queries summarised together: a tile of dK and dV."""
BEYOND = 128
"""Tokens after the last one that the kernels may read bounds of."""

query_walks = Tuned(span_query_walks_kernel, [triton.Config({}, num_warps=4)], [])
key_walks = Tuned(span_key_walks_kernel, [triton.Config({}, num_warps=4)], [])
KERNELS = (query_walks, key_walks)


class Walks(NamedTuple):
    """What the kernels read of a batch's spans. All int32."""

    queries: Tensor
    """[units, COLUMNS]: records of units of `UNIT` queries."""
    keys: Tensor
    """[units, COLUMNS]: of `UNIT` keys."""
    bounds: Tensor
    """[2 S, Tq + BEYOND]: begin and end of each span, within the sample."""
    ordered: Tensor
    """The same, each query's spans in the order of their keys, and behind them those that are empty, from the largest int32 to it."""
    summary: Tensor
    """[chunks, 4 S]: of `CHUNK` queries, in each span the least begin and the greatest end of those that see anything, and the greatest begin and
    the least end of all. What lies between two samples' chunks is not written."""


def walks(spans: Spans, key_tokens: int) -> Walks:
    """Made once a batch."""
    return planned(spans, ("hopper", key_tokens), lambda: make_walks(spans, key_tokens))


def make_walks(spans: Spans, key_tokens: int) -> Walks:
    """See `walks`."""
    plan = planned(spans, ("triton", key_tokens), lambda: make_plan(spans, key_tokens))
    count, tokens = spans.begin.shape
    new = plan.q_units.new_empty
    chunks = tokens // CHUNK + 2 * len(spans.q_offsets)
    bounds, ordered = new(2, 2 * count, tokens + BEYOND).zero_().unbind(0)
    made = Walks(
        new(len(plan.q_units), COLUMNS), new(len(plan.k_units), COLUMNS), bounds, ordered, new(chunks, 4 * count)
    )
    sizes = {"SPANS": count, "ROWS": UNIT, "CHUNK": CHUNK}
    query_walks(
        lambda _: (len(plan.q_units),),
        [
            *(
                spans.begin.contiguous(),
                spans.end.contiguous(),
                spans.k_offsets,
                plan.q_units,
                made.queries,
                made.bounds,
                made.ordered,
            ),
            *(made.summary, tokens, key_tokens, made.bounds.stride(0)),
        ],
        sizes,
    )
    key_walks(
        lambda _: (len(plan.k_units),),
        [spans.q_offsets, plan.k_units, made.summary, made.keys, tokens, key_tokens],
        sizes,
    )
    return made

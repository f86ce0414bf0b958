"""Launches the Gluon kernels of span attention. `computes` says which calls they can compute; whether they do is
`kernels.attention.hopper.choice`'s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genrank.kernels.attention.hopper.gpu import ROWS, config, descriptor, loadable
from genrank.kernels.launch import Tuned, generation
from genrank.kernels.spans.call import SpanCall
from genrank.kernels.spans.hopper.gluon_forward import gluon_span_forward_kernel
from genrank.kernels.spans.hopper.gluon_key import gluon_span_key_kernel
from genrank.kernels.spans.hopper.gluon_query import gluon_span_query_kernel
from genrank.kernels.spans.hopper.plan import walks

DIMS = (64, 128)
"""Head dims, of keys and of values alike."""
SPANS = 3
"""At most."""
LOG2E = 1.4426950408889634

FORWARD = config(BLOCK=128, STAGES=2)
forward_tuned = Tuned(gluon_span_forward_kernel, [FORWARD], ["DIM"])
query_tuned = Tuned(gluon_span_query_kernel, [config(BLOCK=64, K_STAGES=3, V_STAGES=2)], ["DIM"])
KEYS = {64: config(BLOCK=64, STAGES=3), 128: config(BLOCK=32, STAGES=4)}
key_tuned = Tuned(
    gluon_span_key_kernel, list(KEYS.values()), ["DIM", "SPANS"], lambda chosen, named, _: chosen is KEYS[named["DIM"]]
)
KERNELS = (forward_tuned, query_tuned, key_tuned)


def serves(q: Tensor, k: Tensor, v: Tensor, call: SpanCall) -> bool:
    """Whether these kernels compute this call: on sm_90, softmax, bfloat16, head dims of `DIMS`, up to three spans, no bias, and rows that TMA
    can load."""
    return q.is_cuda and generation(q.device) == 90 and computes(q, k, v, call)


def computes(q: Tensor, k: Tensor, v: Tensor, call: SpanCall) -> bool:
    """The same, whatever the device."""
    plain = call.softmax and not call.bias.tables and len(call.spans.begin) <= SPANS
    dims = q.dtype == torch.bfloat16 and q.shape[2] in DIMS and v.shape[2] == q.shape[2]
    return plain and dims and len(q) > 0 and len(k) > 0 and all(loadable(x) for x in (q, k, v))


def forward(q: Tensor, k: Tensor, v: Tensor, call: SpanCall) -> tuple[Tensor, Tensor]:
    """As `kernels.spans.gpu.forward`, for what `computes` admits."""
    heads, dim = q.shape[1:]
    out = v.new_empty(len(q), heads, dim)
    lse = q.new_empty(len(q), heads, dtype=torch.float32)
    walk = walks(call.spans, len(k))
    rows = FORWARD.kwargs["BLOCK"]
    forward_tuned(
        per_unit(walk.queries, heads),
        [
            *(
                descriptor(q, ROWS),
                descriptor(k, rows),
                descriptor(v, rows),
                out,
                lse,
                walk.bounds,
                walk.bounds.stride(0),
            ),
            *(walk.queries, heads, call.alpha * LOG2E, q.stride(1), k.stride(1), v.stride(1), *out.stride()[:2]),
        ],
        {"DIM": dim},
    )
    return out, lse


def backward(
    grad_out: Tensor, lse: Tensor, delta: Tensor, q: Tensor, k: Tensor, v: Tensor, call: SpanCall
) -> list[Tensor]:
    """Gradients of q, k and v: as `kernels.spans.gpu.backward`, for what `computes` admits."""
    grad_out = grad_out if loadable(grad_out) else grad_out.contiguous()
    heads, dim = q.shape[1:]
    walk = walks(call.spans, len(k))
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    tiles = [descriptor(x, ROWS) for x in (q, grad_out, k, v)]
    rows = KEYS[dim].kwargs["BLOCK"]
    narrow = [descriptor(q, rows), descriptor(grad_out, rows), *tiles[2:]]
    row_sums, width = [lse, delta], walk.bounds.stride(0)
    numbers = [heads, call.alpha * LOG2E, call.alpha, *(x.stride(1) for x in (q, grad_out, k, v))]
    query_tuned(
        per_unit(walk.queries, heads),
        [*tiles, dq, *row_sums, walk.bounds, width, walk.queries, *numbers, *dq.stride()[:2]],
        {"DIM": dim},
    )
    key_tuned(
        per_unit(walk.keys, heads),
        [*narrow, dk, dv, *row_sums, walk.ordered, width, walk.summary, walk.keys, *numbers, *dk.stride()[:2]],
        {"DIM": dim, "SPANS": len(call.spans.begin)},
    )
    return [dq, dk, dv]


def per_unit(records: Tensor, heads: int) -> Callable[[dict[str, Any]], tuple[int, ...]]:
    """A program for each record and head; heads innermost."""
    return lambda _: (len(records) * heads,)

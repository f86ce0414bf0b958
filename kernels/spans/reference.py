"""The definition of span attention, one dense sample at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genrank.kernels.attention.bias import position_row, time_row
from genrank.kernels.spans.call import SpanCall


def reference_span_attention(q: Tensor, k: Tensor, v: Tensor, call: SpanCall) -> Tensor:
    """`softmax(alpha q k^T + bias)` over the visible keys, or `silu(...) * visible * scale`, times v; differentiable by autograd in any
    floating dtype. q: [Tq, H, Dqk], k: [Tk, H, Dqk], v: [Tk, H, Dv] -> [Tq, H, Dv]; zeros for a query that sees nothing."""
    spans, scale, bias = call[:3]
    rows = []
    starts, ends = spans.q_offsets.tolist(), spans.k_offsets.tolist()
    for b in range(len(starts) - 1):
        queries, keys = slice(starts[b], starts[b + 1]), slice(ends[b], ends[b + 1])
        scores = call.alpha * torch.einsum("qhd,khd->hqk", q[queries], k[keys])
        if bias.position_table is not None:
            assert bias.q_positions is not None and bias.k_positions is not None
            distance = bias.q_positions[queries, None].long() - bias.k_positions[None, keys].long()
            row = position_row(distance, bias.position_table.shape[0])
            scores = scores + bias.position_table[row].permute(2, 0, 1).to(scores.dtype)
        if bias.time_table is not None:
            assert bias.q_times is not None and bias.k_times is not None
            row = time_row(bias.q_times[queries, None] - bias.k_times[None, keys], bias.time_table.shape[0])
            scores = scores + bias.time_table[row].permute(2, 0, 1).to(scores.dtype)
        index = torch.arange(keys.stop - keys.start, device=q.device)
        begin, end = spans.begin[:, queries, None], spans.end[:, queries, None]
        visible = ((index >= begin) & (index < end)).any(0)
        if call.softmax:
            some = visible.any(1, keepdim=True)
            weights = scores.masked_fill(~visible & some, -torch.inf).softmax(2) * some
        else:
            weights = F.silu(scores) * visible * scale[queries, None].to(scores.dtype)
        rows.append(torch.einsum("hqk,khd->qhd", weights, v[keys]))
    return torch.cat(rows) if rows else (q[..., :1] * v[..., :1]).expand(-1, -1, v.shape[2])

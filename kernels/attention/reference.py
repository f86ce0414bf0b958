"""The definition of interval attention, one dense sample at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genrank.kernels.attention.bias import position_row, time_row
from genrank.kernels.attention.call import AttentionCall


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, keep: list[Tensor] | None = None
) -> Tensor:
    """`silu(alpha q k^T + bias) * visible * scale` times v, differentiable by autograd in any floating dtype.

    Args:
        q: [Tq, H, Dqk], k: [Tk, H, Dqk], v: [Tk, H, Dv].
        call: mask, scale, bias and alpha are read.
        keep: per sample [H, Lq, Lk], the dropout multipliers (0 or `1/(1-p)`), from `reference_keep`.

    Returns: [Tq, H, Dv].
    """
    mask, scale, bias, alpha = call[:4]
    rows = []
    starts, ends = mask.q_offsets.tolist(), mask.k_offsets.tolist()
    for b in range(len(starts) - 1):
        queries, keys = slice(starts[b], starts[b + 1]), slice(ends[b], ends[b + 1])
        scores = alpha * torch.einsum("qhd,khd->hqk", q[queries], k[keys])
        index = torch.arange(keys.stop - keys.start, device=q.device)
        own = index if mask.q_positions is None else mask.q_positions[queries].long()
        if bias.position_table is not None:
            position = index if bias.positions is None else bias.positions[keys].long()
            row = position_row(position[own, None] - position[None, :], bias.position_table.shape[0])
            scores = scores + bias.position_table[row].permute(2, 0, 1).to(scores.dtype)
        if bias.time_table is not None:
            assert bias.timestamps is not None
            stamp = bias.timestamps[keys]
            row = time_row(stamp[own, None] - stamp[None, :], bias.time_table.shape[0])
            scores = scores + bias.time_table[row].permute(2, 0, 1).to(scores.dtype)
        begin, end = mask.begin[queries, None], mask.end[queries, None]
        visible = (index >= begin) & (index < end) | (index == own[:, None])
        weights = F.silu(scores) * visible
        if keep is not None:
            weights = weights * keep[b].to(weights.dtype)
        rows.append(torch.einsum("hqk,khd->qhd", weights, v[keys]) * scale[queries, None, None].to(v.dtype))
    return torch.cat(rows) if rows else (q[..., :1] * v[..., :1]).expand(-1, -1, v.shape[2])


def reference_keep(q_offsets: Tensor, k_offsets: Tensor, heads: int, dropout: float, seed: int) -> list[Tensor] | None:
    """Dropout multipliers of the reference, one [H, Lq, Lk] a sample; None without dropout."""
    if dropout == 0.0:
        return None
    generator = torch.Generator(q_offsets.device).manual_seed(seed)
    shapes = zip((q_offsets[1:] - q_offsets[:-1]).tolist(), (k_offsets[1:] - k_offsets[:-1]).tolist(), strict=True)
    return [
        (torch.rand(heads, rows, keys, generator=generator, device=q_offsets.device) >= dropout) / (1.0 - dropout)
        for rows, keys in shapes
    ]

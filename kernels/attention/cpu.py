"""Interval attention on CPU: a few batched matrix products over tiles of similar shape.

A *chunk* is up to `cpu_plan.CHUNK_ROWS` consecutive queries of one sample, with the keys `[min begin, max end)` that its rows
need: candidates never meet candidates, because no interval reaches them. Chunks of similar shape form a *tile*, padded
a little and computed at once for all heads. A query that lies outside its own interval gets its own key in a last,
elementwise step. The work is planned once per batch and remembered while its `begin` tensor lives: every layer,
forward and backward, shares it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from genrank.kernels.attention.bias import RelativeBias, position_row, time_row
from genrank.kernels.attention.call import AttentionCall
from genrank.kernels.attention.cpu_plan import Plan, Tile, make_plan
from genrank.kernels.attention.interval import IntervalMask, planned

HIDDEN = -1e4
"""Score of a hidden pair: SiLU and its derivative are exactly 0 there, in float16 too."""


def forward(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
    """[Tq, H, Dv]: `reference_attention` with dropout drawn from `call.seed`."""
    mask, scale, bias, alpha, dropout, seed = call[:6]
    heads, dim = q.shape[1], v.shape[2]
    plan = planned(mask, ("blocked", len(k), heads), lambda: make_plan(mask, len(k), heads))
    tiled_q, tiled_k, tiled_v = gather(plan, q, k, v)
    tiled_out = tiled_q.new_empty(len(tiled_q), dim)
    for at, tile in enumerate(plan.tiles):
        queries, keys, values = views(tile, heads, tiled_q, tiled_k, tiled_v)
        weights = F.silu(scores(tile, queries, keys, mask, bias, alpha), inplace=True)
        if dropout > 0.0:
            weights *= keep(weights, dropout, seed, at)
        torch.bmm(weights, values, out=tiled_out[tile.q_rows].view(tile.count * heads, tile.rows, dim))
    out = collect_queries(plan, tiled_out).view(len(q), heads, dim)
    if len(plan.self_only):
        weights = F.silu(own_scores(plan, q, k, mask, bias, alpha))
        if dropout > 0.0:
            weights *= keep(weights, dropout, seed, len(plan.tiles))
        out.index_add_(0, plan.self_only, weights.unsqueeze(-1) * v[plan.self_only_key])
    return out.mul_(scale[:, None, None].to(out.dtype))


def backward(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> list[Tensor]:
    """Gradients of q, k, v and of whichever tables `bias` has. Scores are recomputed, so nothing of size L x L is
    kept.
    """
    mask, scale, bias, alpha, dropout, seed = call[:6]
    heads = q.shape[1]
    plan = planned(mask, ("blocked", len(k), heads), lambda: make_plan(mask, len(k), heads))
    grad_out = grad_out * scale[:, None, None].to(grad_out.dtype)
    tables = [torch.zeros_like(t) for t in bias.tables]
    tiled_q, tiled_k, tiled_v = gather(plan, q, k, v)
    tiled_grad = take(grad_out, plan.q_take).index_fill_(0, plan.q_padding, 0.0)
    grad_q, grad_k, grad_v = torch.empty_like(tiled_q), torch.empty_like(tiled_k), torch.empty_like(tiled_v)
    for at, tile in enumerate(plan.tiles):
        queries, keys, values = views(tile, heads, tiled_q, tiled_k, tiled_v)
        tile_grad = tiled_grad[tile.q_rows].view(tile.count * heads, tile.rows, -1)
        to_q, to_k, to_v = views(tile, heads, grad_q, grad_k, grad_v)
        score = scores(tile, queries, keys, mask, bias, alpha)
        weights = F.silu(score)
        slope = torch.bmm(tile_grad, values.transpose(1, 2))
        if dropout > 0.0:
            kept = keep(weights, dropout, seed, at)
            weights *= kept
            slope *= kept
        torch.bmm(weights.transpose(1, 2), tile_grad, out=to_v)
        slope = torch.ops.aten.silu_backward(slope, score)
        torch.bmm(slope, keys, out=to_q)
        torch.bmm(slope.transpose(1, 2), queries, out=to_k)
        if tables:
            add_table_gradients(tables, slope.view(tile.count, heads, tile.rows, tile.keys), tile, mask, bias)
    dq = collect_queries(plan, grad_q).mul_(alpha).view(q.shape)
    dk = collect_keys(plan, grad_k).mul_(alpha).view(k.shape)
    dv = collect_keys(plan, grad_v).view(v.shape)
    if len(plan.self_only):
        score = own_scores(plan, q, k, mask, bias, alpha)
        weights, own_grad = F.silu(score), grad_out[plan.self_only]
        slope = (own_grad * v[plan.self_only_key]).sum(-1)
        if dropout > 0.0:
            kept = keep(weights, dropout, seed, len(plan.tiles))
            weights *= kept
            slope *= kept
        slope = torch.ops.aten.silu_backward(slope, score)
        dv.index_add_(0, plan.self_only_key, weights.unsqueeze(-1) * own_grad)
        dq.index_add_(0, plan.self_only, (alpha * slope).unsqueeze(-1) * k[plan.self_only_key])
        dk.index_add_(0, plan.self_only_key, (alpha * slope).unsqueeze(-1) * q[plan.self_only])
        for table, rows in zip(tables, own_rows(plan, mask, bias), strict=True):
            table.index_add_(0, rows, slope.to(table.dtype))
    return [dq, dk, dv, *tables]


# --- scores -----------------------------------------------------------------------------------------------------------


def scores(tile: Tile, queries: Tensor, keys: Tensor, mask: IntervalMask, bias: RelativeBias, alpha: float) -> Tensor:
    """[count * heads, rows, keys]: `alpha q.k + bias`, hidden pairs at `HIDDEN`."""
    product = torch.bmm(queries, keys.transpose(1, 2)).mul_(alpha)
    by_head = product.view(tile.count, -1, tile.rows, tile.keys)
    for table, rows in zip(bias.tables, tile_rows(tile, mask, bias), strict=True):
        by_head += table.t()[:, rows].transpose(0, 1).to(by_head.dtype)
    if tile.hidden is not None:
        by_head.masked_fill_(tile.hidden, HIDDEN)
    return product


def own_scores(plan: Plan, q: Tensor, k: Tensor, mask: IntervalMask, bias: RelativeBias, alpha: float) -> Tensor:
    """[self_only, heads]: scores of the queries that see their own key outside their interval."""
    score = (q[plan.self_only] * k[plan.self_only_key]).sum(-1).mul_(alpha)
    for table, rows in zip(bias.tables, own_rows(plan, mask, bias), strict=True):
        score += table[rows].to(score.dtype)
    return score


def tile_rows(tile: Tile, mask: IntervalMask, bias: RelativeBias) -> Iterator[Tensor]:
    """Rows of each table of the bias for all pairs of a tile: int64 [count, rows, keys]."""
    return bias_rows(own_key(tile.q_tokens, mask).unsqueeze(-1), tile.k_tokens.unsqueeze(-2), mask, bias)


def own_rows(plan: Plan, mask: IntervalMask, bias: RelativeBias) -> Iterator[Tensor]:
    """The same for the queries outside their interval, with their own keys: int64 [self_only]."""
    return bias_rows(plan.self_only_key, plan.self_only_key, mask, bias)


def bias_rows(own: Tensor, key: Tensor, mask: IntervalMask, bias: RelativeBias) -> Iterator[Tensor]:
    """Rows of each table for pairs of tokens: own (the queries' keys) and key, int64 of one broadcast shape."""
    if bias.position_table is not None:
        positions = bias.positions
        # Within one sample, differences of token numbers are differences of local indices.
        distance = own - key if positions is None else (positions[own] - positions[key]).long()
        yield position_row(distance, bias.position_table.shape[0])
    if bias.time_table is not None:
        assert bias.timestamps is not None
        yield time_row(bias.timestamps[own] - bias.timestamps[key], bias.time_table.shape[0])


def own_key(q_tokens: Tensor, mask: IntervalMask) -> Tensor:
    """The key token of query tokens."""
    if mask.q_positions is None:
        return q_tokens
    sample = torch.searchsorted(mask.q_offsets, q_tokens.to(mask.q_offsets.dtype), right=True) - 1
    return mask.k_offsets[sample].long() + mask.q_positions[q_tokens]


def add_table_gradients(
    tables: list[Tensor], slope: Tensor, tile: Tile, mask: IntervalMask, bias: RelativeBias
) -> None:
    """Add the gradients of a tile's scores [count, heads, rows, keys] to those of the tables."""
    for table, rows in zip(tables, tile_rows(tile, mask, bias), strict=True):
        flat = rows.flatten()
        for head in range(table.shape[1]):
            sums = torch.zeros(table.shape[0], dtype=slope.dtype if slope.dtype.itemsize >= 4 else torch.float32)
            sums.index_add_(0, flat, slope[:, head].flatten().to(sums.dtype))
            table[:, head] += sums.to(table.dtype)


def keep(weights: Tensor, dropout: float, seed: int, at: int) -> Tensor:
    """Dropout multipliers of one step of the plan, the same in forward and backward."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + at)
    drawn = torch.rand(weights.shape, generator=generator)
    return (drawn >= dropout).to(weights.dtype).mul_(1.0 / (1.0 - dropout))


# --- rows in and out of tiles -----------------------------------------------------------------------------------------


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Rows (one head of one token) of x [T, H, D]: [len(rows), D]."""
    return x.reshape(-1, x.shape[2]).index_select(0, rows)


def gather(plan: Plan, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v laid out tile after tile. Padding keys have value 0, so they add nothing, forward or backward."""
    return (
        take(q, plan.q_take),
        take(k, plan.k_take),
        take(v, plan.k_take).index_fill_(0, plan.k_padding, 0.0),
    )


def views(tile: Tile, heads: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A tile's part of tiled queries, keys and values, one matrix for each chunk and head."""
    batch = tile.count * heads
    return (
        q[tile.q_rows].view(batch, tile.rows, -1),
        k[tile.k_rows].view(batch, tile.keys, -1),
        v[tile.k_rows].view(batch, tile.keys, -1),
    )


def collect_queries(plan: Plan, tiled: Tensor) -> Tensor:
    """[Tq * heads, D]: each query row from the one tile that computed it, 0 where none did."""
    if not len(tiled):
        return tiled.new_zeros(len(plan.q_from), tiled.shape[1])
    rows = tiled.index_select(0, plan.q_from)
    return rows.index_fill_(0, plan.q_missing, 0.0) if len(plan.q_missing) else rows


def collect_keys(plan: Plan, tiled: Tensor) -> Tensor:
    """[Tk * heads, D]: for each key row the sum over its copies, in a fixed order."""
    if not len(tiled):
        return tiled.new_zeros(len(plan.k_starts) - 1, tiled.shape[1])
    return F.embedding_bag(plan.k_from, tiled, plan.k_starts, mode="sum", include_last_offset=True)

"""Interval attention on CPU: a few batched matrix products over tiles of similar shape.

A *chunk* is up to `CHUNK_ROWS` consecutive queries of one sample, with the keys `[min begin, max end)` that its rows
need: candidates never meet candidates, because no interval reaches them. Chunks of similar shape form a *tile*, padded
a little and computed at once for all heads. A query that lies outside its own interval gets its own key in a last,
elementwise step. The work is planned once per batch and remembered while its `begin` tensor lives: every layer,
forward and backward, shares it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from genrank.kernels.attention.interval import Problem, check_problem, planned

if TYPE_CHECKING:
    from genrank.kernels.attention import RelativeBias

CHUNK_ROWS = 128
"""Rows of a chunk: fewer would save more of a causal triangle and lose more to small matrix products."""
TILE_WEIGHTS = 1 << 18
"""Attention weights of a tile: enough to amortise PyTorch's dispatch, few enough to stay in the cache."""
PADDING = 1.15
"""A tile may hold this many times the weights that its chunks need."""
HIDDEN = -1e4
"""Score of a hidden pair: SiLU and its derivative are exactly 0 there, in float16 too."""


@dataclass(frozen=True)
class Tile:
    """`count` chunks of at most `rows` queries and `keys` keys, for all heads: [count, heads, rows, keys] weights."""

    count: int
    rows: int
    keys: int
    q_rows: slice
    k_rows: slice
    """Where the tile lies in the gathered queries and keys (rows of one head of one token)."""
    q_tokens: Tensor
    k_tokens: Tensor
    """int64 [count, rows] and [count, keys]: the token of each row; padding repeats a token of the chunk."""
    hidden: Tensor | None
    """bool [count, 1, rows, keys], or None where every row sees every key."""


@dataclass(frozen=True)
class Plan:
    """Tiles, and how rows (one head of one token: row `token * heads + head`) travel into and out of them. All
    int64.
    """

    tiles: list[Tile]
    q_take: Tensor
    k_take: Tensor
    """The row that each tiled row copies."""
    k_padding: Tensor
    """Tiled key rows that are padding: their values count as 0."""
    q_padding: Tensor
    """Tiled query rows that are padding: their upstream gradients count as 0."""
    q_from: Tensor
    """[Tq * heads]: the tiled row that computed each row."""
    q_missing: Tensor
    """Rows that no tile computes: their interval is empty."""
    k_from: Tensor
    k_starts: Tensor
    """The tiled rows `k_from[k_starts[r]:k_starts[r+1]]` are the copies of key row r."""
    alone: Tensor
    alone_key: Tensor
    """Query tokens outside their own interval, and the tokens of their own keys (each key belongs to one query)."""


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    problem: Problem,
    scale: Tensor,
    bias: RelativeBias,
    alpha: float,
    dropout: float,
    seed: int,
) -> Tensor:
    """[Tq, H, Dv]; arguments as in `kernels.attention.reference_attention`."""
    heads, dim = q.shape[1], v.shape[2]
    plan = planned(problem, ("blocked", len(k), heads), lambda: make_plan(problem, len(k), heads))
    tiled_q, tiled_k, tiled_v = gather(plan, q, k, v)
    tiled_out = tiled_q.new_empty(len(tiled_q), dim)
    for at, tile in enumerate(plan.tiles):
        queries, keys, values = views(tile, heads, tiled_q, tiled_k, tiled_v)
        weights = F.silu(scores(tile, queries, keys, problem, bias, alpha), inplace=True)
        if dropout > 0.0:
            weights *= keep(weights, dropout, seed, at)
        torch.bmm(weights, values, out=tiled_out[tile.q_rows].view(tile.count * heads, tile.rows, dim))
    out = collect_queries(plan, tiled_out).view(len(q), heads, dim)
    if len(plan.alone):
        weights = F.silu(own_scores(plan, q, k, problem, bias, alpha))
        if dropout > 0.0:
            weights *= keep(weights, dropout, seed, len(plan.tiles))
        out.index_add_(0, plan.alone, weights.unsqueeze(-1) * v[plan.alone_key])
    return out.mul_(scale[:, None, None].to(out.dtype))


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    problem: Problem,
    scale: Tensor,
    bias: RelativeBias,
    alpha: float,
    dropout: float,
    seed: int,
) -> list[Tensor]:
    """Gradients of q, k, v and of whichever tables `bias` has. Scores are recomputed, so nothing of size L x L is
    kept.
    """
    heads = q.shape[1]
    plan = planned(problem, ("blocked", len(k), heads), lambda: make_plan(problem, len(k), heads))
    grad = grad * scale[:, None, None].to(grad.dtype)
    tables = [torch.zeros_like(t) for t in (bias.position_table, bias.time_table) if t is not None]
    tiled_q, tiled_k, tiled_v = gather(plan, q, k, v)
    tiled_grad = take(grad, plan.q_take).index_fill_(0, plan.q_padding, 0.0)
    grad_q, grad_k, grad_v = torch.empty_like(tiled_q), torch.empty_like(tiled_k), torch.empty_like(tiled_v)
    for at, tile in enumerate(plan.tiles):
        queries, keys, values = views(tile, heads, tiled_q, tiled_k, tiled_v)
        above = tiled_grad[tile.q_rows].view(tile.count * heads, tile.rows, -1)
        to_q, to_k, to_v = views(tile, heads, grad_q, grad_k, grad_v)
        score = scores(tile, queries, keys, problem, bias, alpha)
        weights = F.silu(score)
        slope = torch.bmm(above, values.transpose(1, 2))
        if dropout > 0.0:
            kept = keep(weights, dropout, seed, at)
            weights *= kept
            slope *= kept
        torch.bmm(weights.transpose(1, 2), above, out=to_v)
        slope = torch.ops.aten.silu_backward(slope, score)
        torch.bmm(slope, keys, out=to_q)
        torch.bmm(slope.transpose(1, 2), queries, out=to_k)
        if tables:
            add_table_gradients(tables, slope.view(tile.count, heads, tile.rows, tile.keys), tile, problem, bias)
    dq = collect_queries(plan, grad_q).mul_(alpha).view(q.shape)
    dk = collect_keys(plan, grad_k).mul_(alpha).view(k.shape)
    dv = collect_keys(plan, grad_v).view(v.shape)
    if len(plan.alone):
        score = own_scores(plan, q, k, problem, bias, alpha)
        weights, above = F.silu(score), grad[plan.alone]
        slope = (above * v[plan.alone_key]).sum(-1)
        if dropout > 0.0:
            kept = keep(weights, dropout, seed, len(plan.tiles))
            weights *= kept
            slope *= kept
        slope = torch.ops.aten.silu_backward(slope, score)
        dv.index_add_(0, plan.alone_key, weights.unsqueeze(-1) * above)
        dq.index_add_(0, plan.alone, (alpha * slope).unsqueeze(-1) * k[plan.alone_key])
        dk.index_add_(0, plan.alone_key, (alpha * slope).unsqueeze(-1) * q[plan.alone])
        for table, rows in zip(tables, own_rows(plan, problem, bias), strict=True):
            table.index_add_(0, rows, slope.to(table.dtype))
    return [dq, dk, dv, *tables]


# --- scores -----------------------------------------------------------------------------------------------------------


def scores(tile: Tile, queries: Tensor, keys: Tensor, problem: Problem, bias: RelativeBias, alpha: float) -> Tensor:
    """[count * heads, rows, keys]: `alpha q.k + bias`, hidden pairs at `HIDDEN`."""
    product = torch.bmm(queries, keys.transpose(1, 2)).mul_(alpha)
    by_head = product.view(tile.count, -1, tile.rows, tile.keys)
    for table, rows in zip(tables_of(bias), tile_rows(tile, problem, bias), strict=True):
        by_head += table.t()[:, rows].transpose(0, 1).to(by_head.dtype)
    if tile.hidden is not None:
        by_head.masked_fill_(tile.hidden, HIDDEN)
    return product


def own_scores(plan: Plan, q: Tensor, k: Tensor, problem: Problem, bias: RelativeBias, alpha: float) -> Tensor:
    """[alone, heads]: scores of the queries that see their own key outside their interval."""
    score = (q[plan.alone] * k[plan.alone_key]).sum(-1).mul_(alpha)
    for table, rows in zip(tables_of(bias), own_rows(plan, problem, bias), strict=True):
        score += table[rows].to(score.dtype)
    return score


def tables_of(bias: RelativeBias) -> list[Tensor]:
    return [t for t in (bias.position_table, bias.time_table) if t is not None]


def tile_rows(tile: Tile, problem: Problem, bias: RelativeBias) -> Iterator[Tensor]:
    """Rows of each table of the bias for all pairs of a tile: int64 [count, rows, keys]."""
    return bias_rows(own_key(tile.q_tokens, problem).unsqueeze(-1), tile.k_tokens.unsqueeze(-2), problem, bias)


def own_rows(plan: Plan, problem: Problem, bias: RelativeBias) -> Iterator[Tensor]:
    """The same for the queries that are alone, with their own keys: int64 [alone]."""
    return bias_rows(plan.alone_key, plan.alone_key, problem, bias)


def bias_rows(own: Tensor, key: Tensor, problem: Problem, bias: RelativeBias) -> Iterator[Tensor]:
    from genrank.kernels.attention import position_row, time_row

    if bias.position_table is not None:
        positions = bias.positions
        # Within one sample, differences of token numbers are differences of local indices.
        distance = own - key if positions is None else (positions[own] - positions[key]).long()
        yield position_row(distance, bias.position_table.shape[0])
    if bias.time_table is not None:
        assert bias.timestamps is not None
        yield time_row(bias.timestamps[own] - bias.timestamps[key], bias.time_table.shape[0])


def own_key(q_tokens: Tensor, problem: Problem) -> Tensor:
    """The key token of query tokens."""
    if problem.q_positions is None:
        return q_tokens
    sample = torch.searchsorted(problem.q_offsets, q_tokens.to(problem.q_offsets.dtype), right=True) - 1
    return problem.k_offsets[sample].long() + problem.q_positions[q_tokens]


def add_table_gradients(tables: list[Tensor], slope: Tensor, tile: Tile, problem: Problem, bias: RelativeBias) -> None:
    for table, rows in zip(tables, tile_rows(tile, problem, bias), strict=True):
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


# --- the plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunks:
    """Per chunk: its first query token and how many, its first key token and how many, and whether all rows see all
    keys.
    """

    q: NDArray[np.int64]
    rows: NDArray[np.int64]
    k: NDArray[np.int64]
    keys: NDArray[np.int64]
    full: NDArray[np.bool_]

    def take(self, at: NDArray[np.int64]) -> Chunks:
        return Chunks(self.q[at], self.rows[at], self.k[at], self.keys[at], self.full[at])


def make_plan(problem: Problem, key_tokens: int, heads: int) -> Plan:
    starts, k_starts = problem.q_offsets.numpy().astype(np.int64), problem.k_offsets.numpy().astype(np.int64)
    tokens = len(problem.begin)
    sample = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    check_problem(problem, key_tokens)
    first_key = k_starts[sample]
    own = np.arange(tokens, dtype=np.int64) if problem.q_positions is None else first_key + problem.q_positions.numpy()
    begin, end = first_key + problem.begin.numpy(), first_key + problem.end.numpy()

    chunks = cut(starts, begin, end)
    groups = list(group(chunks, heads))
    tiles: list[Tile] = []
    q_take, k_take, k_padding, q_padding = [], [], [], []
    q_from = np.full(tokens * heads, -1, dtype=np.int64)
    q_row = k_row = 0
    for members in groups:
        some = chunks.take(members)
        count, rows, keys = len(members), int(some.rows.max()), int(some.keys.max())
        row, key = np.arange(rows), np.arange(keys)
        q_tokens = some.q[:, None] + np.minimum(row, some.rows[:, None] - 1)
        k_tokens = some.k[:, None] + np.minimum(key, some.keys[:, None] - 1)
        hidden = None
        if not some.full.all():
            real = k_tokens[:, None, :]
            hidden = torch.from_numpy((real < begin[q_tokens][:, :, None]) | (real >= end[q_tokens][:, :, None]))[
                :, None
            ]
        q_at = q_row + np.arange(count * heads * rows).reshape(count, heads, rows)
        real_row = np.broadcast_to((row < some.rows[:, None])[:, None, :], q_at.shape)
        q_rows = by_head(q_tokens, heads)
        q_from[q_rows[real_row]] = q_at[real_row]
        padding = np.broadcast_to((key >= some.keys[:, None])[:, None, :], (count, heads, keys))
        q_take.append(q_rows.ravel())
        k_take.append(by_head(k_tokens, heads).ravel())
        k_padding.append(padding.ravel())
        q_padding.append(~real_row.ravel())
        tiles.append(
            Tile(
                count,
                rows,
                keys,
                slice(q_row, q_row + q_at.size),
                slice(k_row, k_row + padding.size),
                torch.from_numpy(q_tokens),
                torch.from_numpy(k_tokens),
                hidden,
            )
        )
        q_row, k_row = q_row + q_at.size, k_row + padding.size
    taken = np.concatenate([np.empty(0, np.int64), *k_take])
    padded = np.concatenate([np.empty(0, bool), *k_padding])
    order = np.argsort(np.where(padded, key_tokens * heads, taken), kind="stable")[: len(taken) - int(padded.sum())]
    copies = np.bincount(taken[~padded], minlength=key_tokens * heads)
    alone = np.flatnonzero((own < begin) | (own >= end))
    arrays = (
        np.concatenate([np.empty(0, np.int64), *q_take]),
        taken,
        np.flatnonzero(padded),
        np.flatnonzero(np.concatenate([np.empty(0, bool), *q_padding])),
        np.maximum(q_from, 0),
        np.flatnonzero(q_from < 0),
        order,
        np.concatenate([[0], np.cumsum(copies)]),
        alone,
        own[alone],
    )
    return Plan(tiles, *[torch.from_numpy(a) for a in arrays])


def by_head(tokens: NDArray[np.int64], heads: int) -> NDArray[np.int64]:
    """Rows [count, heads, n] of tokens [count, n]."""
    return tokens[:, None, :] * heads + np.arange(heads)[:, None]


def cut(starts: NDArray[np.int64], begin: NDArray[np.int64], end: NDArray[np.int64]) -> Chunks:
    """Chunks of the queries that see anything; begin and end count key tokens of the batch."""
    lengths = np.diff(starts)
    pieces = -(-lengths // CHUNK_ROWS)
    which = np.repeat(np.arange(len(lengths)), pieces)
    piece = np.arange(len(which)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    q = starts[which] + piece * CHUNK_ROWS
    rows = np.minimum(starts[which + 1] - q, CHUNK_ROWS)
    if not len(q):
        return Chunks(q, rows, q, rows, rows > 0)
    sees = begin < end
    low = np.minimum.reduceat(np.where(sees, begin, np.iinfo(np.int64).max), q)
    high = np.maximum.reduceat(np.where(sees, end, -1), q)
    full = (np.maximum.reduceat(begin, q) == low) & (np.minimum.reduceat(end, q) == high)
    chunks = Chunks(q, rows, low, high - low, full)
    return chunks.take(np.flatnonzero(high > low))


def group(chunks: Chunks, heads: int) -> Iterator[NDArray[np.int64]]:
    """Chunks that make a tile together: of nearly one shape, all with or all without a mask."""
    shape_class = np.ceil(np.log(np.maximum(chunks.keys, 1)) / math.log(PADDING))
    order = np.lexsort((chunks.keys, chunks.rows, shape_class, chunks.full))
    first = 0
    while first < len(order):
        last, rows, keys, needed = first, 0, 0, 0
        while last < len(order) and chunks.full[order[last]] == chunks.full[order[first]]:
            at = order[last]
            rows, keys = max(rows, int(chunks.rows[at])), max(keys, int(chunks.keys[at]))
            needed += int(chunks.rows[at] * chunks.keys[at])
            held = (last - first + 1) * rows * keys
            if last > first and (held > PADDING * needed or held * heads > TILE_WEIGHTS):
                break
            last += 1
        yield order[first:last]
        first = last

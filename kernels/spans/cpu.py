"""Span attention on CPU: a few batched matrix products over tiles of similar shape.

A *chunk* is up to `ROWS` consecutive queries of one sample, with the keys that any of them sees: of each span those from the least
begin to the greatest end. Chunks of similar shape form a *tile*, padded a little and computed at once for all heads. The tiles are
planned once per batch and remembered while the spans live: every layer, forward and backward, shares them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from genrank.kernels.attention.bias import position_row, time_row
from genrank.kernels.attention.interval import planned
from genrank.kernels.spans.call import SpanBias, SpanCall, Spans

ROWS = 64
"""Queries of a chunk: fewer would save more of a causal triangle and lose more to small matrix products."""
TILE_WEIGHTS = 1 << 18
"""Attention weights of a tile, of one head: enough to amortise PyTorch's dispatch, few enough to stay in the cache."""
PADDING = 1.3
"""A tile may hold this many times the weights that its chunks need."""


@dataclass(frozen=True)
class Tile:
    """n chunks of at most R queries and K keys."""

    rows: Tensor
    """int64 [n, R]: query tokens; padding repeats one of the chunk."""
    real: Tensor
    """bool [n, R]: not padding."""
    keys: Tensor
    """int64 [n, K]: key tokens; padding repeats token 0."""
    hidden: Tensor
    """bool [n, 1, R, K]: the pairs that are not visible, padding among them."""


def forward(q: Tensor, k: Tensor, v: Tensor, call: SpanCall) -> tuple[Tensor, Tensor]:
    """`reference_span_attention`, and the log-sum-exp of each query's scores ([0, H] for SiLU)."""
    kept = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = v.new_zeros(q.shape[0], q.shape[1], v.shape[2])
    lse = q.new_full((q.shape[0] if call.softmax else 0, q.shape[1]), torch.inf, dtype=kept)
    for tile in plan_of(call.spans, len(k)):
        score = scores(tile, heads_first(q[tile.rows], kept), heads_first(k[tile.keys], kept), call)
        if call.softmax:
            score.masked_fill_(tile.hidden, -torch.inf)
            total = torch.logsumexp(score, 3)
            some = total > -torch.inf
            total = torch.where(some, total, torch.inf)
            weights = torch.exp(score - total[..., None])
            lse[tile.rows[tile.real]] = total.transpose(1, 2)[tile.real]
        else:
            weights = F.silu(score).masked_fill_(tile.hidden, 0.0) * call.scale[tile.rows][:, None, :, None].to(kept)
        result = (weights @ heads_first(v[tile.keys], kept)).transpose(1, 2)
        out[tile.rows[tile.real]] = result[tile.real].to(out.dtype)
    return out, lse


def backward(
    grad_out: Tensor, lse: Tensor, delta: Tensor, q: Tensor, k: Tensor, v: Tensor, call: SpanCall
) -> list[Tensor]:
    """Gradients of q, k, v and of whichever tables the bias has. Scores are recomputed: nothing of size L x L is kept.
    delta: [Tq, H], `grad_out . out` (softmax only)."""
    kept = torch.float64 if q.dtype == torch.float64 else torch.float32
    dq, dk, dv = (torch.zeros(x.shape, dtype=kept) for x in (q, k, v))
    tables = [torch.zeros(t.shape, dtype=kept) for t in call.bias.tables]
    for tile in plan_of(call.spans, len(k)):
        queries, keys, values = (
            heads_first(x[rows], kept) for x, rows in ((q, tile.rows), (k, tile.keys), (v, tile.keys))
        )
        upstream = heads_first(grad_out[tile.rows], kept)
        score = scores(tile, queries, keys, call)
        slope = upstream @ values.transpose(2, 3)
        if call.softmax:
            score.masked_fill_(tile.hidden, -torch.inf)
            weights = torch.exp(score - lse[tile.rows].transpose(1, 2)[..., None])
            slope = weights * (slope - delta[tile.rows].transpose(1, 2)[..., None])
        else:
            scale = call.scale[tile.rows][:, None, :, None].to(kept)
            weights = F.silu(score).masked_fill_(tile.hidden, 0.0) * scale
            slope = torch.ops.aten.silu_backward(slope, score).masked_fill_(tile.hidden, 0.0) * scale
        dq[tile.rows[tile.real]] = (call.alpha * slope @ keys).transpose(1, 2)[tile.real]
        flat = tile.keys.flatten()
        dk.index_add_(0, flat, (call.alpha * slope.transpose(2, 3) @ queries).transpose(1, 2).flatten(0, 1))
        dv.index_add_(0, flat, (weights.transpose(2, 3) @ upstream).transpose(1, 2).flatten(0, 1))
        for table, rows in zip(tables, bias_rows(tile, call.bias), strict=True):
            table.index_add_(0, rows.flatten(), slope.permute(0, 2, 3, 1).flatten(0, 2))
    grads = [d.to(x.dtype) for d, x in zip((dq, dk, dv), (q, k, v), strict=True)]
    return [*grads, *(d.to(t.dtype) for d, t in zip(tables, call.bias.tables, strict=True))]


def heads_first(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[n, L, H, D] -> [n, H, L, D]."""
    return x.transpose(1, 2).to(dtype)


def scores(tile: Tile, queries: Tensor, keys: Tensor, call: SpanCall) -> Tensor:
    """[n, H, R, K]: `alpha q.k + bias`, of hidden pairs too."""
    score = (queries @ keys.transpose(2, 3)).mul_(call.alpha)
    for table, rows in zip(call.bias.tables, bias_rows(tile, call.bias), strict=True):
        score += table[rows].permute(0, 3, 1, 2).to(score.dtype)
    return score


def bias_rows(tile: Tile, bias: SpanBias) -> Iterator[Tensor]:
    """Rows of each table of the bias for all pairs of a tile: int64 [n, R, K]."""
    if bias.position_table is not None:
        assert bias.q_positions is not None and bias.k_positions is not None
        distance = bias.q_positions[tile.rows][:, :, None].long() - bias.k_positions[tile.keys][:, None].long()
        yield position_row(distance, bias.position_table.shape[0])
    if bias.time_table is not None:
        assert bias.q_times is not None and bias.k_times is not None
        yield time_row(bias.q_times[tile.rows][:, :, None] - bias.k_times[tile.keys][:, None], len(bias.time_table))


# --- the plan ---------------------------------------------------------------------------------------------------------


def plan_of(spans: Spans, key_tokens: int) -> list[Tile]:
    """Made once for all layers."""
    return planned(spans, ("spans", key_tokens), lambda: make_tiles(spans, key_tokens))


def make_tiles(spans: Spans, key_tokens: int) -> list[Tile]:
    """The tiles of spans over `key_tokens` keys; checks the spans (`check_spans`)."""
    check_spans(spans, key_tokens)
    starts, firsts = spans.q_offsets.numpy().astype(np.int64), spans.k_offsets.numpy().astype(np.int64)
    sample = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    begin = spans.begin.numpy() + firsts[sample]
    end = spans.end.numpy() + firsts[sample]
    chunks: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for start, stop in itertools.pairwise(starts):
        for first in range(int(start), int(stop), ROWS):
            rows = np.arange(first, min(first + ROWS, int(stop)))
            keys = keys_of(begin[:, rows], end[:, rows])
            if len(keys):
                chunks.append((rows, keys))
    chunks.sort(key=lambda chunk: (len(chunk[0]), len(chunk[1])))
    tiles: list[Tile] = []
    members: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    needed = 0
    for chunk in chunks:
        most_rows = max(len(r) for r, _ in [*members[-1:], chunk])
        most_keys = max(len(k) for _, k in [*members, chunk])
        weights = (len(members) + 1) * most_rows * most_keys
        own = len(chunk[0]) * len(chunk[1])
        if members and (weights > TILE_WEIGHTS or weights > PADDING * (needed + own)):
            tiles.append(make_tile(members, begin, end))
            members, needed = [], 0
        members.append(chunk)
        needed += own
    return [*tiles, make_tile(members, begin, end)] if members else tiles


def keys_of(begin: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """The keys that any of a chunk's rows may see: of each span ([S, rows]) all from the least begin to the greatest end."""
    seen = [np.arange(b[b < e].min(), e[b < e].max()) for b, e in zip(begin, end, strict=True) if (b < e).any()]
    return np.unique(np.concatenate(seen)) if seen else np.zeros(0, np.int64)


def make_tile(
    members: list[tuple[NDArray[np.int64], NDArray[np.int64]]], begin: NDArray[np.int64], end: NDArray[np.int64]
) -> Tile:
    """A tile of chunks, padded to the largest."""
    n, rows, keys = len(members), max(len(r) for r, _ in members), max(len(k) for _, k in members)
    row_at, real = np.zeros((n, rows), np.int64), np.zeros((n, rows), bool)
    key_at, real_key = np.zeros((n, keys), np.int64), np.zeros((n, keys), bool)
    for i, (r, k) in enumerate(members):
        row_at[i] = np.pad(r, (0, rows - len(r)), mode="edge")
        real[i, : len(r)] = True
        key_at[i, : len(k)], real_key[i, : len(k)] = k, True
    visible = np.zeros((n, rows, keys), bool)
    for b, e in zip(begin, end, strict=True):
        visible |= (key_at[:, None] >= b[row_at][:, :, None]) & (key_at[:, None] < e[row_at][:, :, None])
    visible &= real[:, :, None] & real_key[:, None]
    at, there, of, hidden = (torch.from_numpy(x) for x in (row_at, real, key_at, ~visible[:, None]))
    return Tile(at, there, of, hidden)


def check_spans(spans: Spans, key_tokens: int) -> None:
    """Raises ValueError, naming the first wrong query, for offsets or spans that leave their sample, or overlap."""
    queries = spans.begin.shape[1]
    for name, offsets, tokens in (("q", spans.q_offsets, queries), ("k", spans.k_offsets, key_tokens)):
        wrong = len(offsets) == 0 or int(offsets[0]) != 0 or int(offsets[-1]) != tokens
        if wrong or bool((offsets[1:] < offsets[:-1]).any()):
            raise ValueError(f"{name} offsets must rise from 0 to {tokens}, the number of {name} tokens")
    lengths = torch.repeat_interleave(spans.k_offsets.diff(), spans.q_offsets.diff())
    reached = torch.zeros_like(lengths)
    for begin, end in zip(spans.begin, spans.end, strict=True):
        wrong = (begin < end) & ((begin < reached) | (end > lengths))
        if bool(wrong.any()):
            at = int(wrong.int().argmax())
            raise ValueError(
                f"query {at} sees keys [{int(begin[at])}, {int(end[at])}) of its sample, which has {int(lengths[at])}, and spans before"
                f" reach {int(reached[at])}; spans are local, rise and do not overlap (make_spans)"
            )
        reached = torch.where(begin < end, end.to(reached.dtype), reached)

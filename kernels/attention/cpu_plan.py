"""The plan of attention on CPU: which queries and keys are computed together, and where their rows lie (`cpu.py`)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genrank.kernels.attention.interval import IntervalMask, check_mask

CHUNK_ROWS = 128
"""Rows of a chunk: fewer would save more of a causal triangle and lose more to small matrix products."""
TILE_WEIGHTS = 1 << 18
"""Attention weights of a tile: enough to amortise PyTorch's dispatch, few enough to stay in the cache."""
PADDING = 1.15
"""A tile may hold this many times the weights that its chunks need."""


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
    self_only: Tensor
    self_only_key: Tensor
    """Query tokens outside their own interval, and the tokens of their own keys (each key belongs to one query)."""


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
        """Some of the chunks, in this order."""
        return Chunks(self.q[at], self.rows[at], self.k[at], self.keys[at], self.full[at])


def make_plan(mask: IntervalMask, key_tokens: int, heads: int) -> Plan:
    """The plan of a mask over `key_tokens` keys; checks the mask (`check_mask`)."""
    starts, k_starts = mask.q_offsets.numpy().astype(np.int64), mask.k_offsets.numpy().astype(np.int64)
    tokens = len(mask.begin)
    sample = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    check_mask(mask, key_tokens)
    first_key = k_starts[sample]
    own = np.arange(tokens, dtype=np.int64) if mask.q_positions is None else first_key + mask.q_positions.numpy()
    begin, end = first_key + mask.begin.numpy(), first_key + mask.end.numpy()

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
    self_only = np.flatnonzero((own < begin) | (own >= end))
    arrays = (
        np.concatenate([np.empty(0, np.int64), *q_take]),
        taken,
        np.flatnonzero(padded),
        np.flatnonzero(np.concatenate([np.empty(0, bool), *q_padding])),
        np.maximum(q_from, 0),
        np.flatnonzero(q_from < 0),
        order,
        np.concatenate([[0], np.cumsum(copies)]),
        self_only,
        own[self_only],
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

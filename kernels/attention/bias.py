"""Relative attention bias: its tables, and which row of them a pair of tokens reads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BUCKET_WIDTH = 0.301
"""HSTU's time buckets are `floor(ln(max(1, |dt|)) / 0.301)`: each is e^0.301 = 1.35 times as wide as the one before."""


class RelativeBias(NamedTuple):
    """Relative attention bias, added to the scores before SiLU (HSTU, arXiv 2402.17152, `rab^{p,t}`). Both tables may
    be trained.

    position_table: [2P-1, H]. Row `clamp(position_q - position_k, 1-P, P-1) + P-1`: row P-1 is distance 0, rows above
        it are keys before the query. (Meta's code stores the same table the other way round, indexed by `position_k -
        position_q`.)
    time_table: [num_time_buckets, H]. Row `min(floor(ln(max(1, |ts_q - ts_k|)) / 0.301), num_time_buckets - 1)`,
        computed in float32. With timestamps in seconds (HSTU's choice) 64 buckets reach 7 years; in milliseconds 87
        do. Meta's retrieval code takes the query's *next* timestamp for ts_q; a ranker must not read the future, so
        ts_q is the query's own.
    timestamps: int64 [T], in the unit the table was trained with; required by `time_table`.
    positions: int32 [T], optional: the position of each token, by default its index in its sample. Give all candidates
        of a sample one position when their scores must not depend on the order in which they are listed.
    """

    position_table: Tensor | None = None
    time_table: Tensor | None = None
    timestamps: Tensor | None = None
    positions: Tensor | None = None

    @property
    def tables(self) -> list[Tensor]:
        """Whichever tables there are, the position table first."""
        return [table for table in self[:2] if table is not None]


def position_row(distance: Tensor, rows: int) -> Tensor:
    """Row of `position_table` for `position_q - position_k`; `rows` is 2P-1."""
    reach = (rows - 1) // 2
    return distance.clamp(-reach, reach) + reach


def time_row(elapsed: Tensor, rows: int) -> Tensor:
    """Row of `time_table` for `ts_q - ts_k` (int64)."""
    buckets = torch.log(elapsed.abs().clamp(min=1).float()) / BUCKET_WIDTH
    return buckets.long().clamp(max=rows - 1)

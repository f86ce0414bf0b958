"""Which users a day's samples are worked out again for: those whose ids hash lowest, with the day as the seed."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from genrank.pipelines.arrays import single_array

Hashes = NDArray[np.uint64]


def draw(users: pa.Array | pa.ChunkedArray, day: int) -> Hashes:
    """A number per row, the same for equal users, spread evenly over 64 bits; another one every day."""
    column = single_array(users)
    series = pl.from_arrow(column if pa.types.is_string(column.type) else column.cast(pa.int64()))
    assert isinstance(series, pl.Series)
    hashed: Hashes = series.hash(day).to_numpy()
    return hashed


def below(users: int, wanted: int) -> int:
    """The number that about `2 * wanted` of `users` users draw less than; all of them where there are few."""
    return (1 << 64) - 1 if users <= 2 * wanted else (1 << 64) * 2 * wanted // users


def lowest(users: pa.Array, day: int, wanted: int) -> list[int | str]:
    """Up to `wanted` users, of those that draw the lowest numbers."""
    unique = single_array(users).unique()
    order = np.argsort(draw(unique, day), kind="stable")[:wanted]
    chosen: list[int | str] = unique.take(pa.array(order)).to_pylist()
    return chosen

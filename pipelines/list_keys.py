"""Keys that are lists of ids: a row stands at as many keys as its list holds different ids, and their answers become one value.

A row without an id stands at one key that is missing, at which nothing ever was.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from genrank.pipelines.arrays import single_array, taken
from genrank.pipelines.exact_sums import Float, grouped, rounded, split
from genrank.pipelines.merge_scan import Int
from genrank.schemas.features.cross_feature import Reduction
from genrank.schemas.ids import MISSING_ID


def keys_of(lists: pa.ListArray | pa.ChunkedArray) -> Int:
    """[rows] at how many keys each row stands."""
    return np.maximum(_lengths(lists), 1)


def exploded(table: pa.Table, column: str) -> pa.Table:
    """A row for each key: of the list in `column` one id, int64; the other columns as they are."""
    lists = single_array(table.column(column))
    lengths, number = _lengths(lists), keys_of(lists)
    ids = np.full(int(number.sum()), MISSING_ID)
    ids[np.repeat(lengths > 0, number)] = lists.flatten().to_numpy()
    rows = taken(table.drop_columns([column]), np.repeat(np.arange(len(number)), number))
    return rows.append_column(column, pa.array(ids))


def reduced(how: Reduction, answers: Float, number: Int) -> Float:
    """[rows] the answers at each row's keys as one; those that are missing (NaN) are left out, and without any the row's is.

    Args:
        answers: [keys] of the first row, then of the second, and so on.
        number: [rows] keys of each row, 1 or more.
    """
    there: NDArray[np.bool_] = ~np.isnan(answers)
    row = np.repeat(np.arange(len(number)), number)[there]
    count = np.bincount(row, minlength=len(number))
    if how in ("max", "min"):
        sign = 1.0 if how == "max" else -1.0
        extreme = np.full(len(number), -np.inf)
        np.maximum.at(extreme, row, sign * answers[there])
        # Plus 0: a zero has one sign, whichever key it came from.
        found = sign * extreme + 0.0
    else:
        found = rounded(grouped(split(answers[there]), row, len(number)))
        if how == "mean":
            found = found / np.maximum(count, 1)
    return np.where(count > 0, found, np.nan)


def _lengths(lists: pa.ListArray | pa.ChunkedArray) -> Int:
    lengths: Int = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths

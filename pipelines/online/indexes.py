"""Rows in memory, found by an int64 key: a block of loaded rows, and a small one of those that came since."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from genrank.pipelines.arrays import int64s
from genrank.pipelines.merge_scan import Bool, Int, ranges


class RowsByKey:
    """Rows of a table by key and time.

    Args:
        rows: any order.
        key: the column they are found by; one with `ts` is cut by time, too.
    """

    def __init__(self, rows: pa.Table, key: str) -> None:
        self.timed = "ts" in rows.column_names
        keys = int64s(rows, key)
        order = np.lexsort((int64s(rows, "ts"), keys)) if self.timed else np.argsort(keys, kind="stable")
        self.rows = rows.take(pa.array(order)).combine_chunks()
        self._keys = keys[order]
        self._ts = int64s(self.rows, "ts") if self.timed else self._keys

    def at(self, keys: Int, since: int | None = None) -> pa.Table:
        """Rows of distinct keys; with `since`, those with `ts` at or after it."""
        begin, end = np.searchsorted(self._keys, keys, "left"), np.searchsorted(self._keys, keys, "right")
        if since is not None and self.timed:
            cut = [
                low + np.searchsorted(self._ts[low:high], since, "left") for low, high in zip(begin, end, strict=True)
            ]
            begin = np.array(cut, np.int64)
        if len(keys) == 1:
            return self.rows.slice(int(begin[0]), int(end[0] - begin[0]))
        return self.rows.take(pa.array(ranges(begin, end - begin)))


class GrowingIndex:
    """What a function makes of a source's rows, by key: of those loaded, and of those that came since.

    Args:
        make: rows of a partial -> rows with the key.
        key: the column they are found by.
        loaded: rows of partials.
    """

    def __init__(self, make: Callable[[pa.Table], pa.Table], key: str, loaded: pa.Table) -> None:
        self._make, self._key = make, key
        self._blocks = [RowsByKey(make(loaded), key)]

    def extend(self, since: pa.Table) -> None:
        """Rows that came since loading: all of them, in place of those known before."""
        self._blocks = [self._blocks[0], RowsByKey(self._make(since), self._key)]

    def at(self, keys: Int, since: int | None = None) -> pa.Table:
        """As `RowsByKey.at`."""
        return _concatenated([block.at(keys, since) for block in self._blocks])


class SnapshotRows:
    """One day of a snapshot, by key."""

    def __init__(self, rows: pa.Table) -> None:
        order = np.argsort(int64s(rows, "u"), kind="stable")
        self.rows = rows.take(pa.array(order)).combine_chunks()
        self._keys = int64s(self.rows, "u")

    def find(self, keys: Int) -> tuple[pa.Array, Bool]:
        """([n] positions in `rows`, null where there is none; [n] whether there is one)."""
        at = np.searchsorted(self._keys, keys)
        known = at < len(self._keys)
        known[known] = self._keys[at[known]] == keys[known]
        return pa.array(np.where(known, at, 0), mask=~known), known


def _concatenated(tables: Sequence[pa.Table]) -> pa.Table:
    held = [table for table in tables if table.num_rows]
    return pa.concat_tables(held).combine_chunks() if len(held) > 1 else (held or tables)[0]

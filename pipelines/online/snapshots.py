"""One day of a snapshot in memory, found by its key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from genrank.pipelines.arrays import int64s, single_array
from genrank.pipelines.merge_scan import Bool, Int
from genrank.schemas import Snapshot
from genrank.schemas.base import DAY_MS, parse_duration


class SnapshotRows:
    """One day of a snapshot, by key.

    Args:
        rows: of its partial, any order.
    """

    def __init__(self, rows: pa.Table) -> None:
        order = np.argsort(int64s(rows, "u"), kind="stable")
        self.rows = rows.take(pa.array(order)).combine_chunks()
        self._keys = int64s(self.rows, "u")
        self._padded: dict[str, pa.Array] = {}

    def find(self, keys: Int) -> tuple[pa.Array, Bool]:
        """([n] positions in `rows`, null where there is none; [n] whether there is one)."""
        at = self.places(keys)
        known = at < len(self._keys)
        return pa.array(np.where(known, at, 0), mask=~known), known

    def places(self, keys: Int) -> Int:
        """[n] positions in `rows`, and in what `padded` gives; the number of rows where there is none."""
        at = np.searchsorted(self._keys, keys)
        if not len(self._keys):
            return at
        return np.where(self._keys[np.minimum(at, len(self._keys) - 1)] == keys, at, len(self._keys))

    def padded(self, name: str, make: Callable[[pa.Table], pa.Array]) -> pa.Array:
        """[rows + 1] what a function makes of the rows and, last, of one in which all is null: made once a name."""
        if name not in self._padded:
            schema = self.rows.schema
            nothing = pa.table([pa.nulls(1, field.type) for field in schema], schema=schema)
            self._padded[name] = single_array(make(pa.concat_tables([self.rows, nothing])))
        return self._padded[name]


@dataclass(frozen=True)
class SnapshotDays:
    """The days of a snapshot that are in memory."""

    snapshot: Snapshot
    empty: pa.Table
    """No row of its partials."""
    days: Mapping[int, SnapshotRows] = field(default_factory=dict)
    _found: dict[int, SnapshotRows] = field(default_factory=dict)

    def as_of(self, day: int) -> SnapshotRows:
        """The newest day at or before one that is not too old; no rows where there is none."""
        if day not in self._found:
            oldest = day - parse_duration(self.snapshot.max_age) // DAY_MS
            newest = max((at for at in self.days if oldest <= at <= day), default=None)
            self._found[day] = SnapshotRows(self.empty) if newest is None else self.days[newest]
        return self._found[day]

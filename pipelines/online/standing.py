"""Events of many keys, searched in place: what repeated questions need is sorted and summed up once.

A query costs a few binary searches a statistic, however many events its key has. A block never changes; events that come later are blocks
of their own, whose counts and sums add up (exactly: `exact_sums`) and of whose newest events the newest counts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrank.pipelines.arrays import int64s
from genrank.pipelines.column_roles import Column
from genrank.pipelines.cross_feature_ops.base import has_value
from genrank.pipelines.exact_sums import Parts, running, split
from genrank.pipelines.merge_scan import Axis, Bool, Int, ranges, united


class Choice(NamedTuple):
    """Which of a log's events a statistic counts, by the names of columns."""

    where: str | None = None
    """A flag that they meet."""
    value: Column | None = None
    """A value that they have."""


class Counts(NamedTuple):
    """Chosen events by the moments at which they become visible and leave a window."""

    enter: Int
    """Packed (key, available), ascending."""
    leave: Int
    """Packed (key, ts), ascending."""
    entered: Parts
    """Exact sums of the values of the first 0, 1, ... that entered; empty where nothing is summed."""
    left: Parts
    """The same of those that left."""


class Newest(NamedTuple):
    """Chosen events by the moments at which they become visible."""

    enter: Int
    """Packed (key, available), ascending."""
    best: Int
    """Of the first 1, 2, ... that entered the block's row of the newest; greater for greater keys."""


class Block:
    """Events of many keys, in the order of (key, ts, id).

    Args:
        rows: any order, as `cross_features.events_at_keys` gives them.
    """

    def __init__(self, rows: pa.Table) -> None:
        order = np.lexsort([int64s(rows, name) for name in ("id", "ts", "key")])
        self.rows = rows.take(pa.array(order)).combine_chunks()
        self._columns: dict[str, NDArray[Any]] = {}
        self.key, self.ts, self.id = (self.column(name) for name in ("key", "ts", "id"))
        first = np.flatnonzero(np.concatenate([np.ones(min(len(order), 1), np.bool_), self.key[1:] != self.key[:-1]]))
        self.starts = np.append(first, len(order))
        """[keys + 1] first row of each key."""
        self.keys = self.key[first]
        """[keys] ascending."""
        available = self.column("available")
        self.axis = Axis.over(len(self.keys), self.ts, available)
        self._longest_lag = int((available - self.ts).max(initial=0))
        self._counts: dict[tuple[Choice, int], Counts] = {}
        self._distinct: dict[tuple[Choice, int], Counts] = {}
        self._newest: dict[Choice, Newest] = {}

    def __len__(self) -> int:
        return len(self.key)

    @property
    def nbytes(self) -> int:
        """What it holds in memory."""
        held = {
            id(array): array.nbytes
            for own in (self._counts, self._distinct)
            for c in own.values()
            for array in _arrays(c)
        }
        held |= {id(array): array.nbytes for newest in self._newest.values() for array in newest}
        return int(self.rows.nbytes + sum(held.values()) + self.keys.nbytes + self.starts.nbytes)

    def column(self, name: str) -> NDArray[Any]:
        """A column of the rows."""
        if name not in self._columns:
            self._columns[name] = self.rows.column(name).to_numpy()
        return self._columns[name]

    def find(self, keys: Int) -> Int:
        """Code of each key; -1, whose answers are all 0, where there is none."""
        at = self.keys.searchsorted(keys)
        np.minimum(at, len(self.keys) - 1, out=at)
        at[self.keys[at] != keys] = -1
        return at

    def pack(self, codes: Int, moments: Int) -> Int:
        """`moments` ([..., queries] epoch ms) on the block's axis."""
        return self.axis.pack(codes, moments)

    def counts(self, choice: Choice, window: int) -> Counts:
        """Of events that a window of so many ms can show: not those that leave it before they can be seen."""
        window = window if self._longest_lag >= window else 0
        if (choice, window) not in self._counts:
            rows = self._rows(choice, window)
            enter, leave = self._packed(rows, "available"), self._packed(rows, "ts")
            entered: Parts = {}
            left: Parts = {}
            order = np.argsort(enter, kind="stable")
            if choice.value is not None:
                values = self.column(choice.value.name)[rows]
                entered, left = running(split(values[order])), running(split(values))
            index = Counts(
                enter[order] if self._longest_lag else leave, leave, entered, left if self._longest_lag else entered
            )
            self._counts.setdefault((choice, window), index)
        return self._counts[choice, window]

    def distinct(self, choice: Choice, window: int) -> Counts:
        """Of different values that a window of so many ms shows: each comes with the first of events that hold it in the window without a
        gap, and goes with the last."""
        if (choice, window) not in self._distinct:
            assert choice.value is not None
            rows = self._rows(choice, window)
            codes, begin, end = united(
                self._codes()[rows],
                self.column(choice.value.name)[rows],
                self.column("available")[rows],
                self.ts[rows] + window,
            )
            enter, leave = np.sort(self.pack(codes, begin)), np.sort(self.pack(codes, end - window))
            self._distinct.setdefault((choice, window), Counts(enter, leave, {}, {}))
        return self._distinct[choice, window]

    def newest(self, choice: Choice) -> Newest:
        """Windows of every length share it: an event of a later time hides those before it whether or not it has left."""
        if choice not in self._newest:
            rows = self._rows(choice)
            enter = self._packed(rows, "available")
            order = np.argsort(enter, kind="stable")
            self._newest[choice] = Newest(enter[order], np.maximum.accumulate(rows[order]))
        return self._newest[choice]

    def of_keys(self, codes: Int, since: int, before: int) -> pa.Table:
        """Rows of distinct codes with since <= ts < before."""
        codes = codes[codes >= 0]
        happened = self.counts(Choice(), 0).leave
        begin = np.searchsorted(happened, self.pack(codes, np.full(len(codes), since)))
        end = np.searchsorted(happened, self.pack(codes, np.full(len(codes), before)))
        if len(codes) == 1:
            return self.rows.slice(int(begin[0]), int(end[0] - begin[0]))
        return self.rows.take(pa.array(ranges(begin, np.maximum(end - begin, 0))))

    def _rows(self, choice: Choice, window: int = 0) -> Int:
        chosen: Bool = np.ones(len(self), np.bool_)
        if choice.where is not None:
            chosen &= self.column(choice.where)
        if choice.value is not None:
            chosen &= has_value(self.column(choice.value.name), choice.value)
        if window:
            chosen &= self.column("available") - self.ts < window
        return np.flatnonzero(chosen)

    def _packed(self, rows: Int, time: str) -> Int:
        return self.pack(self._codes()[rows], self.column(time)[rows])

    def _codes(self) -> Int:
        """[rows] code of each row's key."""
        return np.repeat(np.arange(len(self.keys)), np.diff(self.starts))


def _arrays(counts: Counts) -> list[Int]:
    return [counts.enter, counts.leave, *counts.entered.values(), *counts.left.values()]

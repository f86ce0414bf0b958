"""The point-in-time kernel: what was known at one key strictly before a moment. NumPy and Arrow only.

Events and queries meet on one axis: (key, time) packed in one int64, so that one sort orders a whole table and a merge of two
sorted arrays (`searchsorted`) answers every query at once. Keys are first made dense, which is what makes packing safe; a table
too large for 63 bits is refused rather than wrapped.

An event e is visible to a query at time t with window W iff

    e.available < t   and   t - W < e.ts < t

so over the axis of t an event is the interval (available, ts + W): it enters once and leaves once, and every statistic is
(what entered before t) - (what left by t). Sums are float64, added up exactly and rounded once (`exact_sums`): they neither wrap
nor depend on the order; partial sums of days, rounded each, add up to the sum over all days within float64's precision.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from genrank.pipelines.exact_sums import Float, Parts, added, between, grouped, rounded, running, split
from genrank.pipelines.row_order import ascends, sorted_rows

Int = NDArray[np.int64]
Bool = NDArray[np.bool_]
Scalar = TypeVar("Scalar", bound=np.generic)
CACHED = 1 << 13
"""Rows hashed at a time."""
Terms = Callable[[Int], tuple[Parts, ...]]
"""Rows of a scan -> numbers of each, to be summed."""


class Axis(NamedTuple):
    """Packs (dense key, time) so that integer order is (key, time) order; times outside `[first, last]` are clipped beyond it."""

    first: int
    span: int

    @classmethod
    def over(cls, keys: int, *times: Int) -> Axis:
        """An axis for `keys` dense keys that separates all of `times`.

        Raises:
            ValueError: keys x time span does not fit in 62 bits.
        """
        filled = [t for t in times if len(t)]
        first = min((int(t.min()) for t in filled), default=0) - 1
        span = max((int(t.max()) for t in filled), default=0) - first + 2
        return cls(first, span).checked(keys)

    @classmethod
    def roomy(cls, keys: int, axis: Axis) -> Axis:
        """An axis like `axis` that begins as long before it as it is long; raises as `over`."""
        return cls(axis.first - axis.span, 2 * axis.span).checked(keys)

    def checked(self, keys: int) -> Axis:
        """Itself, if it has room for `keys` keys; raises as `over`."""
        if (keys + 1) * self.span >= 1 << 62:
            raise ValueError(f"{keys} keys over {self.span} ms do not fit one axis; use more buckets")
        return self

    def pack(self, keys: Int, times: Int) -> Int:
        """int64 per row; a negative key packs below every other."""
        packed: Int = times - self.first
        np.maximum(packed, 0, out=packed)
        np.minimum(packed, self.span - 1, out=packed)
        packed += keys * self.span
        return packed


class Keys:
    """Dense codes of the distinct values of an int64 column."""

    def __init__(self, values: Int) -> None:
        encoded = pa.array(values).dictionary_encode()
        self.codes: Int = encoded.indices.to_numpy().astype(np.int64)
        self._dictionary = encoded.dictionary
        self.count: int = len(encoded.dictionary)
        self._looked_up: tuple[Int, Int] | None = None

    @property
    def ranks(self) -> Int:
        """Place of each code's value among the values, ascending."""
        ranks = np.empty(self.count, np.int64)
        ranks[np.argsort(self._dictionary.to_numpy())] = np.arange(self.count)
        return ranks

    def find(self, values: Int) -> Int:
        """Codes of other values, read-only; -1 where there is none. Those of the array looked up last, which isn't to change, are remembered."""
        if self._looked_up is not None and _is_one(self._looked_up[0], values):
            return self._looked_up[1]
        found = pc.index_in(pa.array(values), value_set=self._dictionary)
        codes: Int = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        codes.setflags(write=False)
        self._looked_up = values, codes
        return codes


def _is_one(some: Int, others: Int) -> bool:
    """Whether both are views of the same values."""
    return some.__array_interface__ == others.__array_interface__


class Codes(Protocol):
    """Keys that have codes."""

    codes: Int
    """Of each row."""
    count: int
    """Codes are less."""


class Coded(NamedTuple):
    """Rows' keys as codes of distinct ones, which may be others' keys."""

    keys: Codes
    codes: Int
    """-1 where a row's key is none of them."""

    @classmethod
    def own(cls, values: Int) -> Coded:
        """As codes of their own distinct values."""
        keys = Keys(values)
        return cls(keys, keys.codes)


class Queries(NamedTuple):
    """Moments asked about, sorted so that merges walk forward; `scatter` gives answers in the caller's order."""

    keys: Int
    times: Int
    order: Int | None
    """Each sorted query's place in the caller's order; None where that is the sorted one."""

    @property
    def places(self) -> Int:
        """Each sorted query's place in the caller's order."""
        return np.arange(len(self.keys)) if self.order is None else self.order

    def scatter(self, answers: NDArray[Scalar]) -> NDArray[Scalar]:
        """Answers to the sorted queries, in the caller's order."""
        if self.order is None:
            return answers
        out = np.empty_like(answers)
        out[self.order] = answers
        return out


class Scan:
    """Events of many keys, ready to be asked.

    Args:
        keys: int64 [n], any values (hashes of the key columns), or as codes of the keys that queries will have (`of_asked`).
        ts, available: int64 [n] epoch ms, `available >= ts`.
        id: int64 [n], breaks ties in time; None where `newest` isn't asked.
        merged: int64 [n], how many events a row was merged from; 0 for an event as it is, None where all are. A merged row holds
            the sum of its events' values, and every query asked sees either all of them or none.
    """

    def __init__(self, keys: Int | Coded, ts: Int, available: Int, id: Int | None, merged: Int | None = None) -> None:
        self._keys, self._codes = keys if isinstance(keys, Coded) else Coded.own(keys)
        self._ts, self._available, self._id = ts, available, id
        self._merged = merged if merged is not None and merged.any() else None
        self._counting: _Counting | None = None
        """What was prepared for the queries that were counted last."""

    def __len__(self) -> int:
        return len(self._ts)

    def at(self, keys: Int, times: Int) -> Queries:
        """Queries at `times` (int64 ms) of `keys`."""
        assert isinstance(self._keys, Keys)
        return self._queries(self._keys.find(keys), times)

    def of_asked(self, times: Int) -> Queries:
        """Queries of the keys asked, one for each, at `times` (int64 ms)."""
        return self._queries(self._keys.codes, times)

    def _queries(self, codes: Int, times: Int) -> Queries:
        packed = Axis.over(self._keys.count, times).pack(codes, times)
        if ascends(packed):
            return Queries(codes, times, None)
        order = sorted_rows(packed)
        return Queries(codes[order], times[order], order)

    def _alive(self, queries: Queries, window: int, chosen: Bool | None) -> Int:
        """Rows that any of the queries may see: not those that left before the first, come after the last, or arrive when they have
        left already (those would be subtracted, never added)."""
        first, last = queries.times.min(initial=np.iinfo(np.int64).max), queries.times.max(initial=0)
        alive = (self._available - self._ts < window) & (self._available < last) & (self._ts > first - window)
        return np.flatnonzero(alive if chosen is None else alive & chosen)

    def sum(
        self, queries: Queries, window: int, values: Float | None = None, chosen: Bool | None = None
    ) -> tuple[Int, Float]:
        """(int64 number of visible events, float64 sum of their `values`, finite), per query in the caller's order."""
        if values is None and chosen is None and self._merged is None and self._longest_lag < window:
            if self._counting is None or self._counting.queries is not queries:
                happened = self._ts if self._longest_lag else self._available
                self._counting = _Counting(self._keys.count, self._codes, happened, self._available, queries)
            return queries.scatter(self._counting.count(window)), np.zeros(len(queries.keys))
        if values is None:
            return queries.scatter(self.totals(queries, window, chosen=chosen)[0]), np.zeros(len(queries.keys))
        own = values
        count, (total,) = self.totals(queries, window, lambda rows: (split(own[rows]),), chosen)
        return queries.scatter(count), queries.scatter(rounded(total))

    def totals(
        self, queries: Queries, window: int, terms: Terms | None = None, chosen: Bool | None = None
    ) -> tuple[Int, tuple[Parts, ...]]:
        """(int64 number of visible events, exact sums of each of their `terms`), per query in the queries' own order."""
        rows = self._alive(queries, window, chosen)
        base = None
        if self._merged is not None:
            whole = self._merged[rows] > 0
            base = self._totals_merged(queries, window, rows[whole], terms)
            rows = rows[~whole]
        codes, ts, available = self._codes[rows], self._ts[rows], self._available[rows]
        axis = Axis.over(self._keys.count, ts, available)
        enter, leave = axis.pack(codes, available), axis.pack(codes, ts)
        by_enter, by_leave = (None, None) if terms is None else (sorted_rows(enter), sorted_rows(leave))
        entered = np.searchsorted(
            np.sort(enter) if by_enter is None else enter[by_enter], axis.pack(queries.keys, queries.times), "left"
        )
        left = np.searchsorted(
            np.sort(leave) if by_leave is None else leave[by_leave],
            axis.pack(queries.keys, queries.times - window),
            "right",
        )
        known = queries.keys >= 0
        count = np.where(known, entered - left, 0)
        sums: list[Parts] = []
        if terms is not None:
            begin = np.zeros_like(entered)
            for came, went in zip(terms(rows[by_enter]), terms(rows[by_leave]), strict=True):
                seen = added(between(running(came), begin, entered), between(running(went), left, begin))
                sums.append({exponent: np.where(known, part, 0) for exponent, part in seen.items()})
        if base is not None:
            count = count + base[0]
            sums = [added(*both) for both in zip(sums, base[1], strict=True)]
        return count, tuple(sums)

    def merged_from(self, rows: Int) -> Int | None:
        """How many events each row stands for; None where every row of the scan is an event."""
        return None if self._merged is None else np.maximum(self._merged[rows], 1)

    @cached_property
    def _longest_lag(self) -> int:
        """The most ms from an event to its availability."""
        return int((self._available - self._ts).max(initial=0))

    def _totals_merged(
        self, queries: Queries, window: int, rows: Int, terms: Terms | None
    ) -> tuple[Int, tuple[Parts, ...]]:
        """What merged rows add: the same to every query of a key, so that nothing need be sorted."""
        assert self._merged is not None
        first = np.flatnonzero(np.diff(queries.keys, prepend=-2))
        keys, times = queries.keys[first], queries.times[first]
        of_query = np.repeat(np.arange(len(first)), np.diff(first, append=len(queries.keys)))
        codes = self._codes[rows]
        place = np.minimum(np.searchsorted(keys, codes), len(keys) - 1)
        asked = (
            np.flatnonzero((keys[place] == codes) & (self._ts[rows] > times[place] - window))
            if len(keys)
            else place[:0]
        )
        rows, place = rows[asked], place[asked]
        count = np.zeros(len(keys), np.int64)
        np.add.at(count, place, self._merged[rows])
        sums = [grouped(own, place, len(keys)) for own in (terms(rows) if terms else ())]
        return count[of_query], tuple({exponent: of_key[of_query] for exponent, of_key in own.items()} for own in sums)

    def newest(self, queries: Queries, window: int, chosen: Bool | None = None) -> Int:
        """Row of the newest visible event, by (ts, id); -1 where there is none."""
        rows = self._alive(queries, window, chosen)
        if not len(rows):
            return np.full(len(queries.keys), -1, np.int64)
        codes, ts, available = self._codes[rows], self._ts[rows], self._available[rows]
        axis = Axis.over(self._keys.count, ts, available)
        assert self._id is not None
        by_time = np.lexsort((self._id[rows], axis.pack(codes, ts)))
        rank = np.empty(len(rows), np.int64)
        rank[by_time] = np.arange(len(rows))
        enter = axis.pack(codes, available)
        by_enter = sorted_rows(enter, stable=True)
        # Ranks ascend with the key, so a running maximum needs no restart between keys.
        best = np.maximum.accumulate(rank[by_enter])
        entered = np.searchsorted(enter[by_enter], axis.pack(queries.keys, queries.times), "left")
        newest = by_time[best[np.maximum(entered - 1, 0)]]
        seen = (entered > 0) & (codes[newest] == queries.keys) & (ts[newest] > queries.times - window)
        return queries.scatter(np.where(seen, rows[newest], -1))

    def largest(self, queries: Queries, window: int, values: Float, chosen: Bool) -> Float:
        """The largest of the visible events' `values` (finite where chosen), float64 in the caller's order; NaN where there is none.

        Of the sorted queries those that see an event are a run. A run is covered by two runs of one power of two of queries, which may
        overlap; maxima of such runs are handed down to their halves, and are a query's own at length one. O((n + q) log q).
        """
        rows = self._alive(queries, window, chosen)
        codes, enter, leave = self._codes[rows], self._available[rows], self._ts[rows] + window
        axis = Axis.over(self._keys.count, enter, leave, queries.times)
        asked = axis.pack(queries.keys, queries.times)
        first = np.searchsorted(asked, axis.pack(codes, enter), "right")
        last = np.searchsorted(asked, axis.pack(codes, leave), "left")
        some = first < last
        first, last, own = first[some], last[some], values[rows][some]
        level = np.floor(np.log2(last - first)).astype(np.int64)
        best = np.full(len(asked), -np.inf)
        for power in range(int(level.max(initial=0)), -1, -1):
            at, length = level == power, 1 << power
            np.maximum.at(best, first[at], own[at])
            np.maximum.at(best, last[at] - length, own[at])
            if half := length >> 1:
                best[half:] = np.maximum(best[half:], best[:-half].copy())
        # Plus 0: a zero has one sign, whichever event it came from.
        return queries.scatter(np.where(np.isneginf(best), np.nan, best + 0.0))

    def distinct(self, queries: Queries, window: int, values: Int, chosen: Bool | None = None) -> Int:
        """Number of different `values` among visible events: per (key, value) the union of its events' intervals counts once."""
        rows = self._alive(queries, window, chosen)
        codes, begin, end = united(self._codes[rows], values[rows], self._available[rows], self._ts[rows] + window)
        both = Axis.over(self._keys.count, begin, end)
        asked = both.pack(queries.keys, queries.times)
        entered = np.searchsorted(np.sort(both.pack(codes, begin)), asked, "left")
        left = np.searchsorted(np.sort(both.pack(codes, end)), asked, "right")
        return queries.scatter(np.where(queries.keys >= 0, entered - left, 0))


class _Counting:
    """Counts all events, for windows that are longer than every lag: they share what they search.

    On its axis there is as much room before the first moment as between the first and the last, so that a window's far edge is a
    subtraction away.
    """

    def __init__(self, keys: int, codes: Int, ts: Int, available: Int, queries: Queries) -> None:
        self.queries = queries
        held = Axis.over(keys, ts, available, queries.times)
        self._longest = held.span
        axis = Axis.roomy(keys, held)
        self._asked = axis.pack(queries.keys, queries.times)
        entered = axis.pack(codes, available)
        entered.sort()
        self._happened = entered
        if ts is not available:
            self._happened = axis.pack(codes, ts)
            self._happened.sort()
        self._came = reached(entered, self._asked, "left")
        self._newest: Int | None = None
        """When the last of those that came happened, per query; of an earlier key's where none of its own did."""
        if ts is available and len(entered):
            self._newest = entered[np.maximum(self._came - 1, 0)]
        self._known: Bool | None = queries.keys >= 0
        if self._known.all():
            self._known = None

    def count(self, window: int) -> Int:
        """Visible events, per query."""
        left = self._asked - min(window, self._longest)
        # Where the newest has left, all have: few keys of a user and an item have an event of the last hour.
        some = np.flatnonzero(self._newest > left) if self._newest is not None else None
        if some is not None and 2 * len(some) < len(left):
            count = np.zeros(len(left), np.int64)
            count[some] = self._came[some] - reached(self._happened, left[some], "right")
        else:
            count = self._came - reached(self._happened, left, "right")
        return count if self._known is None else np.where(self._known, count, 0)


def reached(moments: Int, asked: Int, side: Literal["left", "right"]) -> Int:
    """`np.searchsorted(moments, asked, side)` of ascending ones: the fewer are looked up among the others."""
    if 2 * len(moments) > len(asked):
        return np.searchsorted(moments, asked, side)
    places = np.searchsorted(asked, moments, "right" if side == "left" else "left")
    return np.cumsum(np.bincount(places, minlength=len(asked) + 1)[: len(asked)])


def united(codes: Int, values: Int, begin: Int, end: Int) -> tuple[Int, Int, Int]:
    """(code, begin, end) of the intervals that the rows' intervals make together, those of each (code, value) by themselves."""
    pairs = Keys(mix(codes, values)).codes
    axis = Axis.over(int(pairs.max(initial=-1)) + 1, begin, end)
    packed = axis.pack(pairs, begin)
    order = sorted_rows(packed, stable=True)
    pairs, packed = pairs[order], packed[order]
    reach = np.maximum.accumulate(axis.pack(pairs, end[order]))
    first = np.ones(len(order), np.bool_)
    first[1:] = packed[1:] >= reach[:-1]
    last = np.append(first[1:], True) if len(first) else first
    until = reach - pairs * axis.span + axis.first
    return codes[order][first], begin[order][first], until[last]


def following(keys: Int, ts: Int, values: Float, at_keys: Int, at: Int, window: int) -> tuple[Int, Float]:
    """(count, float64 sum of `values`) of events with ts in [at, at + window], both ends included, of the same key."""
    known = Keys(keys)
    axis = Axis.over(known.count, ts)
    packed = axis.pack(known.codes, ts)
    order = sorted_rows(packed, stable=True)
    packed, sums = packed[order], running(split(values[order]))
    codes = known.find(at_keys)
    begin, until = np.searchsorted(packed, axis.pack(codes, at), "left"), axis.pack(codes, at + window)
    # Few are followed by any.
    some = np.flatnonzero(np.append(packed, np.iinfo(np.int64).max)[begin] <= until)
    end = begin.copy()
    end[some] = np.searchsorted(packed, until[some], "right")
    inside = codes >= 0
    return np.where(inside, end - begin, 0), np.where(inside, rounded(between(sums, begin, end)), 0)


def last_before(keys: Int, ts: Int, id: Int, at_keys: Int, at: Int) -> Int:
    """Row of the last event with ts <= at of the same key, by (ts, id); -1 where there is none."""
    if not len(ts):
        return np.full(len(at), -1, np.int64)
    known = Keys(keys)
    axis = Axis.over(known.count, ts)
    packed = axis.pack(known.codes, ts)
    order = np.lexsort((id, packed))
    codes = known.find(at_keys)
    position = np.searchsorted(packed[order], axis.pack(codes, at), "right") - 1
    found = order[np.maximum(position, 0)]
    last: Int = np.where((position >= 0) & (codes >= 0) & (known.codes[found] == codes), found, -1)
    return last


def ranges(starts: Int, lengths: Int) -> Int:
    """Concatenation of arange(start, start + length)."""
    ends = np.cumsum(lengths)
    within = np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.int64)
    rows: Int = within + np.repeat(starts - (ends - lengths), lengths)
    return rows


def mix(*columns: Int) -> Int:
    """64-bit hash of rows of int64 columns (two xor-multiply-shift rounds a column), the same on every machine and engine.

    Columns may have several dimensions, of one shape: the hash then has it, too.
    """
    parts = [np.ascontiguousarray(column, np.int64).view(np.uint64).ravel() for column in columns]
    state = np.full(parts[0].shape, 0x9E3779B97F4A7C15, np.uint64)
    shifted = np.empty(min(len(state), CACHED), np.uint64)
    # Rows that a core's cache holds go through all rounds before the next ones.
    for begin in range(0, len(state), CACHED):
        rows = state[begin : begin + CACHED]
        high = shifted[: len(rows)]
        for part in parts:
            rows ^= part[begin : begin + CACHED]
            rows *= np.uint64(0xBF58476D1CE4E5B9)
            rows ^= np.right_shift(rows, np.uint64(32), out=high)
            rows *= np.uint64(0x94D049BB133111EB)
            rows ^= np.right_shift(rows, np.uint64(29), out=high)
    hashed: Int = state.view(np.int64).reshape(columns[0].shape)
    return hashed


def slot_of(hashes: Int, slots: int) -> NDArray[np.int32]:
    """Which of `slots` a row of this hash goes to."""
    slot = hashes.view(np.uint64) >> np.uint64(17)
    if slots & (slots - 1):
        slot %= np.uint64(slots)
    else:  # A mask takes a tenth of what a division does.
        slot &= np.uint64(slots - 1)
    return slot.astype(np.int32)

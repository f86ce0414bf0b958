"""Samples of a few users, worked out again from raw rows: a loop over exposures, a look at every row of the logs for each.

Semantics: an event is available at max(ts, arrival) + delay; an exposure at t sees it iff available < t. A cross feature with window W
reads events with available < t and t - W < ts < t. A history holds what was available before the window's start and within the lookback
of it, a realtime sequence what became available inside the window, both in the order (available, ts, position in `events`, id). A label's
events lie in [t, t + W] and arrived before `as_of`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from genrank.pipelines.gate.operations import RECOUNTS, Window, reduced
from genrank.pipelines.gate.raw_log import ARRIVED, ID, TS, USER, Bool, evaluate, holds, stored_id
from genrank.schemas import CrossFeature, EventLog, Events, EventSequence, Label, Schema, expression
from genrank.schemas.base import DAY_MS, parse_duration
from genrank.schemas.features import Feature
from genrank.schemas.ids import MISSING_ID

Int = NDArray[np.int64]
Value = Any
"""A stored value: int, float (NaN where missing) or a list of ids."""
UNKNOWN = object()
"""What can't be worked out from the rows that were read."""


@dataclass
class LogRows:
    """Usable rows of a log, each once (`raw_log.once`)."""

    log: EventLog
    frame: pl.DataFrame
    since: int
    """The first day read: of its days from here on, every row of the users and keys asked for is there."""
    conditions: dict[str, Bool] = field(default_factory=dict)
    keys: dict[str, Int] = field(default_factory=dict)
    elements: dict[str, tuple[Int, Int]] = field(default_factory=dict)
    found: dict[tuple[tuple[str, ...], tuple[int, ...]], Int] = field(default_factory=dict)
    users: dict[int, Int] = field(default_factory=dict)
    values: dict[str, list[Any]] = field(default_factory=dict)
    stated: dict[Feature, Mapping[int, Value] | None] = field(default_factory=dict)

    @cached_property
    def user(self) -> Int:
        """Stored ids of users."""
        return self.frame[USER].to_numpy()

    @cached_property
    def ts(self) -> Int:
        """When each happened, epoch ms."""
        return self.frame[TS].to_numpy()

    @cached_property
    def arrived(self) -> Int:
        """When each could be read."""
        return self.frame[ARRIVED].to_numpy()

    @cached_property
    def available(self) -> Int:
        """When each is visible."""
        return self.arrived + parse_duration(self.log.delay)

    @cached_property
    def id(self) -> Int:
        """Orders rows of one millisecond."""
        return self.frame[ID].to_numpy()

    def at(self, references: tuple[str, ...], values: tuple[int, ...]) -> Int:
        """Rows whose columns are these stored ids, or lists that hold them; none where one of them is missing."""
        if (references, values) not in self.found:
            there = np.full(self.frame.height, MISSING_ID not in values)
            for reference, value in zip(references, values, strict=True):
                there &= self._hold(reference, value) if self.is_list(reference) else self.ids(reference) == value
            self.found[references, values] = np.flatnonzero(there)
        return self.found[references, values]

    def keys_of(self, references: tuple[str, ...], row: int) -> list[tuple[int, ...]]:
        """The stored ids of a row's columns; of a list each different one in turn, or one that is missing."""
        each = []
        for reference in references:
            if self.is_list(reference):
                row_of, ids = self._elements(reference)
                each.append(sorted(set(ids[row_of == row].tolist())) or [MISSING_ID])
            else:
                each.append([int(self.ids(reference)[row])])
        return list(itertools.product(*each))

    def is_list(self, reference: str) -> bool:
        """Whether a column holds lists."""
        return isinstance(self.column(reference).dtype, pl.List)

    def _hold(self, reference: str, value: int) -> Bool:
        row_of, ids = self._elements(reference)
        found = np.zeros(self.frame.height, np.bool_)
        found[row_of[ids == value]] = True
        return found

    def _elements(self, reference: str) -> tuple[Int, Int]:
        """([elements] row, [elements] stored id) of lists."""
        if reference not in self.elements:
            lists = self.cells(reference)
            listed = [(row, one) for row, ids in enumerate(lists) for one in ids or () if one is not None]
            known = {one: stored_id(one) for one in {one for _, one in listed}}
            self.elements[reference] = (
                np.array([row for row, _ in listed], np.int64),
                np.array([known[one] for _, one in listed], np.int64),
            )
        return self.elements[reference]

    def of_user(self, user: int) -> Int:
        """Rows of a user, by its stored id."""
        if user not in self.users:
            self.users[user] = np.flatnonzero(self.user == user)
        return self.users[user]

    def where(self, condition: str | None) -> Bool:
        """Rows that meet a condition; all without one."""
        if condition is None:
            return np.ones(self.frame.height, np.bool_)
        if condition not in self.conditions:
            self.conditions[condition] = holds(condition, self.log.name, self.frame)
        return self.conditions[condition]

    def knows(self, *references: str) -> bool:
        """Whether the rows have these columns: their own, and those of snapshots that were read."""
        return all(name.removeprefix(f"{self.log.name}.") in self.names for name in references)

    @cached_property
    def names(self) -> frozenset[str]:
        """The columns there are."""
        return frozenset(self.frame.columns)

    def cells(self, reference: str) -> list[Any]:
        """A column's values, of every row."""
        if reference not in self.values:
            self.values[reference] = self.column(reference).to_list()
        return self.values[reference]

    def features(self, feature: Feature, users: Sequence[int]) -> Mapping[int, Value] | None:
        """Row -> the stored value of a feature that the row states, of every row of the users; None where it can't be worked out."""
        if feature not in self.stated:
            self.stated[feature] = self._features(
                feature, np.flatnonzero(np.isin(self.user, np.array(users, np.int64)))
            )
        return self.stated[feature]

    def _features(self, feature: Feature, rows: Int) -> Mapping[int, Value] | None:
        if feature.row_sql is not None:
            if not self.knows(*_references(feature.row_sql)):
                return None
            found = evaluate(feature.row_sql, self.log.name, self.frame[rows]).to_list()
        elif feature.column_reference is None:
            return None
        elif self.knows(feature.column_reference):
            found = self.column(feature.column_reference).gather(rows).to_list()
        elif "." in feature.column_reference:
            return None
        else:
            found = [None] * len(rows)
        limit = feature.list_limit if feature.stored == "ids" else 0
        return {row: stored(feature.stored, value, limit) for row, value in zip(rows.tolist(), found, strict=True)}

    def column(self, reference: str) -> pl.Series:
        """Values of a column."""
        return self.frame[reference.removeprefix(f"{self.log.name}.")]

    def ids(self, reference: str) -> Int:
        """A column as stored ids, by which keys are compared."""
        if reference not in self.keys and self.column(reference).dtype.is_integer():
            self.keys[reference] = self.column(reference).cast(pl.Int64).fill_null(MISSING_ID).to_numpy()
        elif reference not in self.keys:
            values = self.cells(reference)
            ids = {value: stored("id", value) for value in set(values)}
            self.keys[reference] = np.array([ids[value] for value in values], np.int64)
        return self.keys[reference]


@dataclass(frozen=True)
class Recomputation:
    """Raw rows of a day's logs, and what follows from them."""

    schema: Schema
    day: int
    as_of: int
    landed: Mapping[str, frozenset[int]]
    exposures: LogRows
    """Exposures of the day, of the users recomputed alone."""
    logs: Mapping[str, LogRows]
    """Every event log, of the days and keys read."""
    users: Sequence[int]
    """Stored ids of the users recomputed."""
    profiles: Mapping[str, Mapping[int, Mapping[str, Any]]]
    """Snapshot of users -> stored id -> its row as of the day."""

    @property
    def start(self) -> int:
        """The day's first millisecond."""
        return self.schema.local_days.start(self.day)

    @property
    def end(self) -> int:
        """The next day's."""
        return self.schema.local_days.start(self.day + 1)

    def exposures_of(self, user: int) -> Int:
        """Rows of a user's exposures, by time."""
        return np.flatnonzero(self.exposures.user == user)

    def profile(self, feature: Feature, user: int) -> Value:
        """A feature of the user group, or `UNKNOWN`."""
        reference = feature.column_reference
        if reference is None or feature.row_sql is not None:
            return UNKNOWN
        if reference == self.schema.exposures.user:
            return user
        name, _, column = reference.rpartition(".")
        having = [source for source, rows in self.profiles.items() if not name or source == name]
        having = [source for source in having if column in self.schema.source(source).columns]
        if len(having) != 1:
            return UNKNOWN
        found = self.profiles[having[0]].get(user, {}).get(column)
        return stored(feature.stored, found, feature.list_limit if feature.stored == "ids" else 0)

    # ------------------------------------------------------------------ a candidate

    def value(self, rows: LogRows, row: int, feature: Feature) -> Value:
        """A feature that a row of a user states, or `UNKNOWN`."""
        values = rows.features(feature, self.users)
        return UNKNOWN if values is None else values[row]

    def cross(self, feature: CrossFeature, row: int) -> Value:
        """A cross feature of an exposure, or `UNKNOWN`."""
        at = self.start if feature.as_of == "window_start" else int(self.exposures.ts[row])
        if feature.op not in RECOUNTS or not self.exposures.knows(*feature.keys):
            return UNKNOWN
        values = [self._at(feature, keys, at) for keys in self.exposures.keys_of(feature.keys, row)]
        if any(value is UNKNOWN for value in values):
            return UNKNOWN
        return reduced(feature, values) if any(map(self.exposures.is_list, feature.keys)) else values[0]

    def _at(self, feature: CrossFeature, keys: tuple[int, ...], at: int) -> Value:
        windows = []
        for log in dict.fromkeys((feature.source, feature.per or feature.source)):
            window = self._window(feature, self.logs[log], keys, at)
            if window is None:
                return UNKNOWN
            windows.append(window)
        return RECOUNTS[feature.op](feature, windows[0], windows[-1], at)

    def _window(self, feature: CrossFeature, rows: LogRows, keys: tuple[int, ...], at: int) -> Window | None:
        """The events of a log at the keys that the exposure sees; None where they weren't all read."""
        first = at - parse_duration(feature.window)
        own = rows.log.name == feature.source
        needed = [*feature.keys]
        if own:
            needed += [
                *([feature.value] if feature.value else []),
                *(_references(feature.where) if feature.where else ()),
            ]
        if self.schema.local_days.day(first) < rows.since or not rows.knows(*needed):
            return None
        there = rows.at(feature.keys, keys)
        ts = rows.ts[there]
        seen = there[(rows.available[there] < at) & (ts > first) & (ts < at)]
        hits = seen[rows.where(feature.where if own else None)[seen]]
        values = []
        if own and feature.value:
            cells = rows.cells(feature.value)
            values = [cells[hit] for hit in hits.tolist()]
        return Window(len(seen), rows.ts[hits].tolist(), rows.id[hits].tolist(), values)

    # ------------------------------------------------------------------ labels

    def label(self, label: Label, row: int) -> tuple[Value, Value]:
        """(value, whether it has weight) of an exposure; `UNKNOWN` where a column of a snapshot decides."""
        shown, ts, window = self.exposures, int(self.exposures.ts[row]), parse_duration(label.window)
        mature = ts + window < self.as_of
        if label.column:
            found = shown.cells(label.column)[row]
            known = found is not None and not math.isnan(float(found))
            mature = mature and known
            value = 0.0 if not known else float(found != 0) if label.kind == "binary" else float(found)
        else:
            assert label.source
            events = self.logs[label.source]
            for log in (label.source, *([shown.log.name] if label.attribution == "last" else [])):
                days = self.schema.local_days
                touched = range(days.day(ts), days.day(ts + window) + 1)
                mature = mature and all(day in self.landed[log] for day in touched)
            read = [
                *label.on,
                *([label.value] if label.value else []),
                *(_references(label.where) if label.where else ()),
            ]
            if not events.knows(*read):
                return UNKNOWN, mature
            found_rows = self._matches(label, events, row)
            amounts = [events.cells(label.value)[at] for at in found_rows] if label.value else [1.0] * len(found_rows)
            there = [float(amount) for amount in amounts if amount is not None and not math.isnan(amount)]
            value = float(bool(there)) if label.kind == "binary" else math.fsum(there)
        if label.given:
            given = next(other for other in self.schema.labels if other.name == label.given)
            positive, weight = self.label(given, row)
            if positive is UNKNOWN:
                return UNKNOWN, UNKNOWN
            value, mature = (value if positive > 0 else 0.0), mature and bool(weight)
        return value, mature

    def _matches(self, label: Label, events: LogRows, row: int) -> list[int]:
        """Rows of the label's log that count for an exposure."""
        shown, ts = self.exposures, int(self.exposures.ts[row])
        own = self._of_user(events, row, label)
        near = (events.ts[own] >= ts) & (events.ts[own] <= ts + parse_duration(label.window))
        near &= (events.arrived[own] < self.as_of) & events.where(label.where)[own]
        for name in label.on:
            near &= events.ids(name)[own] != MISSING_ID
        matches: list[int] = own[near].tolist()
        if label.attribution == "every":
            return matches
        # The last exposure counts: none of the same user and keys lies between this one and the event.
        others = self.logs[shown.log.name]
        same = self._of_user(others, row, label)
        later = same[(others.ts[same] > ts) | ((others.ts[same] == ts) & (others.id[same] > shown.id[row]))]
        return [at for at in matches if not (others.ts[later] <= events.ts[at]).any()]

    def _of_user(self, rows: LogRows, row: int, label: Label) -> Int:
        """Rows of a log of an exposure's user and the label's keys."""
        shown = self.exposures
        own = rows.of_user(int(shown.user[row]))
        for name in label.on:
            own = own[rows.ids(name)[own] == shown.ids(name)[row]]
        return own

    # ------------------------------------------------------------------ sequences

    def answers(self, sequence: EventSequence) -> bool:
        """Whether the rows have what decides which events a sequence holds."""
        entries = [entry for entry in sequence.events if isinstance(entry, Events) and entry.where]
        return all(self.logs[entry.source].knows(*_references(entry.where or "")) for entry in entries)

    def events(self, sequence: EventSequence, user: int) -> list[tuple[int, int, int, int, str, int]]:
        """(available, ts, type, id, log, row) of a user's events of a sequence, in its order, change points left out: of a history those
        before the window, of a realtime sequence those inside it."""
        found = []
        for kind, entry in enumerate(sequence.events):
            if isinstance(entry, Events):
                rows = self.logs[entry.source]
                for at in np.flatnonzero((rows.user == user) & rows.where(entry.where)).tolist():
                    found.append((int(rows.available[at]), int(rows.ts[at]), kind, int(rows.id[at]), entry.source, at))
        low = self.start if sequence.scope == "realtime" else self.start - parse_duration(sequence.lookback)
        high = self.end if sequence.scope == "realtime" else self.start
        return sorted(event for event in found if low <= event[0] < high)

    def certain_from(self, sequence: EventSequence) -> int:
        """From which availability on every event of a sequence was read; the lookback's begin (or earlier) where all were."""
        certain = -(1 << 62)
        for entry in sequence.events:
            if isinstance(entry, Events):
                log = self.logs[entry.source].log
                # What happened before the first day read arrived at most so much later.
                days = self.schema.local_days
                late = parse_duration(log.lateness) + DAY_MS + days.spread if log.arrival else 0
                latest = days.start(self.logs[entry.source].since) + late + parse_duration(log.delay)
                certain = max(certain, latest)
        return certain


@lru_cache(maxsize=1024)
def _references(text: str) -> tuple[str, ...]:
    """What an expression reads."""
    return expression.columns(text)


def stored(kind: str | None, value: Any, limit: int = 0) -> Value:
    """A value as samples keep it."""
    if kind == "id":
        return stored_id(round(value.timestamp() * 1000) if hasattr(value, "timestamp") else value)
    if kind == "ids":
        listed = value if isinstance(value, list) else [value]
        ids = [stored_id(one) for one in listed if one is not None]
        return ids[:limit] if limit else ids
    if kind == "vector":
        return [float(one) for one in value or []]
    if kind == "time":
        return (
            MISSING_ID
            if value is None
            else round(value.timestamp() * 1000)
            if hasattr(value, "timestamp")
            else int(value)
        )
    return math.nan if value is None else float(value)

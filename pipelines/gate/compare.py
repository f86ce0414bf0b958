"""Staged samples of a few users beside what the raw log gives: value by value, with the first difference of each leaf in words."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genrank.pipelines.gate.recompute import UNKNOWN, Recomputation, Value
from genrank.pipelines.sample_columns import (
    AVAILABLE,
    CANDIDATE_SEES,
    ITEM,
    LABELS,
    MASK,
    REQUEST,
    SAMPLE_ID,
    TS,
    TYPE,
    weight_of,
)
from genrank.schemas import CrossFeature, Events, EventSequence
from genrank.schemas.base import parse_duration
from genrank.schemas.schema import CANDIDATES, USER

Sample = dict[str, Any]
"""A stored row, as Python values."""
Place = tuple[Sample, int]
"""A candidate: its sample, and where in it."""


@dataclass
class Leaf:
    """What was compared of one leaf."""

    compared: int = 0
    differ: int = 0
    example: str = ""
    """The first difference: which sample and place, what it is, and what the raw log gives."""


@dataclass
class Comparison:
    """Staged samples of users beside the raw log."""

    raw: Recomputation
    leaves: dict[str, Leaf] = field(default_factory=dict)
    users: int = 0

    def user(
        self,
        user: int,
        samples: Sequence[Sample],
        crossed: Mapping[int, Sequence[CrossFeature]],
        exposures: Container[int],
    ) -> None:
        """Compare all of a user's samples of the day.

        Args:
            user: its stored id.
            samples: as they are stored, any order; none where the user was left out.
            crossed: exposure (row of the raw log) -> cross features to be compared of it.
            exposures: those compared in all that they state and are labelled with; of the others only which they are.
        """
        self.users += 1
        in_order = sorted(samples, key=_chunk)
        places = [(sample, at) for sample in in_order for at in range(len(sample[CANDIDATES][TS]))]
        for sample, at, row in self._pairs(user, places, self.raw.exposures_of(user).tolist()):
            if row in exposures:
                self._candidate(sample, at, row, crossed.get(row, ()))
        for feature in self.raw.schema.user.features:
            if feature.stored:
                expected = self.raw.profile(feature, user)
                for sample in in_order:
                    self.equal(f"{USER}.{feature.name}", sample, 0, sample[USER][feature.name], expected)
        for sequence in filter(self.raw.answers, self.raw.schema.sequences):
            events = self.raw.events(sequence, user)
            if sequence.scope == "history":
                for sample in in_order:
                    self._history(sequence, sample, events)
            else:
                self._realtime(sequence, in_order, events)

    # ------------------------------------------------------------------ candidates

    def _pairs(self, user: int, places: list[Place], exposures: list[int]) -> Iterator[tuple[Sample, int, int]]:
        """(sample, place, exposure) of each candidate: exposures become candidates one by one, in order."""
        if self.raw.schema.candidates.negative_keep_rate < 1:
            yield from self._kept_pairs(user, places, exposures)
            return
        if len(places) != len(exposures):
            found = f"{len(places)} candidates; the raw log has {len(exposures)} exposures"
            self._count(CANDIDATES, f"user {self._name(user)} has {found}")
        for (sample, at), row in zip(places, exposures, strict=False):
            own, shown = self._identity(sample, at), self._identity_of(row)
            for leaf in own:
                self.equal(f"{CANDIDATES}.{leaf}", sample, at, own[leaf], shown[leaf])
            yield sample, at, row

    def _kept_pairs(self, user: int, places: list[Place], exposures: list[int]) -> Iterator[tuple[Sample, int, int]]:
        """Where negatives are left out: of exposures that look the same, all are kept or those that are positive."""
        shown: dict[tuple[int, ...], list[int]] = {}
        for row in exposures:
            shown.setdefault(tuple(self._identity_of(row).values()), []).append(row)
        stored: dict[tuple[int, ...], list[Place]] = {}
        for sample, at in places:
            stored.setdefault(tuple(self._identity(sample, at).values()), []).append((sample, at))
        for key in shown.keys() | stored.keys():
            rows, held = shown.get(key, []), stored.get(key, [])
            if len(rows) != len(held):
                values = [[self.raw.label(label, row)[0] for label in self.raw.schema.labels] for row in rows]
                if any(value is UNKNOWN for row in values for value in row):
                    continue
                rows = [row for row, of in zip(rows, values, strict=True) if any(value > 0 for value in of)]
            if len(rows) != len(held):
                found = f"{len(held)} candidates at {key[0]}; the raw log has {len(rows)} positive exposures"
                self._count(CANDIDATES, f"user {self._name(user)} has {found}")
            for (sample, at), row in zip(held, rows, strict=False):
                yield sample, at, row

    def _identity(self, sample: Sample, at: int) -> dict[str, int]:
        """What tells a candidate from others of its user."""
        leaves = (TS, ITEM, REQUEST) if self.raw.schema.candidates.request else (TS, ITEM)
        return {leaf: sample[CANDIDATES][leaf][at] for leaf in leaves}

    def _identity_of(self, row: int) -> dict[str, int]:
        """The same of an exposure."""
        rows, candidates = self.raw.exposures, self.raw.schema.candidates
        own = {TS: int(rows.ts[row]), ITEM: int(rows.ids(candidates.item)[row])}
        return own | ({REQUEST: int(rows.ids(candidates.request)[row])} if candidates.request else {})

    def _candidate(self, sample: Sample, at: int, row: int, crossed: Sequence[CrossFeature]) -> None:
        raw, schema = self.raw, self.raw.schema
        stored = sample[CANDIDATES]
        for feature in schema.candidates.features:
            if feature.stored and not isinstance(feature, CrossFeature):
                self.equal(
                    f"{CANDIDATES}.{feature.name}",
                    sample,
                    at,
                    stored[feature.name][at],
                    raw.value(raw.exposures, row, feature),
                )
        for feature in crossed:
            self.equal(f"{CANDIDATES}.{feature.name}", sample, at, stored[feature.name][at], raw.cross(feature, row))
        expected = {label.name: raw.label(label, row) for label in schema.labels}
        positive = any(value is not UNKNOWN and value > 0 for value, _ in expected.values())
        rate = schema.candidates.negative_keep_rate
        weight = 1.0 if positive or not schema.candidates.keep_correction else 1 / rate
        for label in schema.labels:
            value, mature = expected[label.name]
            self.equal(f"{LABELS}.{label.name}", sample, at, sample[LABELS][label.name][at], value)
            own = UNKNOWN if mature is UNKNOWN else weight if mature else 0.0
            self.equal(f"{LABELS}.{weight_of(label.name)}", sample, at, sample[LABELS][weight_of(label.name)][at], own)

    # ------------------------------------------------------------------ sequences

    def _history(self, sequence: EventSequence, sample: Sample, events: list[Any]) -> None:
        """The newest events are compared as far back as raw rows were read."""
        certain = self.raw.certain_from(sequence)
        whole = certain <= self.raw.start - parse_duration(sequence.lookback)
        sure = [event for event in events if event[0] >= certain]
        places = self._event_places(sequence, sample)
        changes = len(sample[sequence.name][TS]) - len(places)
        room = sequence.max_length - changes
        expected = sure[-room:] if room else []
        if whole and len(places) != len(expected):
            self._differ(f"{sequence.name}", sample, 0, f"{len(places)} events", f"{len(expected)}")
            return
        if len(places) < len(expected):
            self._differ(f"{sequence.name}", sample, 0, f"{len(places)} events", f"{len(expected)} or more")
            return
        for place, event in zip(places[len(places) - len(expected) :], expected, strict=True):
            self._event(sequence, sample, place, event)

    def _realtime(self, sequence: EventSequence, samples: list[Sample], events: list[Any]) -> None:
        """A sample holds a run of the day's events; each candidate sees those of it that were available before it."""
        if self.raw.certain_from(sequence) > self.raw.start:
            return
        for sample in samples:
            places = self._event_places(sequence, sample)
            stored = sample[sequence.name]
            begin = 0
            if places:
                first = (stored[AVAILABLE][places[0]], stored[TS][places[0]], stored[TYPE][places[0]])
                alike = [i for i, event in enumerate(events) if event[:3] == first]
                begin = alike[0] if alike else 0
                if len(alike) > 1:  # the run begins with the one that is followed as the sample is
                    begin = min(alike, key=lambda i: self._misses(sequence, sample, places, events[i:]))
            if len(samples) == 1 and len(events) <= sequence.max_length and len(places) != len(events):
                self._differ(sequence.name, sample, 0, f"{len(places)} events", f"{len(events)}")
            for place, event in zip(places, events[begin:], strict=False):
                self.equal(f"{sequence.name}.{AVAILABLE}", sample, place, stored[AVAILABLE][place], event[0])
                self._event(sequence, sample, place, event)
            # Change points are taken as they are stored.
            ours = set(places)
            changes = [stored[AVAILABLE][place] for place in range(len(stored[TS])) if place not in ours]
            run = events[begin : begin + len(places)]
            for at, ts in enumerate(sample[CANDIDATES][TS]):
                sees = sum(event[0] < ts for event in run) + sum(moment < ts for moment in changes)
                self.equal(f"{MASK}.{CANDIDATE_SEES}", sample, at, sample[MASK][CANDIDATE_SEES][at], sees)

    def _misses(self, sequence: EventSequence, sample: Sample, places: list[int], events: list[Any]) -> int:
        """How many of the stored events aren't those given, in order."""
        stored, known = sample[sequence.name], [feature for feature in sequence.features if feature.stored]
        misses = max(0, len(places) - len(events))
        for place, (available, ts, kind, _, log, row) in zip(places, events, strict=False):
            values = ((self.raw.value(self.raw.logs[log], row, f), stored[f.name][place]) for f in known)
            at = (stored[AVAILABLE][place], stored[TS][place], stored[TYPE][place])
            alike = at == (available, ts, kind) and all(v is UNKNOWN or same(found, v) for v, found in values)
            misses += not alike
        return misses

    def _event_places(self, sequence: EventSequence, sample: Sample) -> list[int]:
        """Where in a stored sequence events of logs stand."""
        logs = [isinstance(entry, Events) for entry in sequence.events]
        types = sample[sequence.name][TYPE]
        return [place for place, type_ in enumerate(types) if not 0 <= type_ < len(logs) or logs[type_]]

    def _event(self, sequence: EventSequence, sample: Sample, place: int, event: tuple[Any, ...]) -> None:
        stored = sample[sequence.name]
        _, ts, kind, _, log, row = event
        self.equal(f"{sequence.name}.{TS}", sample, place, stored[TS][place], ts)
        self.equal(f"{sequence.name}.{TYPE}", sample, place, stored[TYPE][place], kind)
        for feature in sequence.features:
            if feature.stored:
                expected = self.raw.value(self.raw.logs[log], row, feature)
                self.equal(f"{sequence.name}.{feature.name}", sample, place, stored[feature.name][place], expected)

    # ------------------------------------------------------------------ counting

    def equal(self, leaf: str, sample: Sample, at: int, found: Value, expected: Value) -> None:
        """Count a value, unless what it should be isn't known."""
        if expected is UNKNOWN:
            return
        self.leaves.setdefault(leaf, Leaf()).compared += 1
        if not same(found, expected):
            self._differ(leaf, sample, at, found, expected)

    def _differ(self, leaf: str, sample: Sample, at: int, found: object, expected: object) -> None:
        ts = sample[CANDIDATES][TS]
        when = f" (ts {ts[at]})" if leaf.partition(".")[0] in (CANDIDATES, LABELS) and at < len(ts) else ""
        self._count(leaf, f"{leaf}[{at}] of sample {sample[SAMPLE_ID]}{when} is {found}, the raw log gives {expected}")

    def _count(self, leaf: str, example: str) -> None:
        of = self.leaves.setdefault(leaf, Leaf())
        of.differ += 1
        of.example = of.example or example

    def _name(self, user: int) -> object:
        rows = self.raw.exposures_of(user)
        return self.raw.exposures.cells(self.raw.schema.exposures.user)[rows[0]] if len(rows) else f"of id {user}"


def _chunk(sample: Sample) -> int:
    """Which of its user's samples of the day it is; of one that isn't named so, any."""
    last: str = sample[SAMPLE_ID].rpartition(":")[2]
    return int(last) if last.isdecimal() else -1


def same(found: Value, expected: Value) -> bool:
    """Equal as they are stored: float32 to a few units in the last place, for sums are rounded on the way."""
    if isinstance(expected, float) or isinstance(found, float):
        a, b = float(found), float(expected)
        if math.isnan(a) or math.isnan(b):
            return math.isnan(a) and math.isnan(b)
        return abs(a - b) <= max(4 * float(np.spacing(np.float32(abs(b)))), 1e-9)
    return bool(found == expected)

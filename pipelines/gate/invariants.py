"""What must hold of every file of samples, counted from its stored values alone; each with the first value that breaks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from genrank.pipelines.arrays import single_array
from genrank.pipelines.columns import key_column
from genrank.pipelines.days import dt_of
from genrank.pipelines.labels import logs_of
from genrank.pipelines.merge_scan import Bool, Int, mix, slot_of
from genrank.pipelines.sample_columns import (
    AVAILABLE,
    CANDIDATE_SEES,
    ITEM,
    LABELS,
    MASK,
    REALTIME_SEES,
    SAMPLE_ID,
    TS,
    TYPE,
    USER_ID,
    WINDOW_END,
    WINDOW_START,
    weight_of,
)
from genrank.schemas import CrossFeature, Events, EventSequence, Schema
from genrank.schemas.base import parse_duration
from genrank.schemas.derive.sample_schema import arrow_schema, leaves
from genrank.schemas.ids import MISSING_ID, hash_strings
from genrank.schemas.schema import CANDIDATES, USER

INVARIANTS = {
    "contract": "the file has the contract's Arrow schema, without nulls",
    "sample_ids": "sample ids are unique, and name the sample's user and day",
    "bucket": "a file holds the users of its own bucket",
    "window": "a sample's window is the day",
    "lengths": "lists of one group have one length, and none is longer than declared",
    "candidates_in_window": "every candidate was exposed inside its window, in time order",
    "some_candidate": "every sample has a candidate",
    "items": "every candidate has an item, of the declared type",
    "history_before_window": "every history event was available before its window, and within the lookback",
    "history_order": "history events stand in the order they became available",
    "realtime_in_window": "every realtime event became available inside its window, in that order",
    "candidate_sees": "candidate_sees counts the realtime events available strictly before the exposure",
    "realtime_sees": "realtime_sees counts the realtime events available strictly before the event",
    "finite": "numbers are finite, or NaN where they are missing",
    "cross_features": "counts are whole (but for their mean over a list), none of counts, rates and recencies is negative",
    "labels": "binary labels are 0 or 1, values are finite, and a label is positive only where the one it is given is",
    "label_weights": "a label has weight where it is mature, and only there: finite, and not negative",
    "max_length": "no sequence or candidate list is longer than the schema allows",
}


class Broken:
    """How many values break each invariant, and the first of each in words."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(INVARIANTS, 0)
        self.examples: dict[str, str] = {}

    def add(self, name: str, count: int, example: str = "") -> None:
        """Count some more."""
        if count:
            self.counts[name] += count
            self.examples.setdefault(name, example)


def broken_invariants(
    table: pa.Table,
    schema: Schema,
    day: int,
    as_of: int,
    landed: Mapping[str, frozenset[int]],
    bucket: int = 0,
    buckets: int = 1,
) -> Broken:
    """Of one file of samples.

    Args:
        as_of: labels are as known at this moment, epoch ms.
        landed: event log -> its days that labels may lie in and that are there.
    """
    broken = Broken()
    table = table.combine_chunks()
    expected = arrow_schema(schema)
    if not table.schema.equals(expected):
        broken.add("contract", 1, _schema_difference(table.schema, expected))
    for name in table.column_names:
        broken.add("contract", _nulls(table.column(name)), f"column {name} holds nulls")
    if not broken.examples and table.num_rows:
        _File(table, schema, day, as_of, landed, broken).check(bucket, buckets)
    return broken


class _File:
    """One file whose columns are as the contract has them."""

    def __init__(
        self,
        table: pa.Table,
        schema: Schema,
        day: int,
        as_of: int,
        landed: Mapping[str, frozenset[int]],
        broken: Broken,
    ) -> None:
        self.table, self.schema, self.day, self.as_of, self.landed, self.broken = (
            table,
            schema,
            day,
            as_of,
            landed,
            broken,
        )
        self.ids = single_array(table.column(SAMPLE_ID))
        self.start, self.end = (schema.local_days.start(at) for at in (day, day + 1))
        self.groups = {
            field.name: _Group(single_array(table.column(field.name)))
            for field in table.schema
            if pa.types.is_struct(field.type) and field.name != USER
        }

    def check(self, bucket: int, buckets: int) -> None:
        self._identity(bucket, buckets)
        self._lengths()
        if self.broken.counts["lengths"]:
            return  # What belongs to which sample isn't known.
        self._candidates()
        for sequence in self.schema.histories:
            self._history(sequence)
        if self.schema.realtime:
            self._realtime(self.schema.realtime)
        self._numbers()
        self._labels()

    def _wrong(self, invariant: str, wrong: Bool, what: str, sample: Int, found: Any, expected: Any = "") -> None:
        """Count rows of a list's values that are wrong, and put the first in words.

        Args:
            sample: the sample (row of the file) of each value.
            found: the values, or one for all.
            expected: the values there should be, or what they should be in words.
        """
        if count := int(wrong.sum()):
            at = int(np.flatnonzero(wrong)[0])
            row = int(sample[at])
            place = at - int(np.searchsorted(sample, row))
            value = found[at] if isinstance(found, np.ndarray) else found
            should = expected[at] if isinstance(expected, np.ndarray) else expected
            example = f"{what}[{place}] of sample {self.ids[row].as_py()} is {value}" + (
                f", not {should}" if f"{should}" else ""
            )
            self.broken.add(invariant, count, example)

    def _identity(self, bucket: int, buckets: int) -> None:
        rows = np.arange(len(self.ids))
        repeated = len(self.ids) - pc.count_distinct(self.ids).as_py()
        if repeated:
            counts = pc.value_counts(self.ids)
            twice = counts.field("values")[int(np.argmax(counts.field("counts").to_numpy()))]
            self.broken.add("sample_ids", repeated, f"{SAMPLE_ID} {twice} is there more than once")
        users = single_array(self.table.column(USER_ID))
        begins = pc.binary_join_element_wise(pc.cast(users, pa.string()), dt_of(self.day), "", ":")
        # Most users have one sample.
        wrong = ~pc.equal(self.ids, pc.binary_join_element_wise(begins, "0", "")).to_numpy(zero_copy_only=False)
        for at in np.flatnonzero(wrong).tolist():
            id_, begin = self.ids[at].as_py(), begins[at].as_py()
            wrong[at] = not (id_.startswith(begin) and id_[len(begin) :].isdecimal())
        self._wrong("sample_ids", wrong, SAMPLE_ID, rows, "of another user or day", "")
        codes = (hash_strings(users) if pa.types.is_string(users.type) else users).to_numpy()
        elsewhere = slot_of(mix(codes.astype(np.int64)), buckets) != bucket
        self._wrong("bucket", elsewhere, USER_ID, rows, codes, f"in bucket {bucket}")
        for name, moment in ((WINDOW_START, self.start), (WINDOW_END, self.end)):
            values = self.table.column(name).to_numpy()
            self._wrong("window", values != moment, name, rows, values, moment)

    def _lengths(self) -> None:
        for name, group in self.groups.items():
            for leaf, ragged in group.ragged.items():
                if name != MASK:
                    self._wrong(
                        "lengths",
                        ragged,
                        f"{name}.{leaf}",
                        np.arange(len(self.ids)),
                        "of another length than its group",
                    )
        length = self.groups[CANDIDATES].lengths
        pairs = [(LABELS, self.groups[LABELS].lengths, length)]
        if self.schema.realtime:
            mask = single_array(self.table.column(MASK))
            pairs.append((f"{MASK}.{CANDIDATE_SEES}", _leaf(mask, CANDIDATE_SEES)[0], length))
            realtime = self.groups[self.schema.realtime.name].lengths
            pairs.append((f"{MASK}.{REALTIME_SEES}", _leaf(mask, REALTIME_SEES)[0], realtime))
        for name, found, expected in pairs:
            self._wrong("lengths", found != expected, name, np.arange(len(self.ids)), found, expected)
        for name, features in self.schema.groups():
            for feature in features:
                if feature.stored not in ("ids", "vector"):
                    continue
                values = single_array(self.table.column(name)).field(feature.name)
                lists = values if name == USER else values.flatten()
                sizes = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
                sample = np.arange(len(self.ids)) if name == USER else self.groups[name].sample
                leaf, most, own = f"{name}.{feature.name}", feature.list_limit, feature.vector_length
                if most and feature.stored == "ids":
                    self._wrong("lengths", sizes > most, leaf, sample, sizes, f"at most {most} long")
                if own:
                    odd = (sizes != own) & (sizes != 0)
                    self._wrong("lengths", odd, leaf, sample, sizes, f"{own} long, or empty")
                    numbers = lists.flatten().to_numpy()
                    self._wrong("finite", ~np.isfinite(numbers), leaf, np.repeat(sample, sizes), numbers, "a number")

    def _candidates(self) -> None:
        group = self.groups[CANDIDATES]
        sample, ts, items = group.sample, group.values[TS], group.values[ITEM]
        rows = np.arange(len(self.ids))
        name = f"{CANDIDATES}.{TS}"
        self._wrong("candidates_in_window", (ts < self.start) | (ts >= self.end), name, sample, ts, "inside the day")
        self._wrong("candidates_in_window", _backwards(sample, ts), name, sample, ts, "after the one before")
        self._wrong("some_candidate", group.lengths == 0, CANDIDATES, rows, "empty")
        most = self.schema.candidates.max_candidates
        self._wrong("max_length", group.lengths > most, CANDIDATES, rows, group.lengths, f"at most {most}")
        lacks = items == MISSING_ID
        if self.schema.exposures.columns[self.schema.candidates.item] == "int32":
            lacks |= (items > np.iinfo(np.int32).max) | (items < np.iinfo(np.int32).min)
        declared = self.schema.exposures.columns[self.schema.candidates.item]
        self._wrong("items", lacks, f"{CANDIDATES}.{ITEM}", sample, items, f"an id of type {declared}")

    def _history(self, sequence: EventSequence) -> None:
        group, rows = self.groups[sequence.name], np.arange(len(self.ids))
        most = sequence.max_length
        self._wrong("max_length", group.lengths > most, sequence.name, rows, group.lengths, f"at most {most}")
        least, exact = self._availability(sequence, group)
        name = f"{sequence.name}.{TS}"
        late = least >= self.start
        self._wrong("history_before_window", late, name, group.sample, group.values[TS], "available before the window")
        old = exact & (least < self.start - parse_duration(sequence.lookback))
        self._wrong("history_before_window", old, name, group.sample, group.values[TS], "within the lookback")
        if exact.all():
            unordered = _backwards(group.sample, least)
        else:
            known = np.flatnonzero(exact)
            unordered = np.zeros(len(exact), np.bool_)
            unordered[known] = _backwards(group.sample[known], least[known])
        self._wrong("history_order", unordered, name, group.sample, group.values[TS], "available after the one before")

    def _availability(self, sequence: EventSequence, group: _Group) -> tuple[Int, Bool]:
        """(the earliest moment at which each event may have been available, whether it is the moment): rows of logs without an
        arrival time are available at their time and the log's delay."""
        delays, known = [], []
        for entry in sequence.events:
            log = self.schema.event_log(entry.source) if isinstance(entry, Events) else None
            delays.append(parse_duration(log.delay) if log else 0)
            known.append(log is None or log.arrival is None)
        if len(delays) == 1:
            return group.values[TS] + delays[0], np.full(len(group.values[TS]), known[0])
        type_ = np.clip(group.values[TYPE], 0, len(delays) - 1)
        return group.values[TS] + np.array(delays, np.int64)[type_], np.array(known)[type_]

    def _realtime(self, sequence: EventSequence) -> None:
        group, rows = self.groups[sequence.name], np.arange(len(self.ids))
        most = sequence.max_length
        self._wrong("max_length", group.lengths > most, sequence.name, rows, group.lengths, f"at most {most}")
        seen, sample = group.values[AVAILABLE], group.sample
        name = f"{sequence.name}.{AVAILABLE}"
        outside = (seen < self.start) | (seen >= self.end)
        self._wrong("realtime_in_window", outside, name, sample, seen, "inside the window")
        self._wrong("realtime_in_window", _backwards(sample, seen), name, sample, seen, "after the one before")
        least, exact = self._availability(sequence, group)
        impossible = (seen < least) | (exact & (seen != least))
        self._wrong("realtime_in_window", impossible, name, sample, seen, least)
        candidates = self.groups[CANDIDATES]
        mask = single_array(self.table.column(MASK))
        asked = (
            (CANDIDATE_SEES, candidates.sample, candidates.values[TS]),
            (REALTIME_SEES, sample, seen),
        )
        for leaf, of, moments in asked:
            found, expected = _leaf(mask, leaf)[1], _earlier(group, seen, of, moments)
            self._wrong(leaf, found != expected, f"{MASK}.{leaf}", of, found, expected)

    def _numbers(self) -> None:
        for leaf in leaves(self.schema):
            if leaf.stored != "number":
                continue
            if leaf.group == USER:
                values = single_array(self.table.column(USER)).field(leaf.name).to_numpy()
                sample = np.arange(len(self.ids))
            else:
                values, sample = self.groups[leaf.group].values[leaf.name], self.groups[leaf.group].sample
            self._wrong("finite", np.isinf(values), f"{leaf.group}.{leaf.name}", sample, values, "a number")
        group = self.groups[CANDIDATES]
        for feature in self.schema.candidates.features:
            if isinstance(feature, CrossFeature) and feature.op in _NEVER_NEGATIVE:
                values = group.values[feature.name]
                wrong = values < 0
                if feature.op != "recency":
                    wrong |= np.isnan(values)
                if feature.op in ("count", "distinct") and not self._mean_over_list(feature):
                    wrong |= values != np.floor(values)
                self._wrong(
                    "cross_features", wrong, f"{CANDIDATES}.{feature.name}", group.sample, values, f"a {feature.op}"
                )

    def _mean_over_list(self, feature: CrossFeature) -> bool:
        return feature.reduction == "mean" and any(key_column(self.schema, key).role == "set" for key in feature.keys)

    def _labels(self) -> None:
        sample, labels = self.groups[LABELS].sample, self.groups[LABELS].values
        ts, rate = self.groups[CANDIDATES].values[TS], self.schema.candidates.negative_keep_rate
        for label in self.schema.labels:
            name, weight_name = f"{LABELS}.{label.name}", f"{LABELS}.{weight_of(label.name)}"
            value, weight = labels[label.name], labels[weight_of(label.name)]
            if label.kind == "binary":
                self._wrong("labels", (value != 0) & (value != 1), name, sample, value, "0 or 1")
            else:
                self._wrong("labels", ~np.isfinite(value), name, sample, value, "a number")
            self._wrong("label_weights", ~np.isfinite(weight), weight_name, sample, weight, "a number")
            self._wrong("label_weights", weight < 0, weight_name, sample, weight, "0 or more")
            most = np.float32(1 / rate)
            self._wrong(
                "label_weights",
                (weight > most) | ((weight > 0) & (weight < 1)),
                weight_name,
                sample,
                weight,
                f"0 or 1 .. {most:g}",
            )
            mature = ts + parse_duration(label.window) < self.as_of
            for log in logs_of(self.schema, label):
                mature &= self._landed(log, ts, parse_duration(label.window))
            if label.given:
                positive = labels[label.given] > 0
                self._wrong(
                    "labels", (value != 0) & ~positive, name, sample, value, f"0 where {label.given} is not positive"
                )
                mature &= labels[weight_of(label.given)] > 0
            self._wrong(
                "label_weights", (weight > 0) & ~mature, weight_name, sample, weight, "0: the label is not mature"
            )
            if not label.column:
                self._wrong(
                    "label_weights", (weight == 0) & mature, weight_name, sample, weight, "1: the label is mature"
                )

    def _landed(self, log: str, ts: Int, window: int) -> Bool:
        """Whether every day that a label's window touches has landed, day by day."""
        there = np.ones(len(ts), np.bool_)
        last = self.schema.local_days.days(np.clip(ts, self.start, self.end - 1) + window)
        for day in range(self.day, int(last.max(initial=self.day)) + 1):
            if day not in self.landed[log]:
                there &= last < day
        return there


_NEVER_NEGATIVE = ("count", "distinct", "rate", "recency")


class _Group:
    """A struct of lists: values of its number leaves, one length per sample."""

    def __init__(self, struct: pa.StructArray) -> None:
        found = {field.name: _leaf(struct, field.name) for field in struct.type}
        self.lengths: Int = next(iter(found.values()))[0]
        self.ragged = {
            name: lengths != self.lengths for name, (lengths, _) in found.items() if (lengths != self.lengths).any()
        }
        self.values: dict[str, NDArray[Any]] = {
            name: values for name, (_, values) in found.items() if values is not None
        }
        self.sample: Int = np.repeat(np.arange(len(self.lengths)), self.lengths)


def _leaf(struct: pa.StructArray, name: str) -> tuple[Int, Any]:
    lists = single_array(struct).field(name)
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    values = lists.flatten()
    return lengths, None if pa.types.is_list(values.type) else values.to_numpy(zero_copy_only=False)


def _backwards(sample: Int, moments: Int) -> Bool:
    """Which values lie before the one before them, of the same sample."""
    back = np.zeros(len(moments), np.bool_)
    back[1:] = (sample[1:] == sample[:-1]) & (moments[1:] < moments[:-1])
    return back


def _earlier(group: _Group, seen: Int, sample: Int, moments: Int) -> Int:
    """Realtime events of the sample available strictly before each moment: counted by sorting, not as the builder does."""
    rows, moment_rows = len(seen), len(moments)
    which = np.concatenate([np.zeros(moment_rows, np.int64), np.ones(rows, np.int64)])
    at, of = np.concatenate([moments, seen]), np.concatenate([sample, group.sample])
    first, samples = int(at.min(initial=0)), len(group.lengths)
    span = int(at.max(initial=0)) - first + 1
    if samples * span < 1 << 61:
        # Both are in order where nothing is wrong: a stable sort merges them.
        order = np.argsort((of * span + (at - first)) * 2 + which, kind="stable")
    else:
        order = np.lexsort((which, at, of))
    is_event = order >= moment_rows
    running = np.cumsum(is_event)
    begins = np.concatenate([[0], np.cumsum(group.lengths)])
    out = np.empty(moment_rows, np.int64)
    asked = ~is_event
    out[order[asked]] = running[asked]
    counted: Int = out - begins[sample]
    return counted


def _schema_difference(found: pa.Schema, expected: pa.Schema) -> str:
    lacking = [name for name in expected.names if name not in found.names]
    if lacking:
        return f"column {lacking[0]} is missing"
    other = [
        name for name in found.names if name not in expected.names or not found.field(name).equals(expected.field(name))
    ]
    return f"column {other[0]} is {found.field(other[0]).type}" if other else "columns stand in another order"


def _nulls(column: pa.ChunkedArray) -> int:
    def count(array: pa.Array) -> int:
        total: int = array.null_count
        if pa.types.is_struct(array.type):
            return total + sum(count(array.field(i)) for i in range(array.type.num_fields))
        if pa.types.is_list(array.type):
            return total + count(array.flatten())
        return total

    return sum(count(chunk) for chunk in column.chunks)

"""Mistakes of cross features: which events they count, by which keys, and what of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from genrank.schemas.base import DAY_MS, parse_duration
from genrank.schemas.derive import columns
from genrank.schemas.derive.columns import Types, event_logs, families, joined, offered, snapshots
from genrank.schemas.expression import nearest
from genrank.schemas.features import CrossFeature
from genrank.schemas.group import CANDIDATES, USER
from genrank.schemas.messages import condition_mistakes, twice, unknown_column, unknown_log
from genrank.schemas.source import EventLog
from genrank.schemas.type_rules import IDS, NUMBERS, vocabulary_mistakes

if TYPE_CHECKING:
    from genrank.schemas.schema import Schema

LONGEST_WINDOW_MS = 90 * DAY_MS
"""How far back the events of cross features are kept."""


def cross_feature_mistakes(schema: Schema, group: str, at: str, feature: CrossFeature) -> Iterator[str]:
    """Of one cross feature of a group; `at` is its place in words."""
    if group not in (USER, CANDIDATES):
        yield f"{at}: a cross feature is a statistic as of an exposure (or of the window's start, for the user); declare it under candidates"
        return
    logs = event_logs(schema)
    window = parse_duration(feature.window)
    if window > LONGEST_WINDOW_MS:
        yield f"{at}: window {feature.window} is longer than the 90d of events that a day reads, the most there is; shorten it"
    if window == 0:
        yield f'{at}: window is 0, so no event is counted; write for example window="7d"'
    if feature.per is not None and feature.op != "rate":
        yield f"{at}: {feature.op} takes no `per`; drop it, or use op='rate'"
    for name in dict.fromkeys((feature.source, *([feature.per] if feature.per and feature.op == "rate" else []))):
        if name not in logs:
            yield f"{at}: source {unknown_log(schema, name)}"
            continue
        yield from _keys(schema, group, at, feature, logs[name])
    for name in twice(feature.keys):
        yield f"{at}: keys name {name!r} twice"
    if feature.source in logs:
        log = logs[feature.source]
        yield from _value(at, feature, log, joined(schema, log.columns))
        if feature.where is not None:
            yield from condition_mistakes(f"{at}: where", feature.where, joined(schema, log.columns))
    if feature.op == "rate":
        if feature.per is None and feature.where is None:
            yield f"{at}: a rate needs `where` (which events count) or `per` (the log of all trials); without both it is always 1"
        if feature.prior > 1:
            yield f"{at}: prior {feature.prior} is no rate; give one from 0 to 1"
    elif feature.prior or feature.strength:
        yield f"{at}: prior and strength smooth a rate; {feature.op} takes none"
    if feature.table and feature.op != "last":
        yield f"{at}: {feature.op} is a number and takes no table; bucket it with transform=QuantileBuckets(...)"
    if feature.table and feature.transform:
        yield f"{at}: both table and transform are given; a table for an id, a transform for a number"


def _keys(schema: Schema, group: str, at: str, feature: CrossFeature, log: EventLog) -> Iterator[str]:
    exposures = event_logs(schema).get(schema.candidates.source)
    if exposures is None:
        return
    ours = offered(schema, group)
    theirs = joined(schema, log.columns)
    for key in feature.keys:
        if key not in ours:
            yield f"{at}: key {unknown_column(schema, group, key, ours)}"
        elif key not in theirs:
            snapshot, _ = columns.split(key)
            through = f" (nor {snapshots(schema)[snapshot].key!r}, the key of {snapshot})" if snapshot else ""
            yield f"{at}: events of {log.name} have no column {key!r}{through}; add it to the source, or drop the key"
        elif ours[key] not in IDS:
            yield f"{at}: key {key!r} is of type {ours[key]}; a key is of type int64, int32, bool or string"
        elif families([ours[key]]) != families([theirs[key]]):
            yield f"{at}: key {key!r} is {ours[key]} in {exposures.name} but {theirs[key]} in {log.name}: they would never meet"


def _value(at: str, feature: CrossFeature, log: EventLog, types: Types) -> Iterator[str]:
    needs = feature.op in ("sum", "mean", "last", "distinct")
    if needs and feature.value is None:
        yield f"{at}: {feature.op} needs value=, a column of {log.name}"
    elif feature.value is not None and not needs:
        yield f"{at}: {feature.op} takes no value; drop it, or use sum, mean, last or distinct"
    elif feature.value is not None and feature.value not in types:
        yield f"{at}: value {feature.value!r} is not a column of {log.name}{nearest(feature.value, types)}"
    elif feature.value is not None:
        type_ = types[feature.value]
        allowed = {
            "sum": NUMBERS,
            "mean": NUMBERS,
            "distinct": (*NUMBERS, "string"),
            "last": IDS if feature.table else NUMBERS,
        }
        if type_ not in allowed[feature.op]:
            remedy = "; give it a table to keep it as an id" if (feature.op, type_) == ("last", "string") else ""
            yield f"{at}: {feature.op} of {feature.value!r}, which is of type {type_}{remedy}"
        elif feature.table:
            yield from vocabulary_mistakes(at, feature.value, feature.table.vocabulary, text=type_ == "string")

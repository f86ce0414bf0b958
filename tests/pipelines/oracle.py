"""What samples must hold, worked out row by row in plain Python: slow, obvious, and sharing no code with the builder.

Semantics it states: an event is available at max(ts, arrival) + delay; an exposure at t sees it iff available < t. A cross feature
with window W reads the events with available < t and t - W < ts < t. History: available before the window's start and within the
lookback of it. Realtime: available inside the window. Both are ordered by (available, ts, position in `events`, id).
"""

from __future__ import annotations

import math
import statistics
import struct
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow.parquet as pq
import sqlglot

from genrank.schemas import (
    Categorical,
    ChangePoints,
    CrossFeature,
    EventLog,
    MultiValued,
    Numeric,
    Schema,
    Snapshot,
    Sql,
    TimeGap,
)
from genrank.schemas.base import parse_duration
from genrank.schemas.ids import MISSING_ID, hash_string

Row = dict[str, Any]
DAY = 86_400_000


def float32(value: float) -> float:
    """The nearest float32."""
    return struct.unpack("f", struct.pack("f", value))[0]


def stored_id(value: Any) -> int:
    if value is None:
        return MISSING_ID
    return hash_string(value) if isinstance(value, str) else int(value)


def zone_of(utc_offset: str) -> tzinfo:
    """The clocks of an offset, or of a zone."""
    if utc_offset[0] not in "+-":
        return ZoneInfo(utc_offset)
    hours, minutes = utc_offset[1:].split(":")
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    return timezone(-offset if utc_offset[0] == "-" else offset)


@lru_cache
def spread(zone: tzinfo) -> int:
    """Milliseconds between the least and the greatest offset that a zone has had, looked at once a month."""
    moments = (datetime(year, month, 1, tzinfo=UTC) for year in range(1900, 2200) for month in range(1, 13))
    offsets = [moment.astimezone(zone).utcoffset() or timedelta() for moment in moments]
    return (max(offsets) - min(offsets)) // timedelta(milliseconds=1)


class Oracle:
    """Reads every raw row once; answers what the sample of a day must be."""

    def __init__(self, schema: Schema, root: Path, horizon: str, as_of: int) -> None:
        self.schema, self.as_of = schema, as_of
        self.zone = zone_of(schema.utc_offset)
        self.logs: dict[str, list[Row]] = {}
        self.landed: dict[str, set[str]] = {}
        self.snapshots: dict[str, dict[str, dict[Any, Row]]] = {}
        for source in schema.sources:
            assert source.path is not None
            raw: dict[str, list[Row]] = {}
            for folder in sorted(root.glob(source.path.format(dt="*"))):
                dt = folder.name.removeprefix("dt=")
                if dt <= horizon:
                    raw[dt] = [r for file in sorted(folder.glob("*.parquet")) for r in pq.read_table(file).to_pylist()]
            renamed = {
                dt: [{c: r[source.physical(c)] for c in source.columns} for r in rows] for dt, rows in raw.items()
            }
            self.landed[source.name] = set(raw)
            if isinstance(source, EventLog):
                self.logs[source.name] = self.clean(source, renamed)
            else:
                self.snapshots[source.name] = {
                    dt: {r[source.key]: r for r in rows if r[source.key] is not None} for dt, rows in renamed.items()
                }

    # ------------------------------------------------------------------ days and rows

    def dt(self, ms: int) -> str:
        return datetime.fromtimestamp(ms // 1000, self.zone).date().isoformat()

    def start(self, dt: str) -> int:
        return round(datetime.fromisoformat(dt).replace(tzinfo=self.zone).timestamp() * 1000)

    def end(self, dt: str) -> int:
        return self.start((date.fromisoformat(dt) + timedelta(days=1)).isoformat())

    def ms(self, log: EventLog, value: Any) -> int | None:
        if value is None:
            return None
        if isinstance(value, datetime):
            return round((value - datetime(1970, 1, 1, tzinfo=value.tzinfo)).total_seconds() * 1000)
        return {"s": value * 1000, "ms": value, "us": value // 1000}[log.time_unit]

    def clean(self, log: EventLog, raw: dict[str, list[Row]]) -> list[Row]:
        """Usable rows, each once, with what the builder calls ts, arrived and available."""
        good: list[Row] = []
        for dt, rows in raw.items():
            for row in rows:
                ts = self.ms(log, row[log.time])
                if ts is None or row[log.user] is None:
                    continue
                late = (date.fromisoformat(dt) - date.fromisoformat(self.dt(ts))).days * DAY
                if late < 0 or late > parse_duration(log.lateness):
                    continue
                if log.name == self.schema.candidates.source and row[self.schema.candidates.item] is None:
                    continue
                if not all(self.sql(condition, row) for condition in log.valid):
                    continue
                arrived = max(ts, self.ms(log, row[log.arrival]) or ts) if log.arrival else ts
                if arrived - ts > parse_duration(log.lateness) + DAY + spread(self.zone):
                    continue
                made = {"ts": ts, "arrived": arrived, "available": arrived + parse_duration(log.delay), "row": row}
                good.append(made | {"user": row[log.user], "log": log.name})
        first: dict[Any, Row] = {}
        for made in sorted(good, key=lambda made: (made["arrived"], repr(made["row"]))):
            columns = log.dedup or tuple(log.columns)
            same = (made["user"], self.dt(made["ts"]), *(repr(made["row"][c]) for c in columns))
            first.setdefault(same, made)
        return list(first.values())

    def sql(self, text: str, row: Row) -> Any:
        """SQL with three-valued logic over one row; enough of it for the tests' expressions."""
        tree = sqlglot.parse_one(text)

        def value(node: Any) -> Any:
            kind = type(node).__name__
            if kind == "Column":
                found = row.get(f"{node.table}.{node.name}" if node.table else node.name)
                return found
            if kind == "Literal":
                return node.this if node.is_string else (float(node.this) if "." in node.this else int(node.this))
            if kind == "Paren":
                return value(node.this)
            if kind == "Case":
                for branch in node.args["ifs"]:
                    if value(branch.this):
                        return value(branch.args["true"])
                return value(node.args["default"]) if node.args.get("default") else None
            left, right = value(node.this), value(node.expression)
            if left is None or right is None:
                return None
            return {
                "GT": lambda: left > right,
                "GTE": lambda: left >= right,
                "LT": lambda: left < right,
                "EQ": lambda: left == right,
                "Div": lambda: left / right,
                "Mul": lambda: left * right,
            }[kind]()

        return value(tree)

    # ------------------------------------------------------------------ columns

    def snapshot_row(self, name: str, key: Any, dt: str) -> Row:
        """The snapshot's row as of the start of a day."""
        source = self.schema.source(name)
        assert isinstance(source, Snapshot)
        days = [d for d in self.snapshots[name] if d <= dt]
        if not days or (date.fromisoformat(dt) - date.fromisoformat(max(days))).days * DAY > parse_duration(
            source.max_age
        ):
            return {}
        return self.snapshots[name][max(days)].get(key, {})

    def column(self, made: Row, reference: str) -> Any:
        """A column of an event or an exposure, or of a snapshot as of the start of the row's own day."""
        if "." not in reference:
            return made["row"].get(reference)
        name, column = reference.split(".")
        source = self.schema.source(name)
        assert isinstance(source, Snapshot)
        if source.key not in made["row"]:
            return None
        return self.snapshot_row(name, made["row"][source.key], self.dt(made["ts"])).get(column)

    def expand(self, made: Row, text: str) -> Row:
        columns = {
            f"{c.table}.{c.name}" if c.table else c.name for c in sqlglot.parse_one(text).find_all(sqlglot.exp.Column)
        }
        return {reference: self.column(made, reference) for reference in columns}

    def keep(self, feature: Any, made: Row) -> Any:
        """A stored feature of a row."""
        kind = feature.stored
        if isinstance(feature, Sql):
            value = self.sql(feature.expression, self.expand(made, feature.expression))
        else:
            value = self.column(made, feature.column or feature.name)
        return self.store(kind, value, getattr(feature, "max_values", 0))

    def store(self, kind: Any, value: Any, limit: int = 0) -> Any:
        if kind == "id":
            return stored_id(value)
        if kind == "ids":
            return [stored_id(v) for v in value or [] if v is not None][: limit or None]
        if kind == "vector":
            return [float32(x) for x in value or []]
        if kind == "time":
            if value is None:
                return MISSING_ID
            return round(value.timestamp() * 1000) if isinstance(value, datetime) else value
        return math.nan if value is None else float32(float(value))

    # ------------------------------------------------------------------ the sample

    def samples(self, dt: str) -> dict[str, Row]:
        """User -> the sample of the day, without splitting or down-sampling."""
        start, end = self.start(dt), self.end(dt)
        exposures = [e for e in self.logs[self.schema.candidates.source] if start <= e["ts"] < end]
        return {
            user: self.sample(dt, user, [e for e in exposures if e["user"] == user])
            for user in {e["user"] for e in exposures}
        }

    def sample(self, dt: str, user: Any, exposures: list[Row]) -> Row:
        schema, start, end = self.schema, self.start(dt), self.end(dt)
        out: Row = {"window_start": start, "window_end": end, "user": self.profile(dt, user)}
        out["cut through ties"] = set()
        for sequence in schema.sequences:
            events = self.sequence(sequence, user)
            if sequence.scope == "history":
                oldest = start - parse_duration(sequence.lookback)
                events = [e for e in events if oldest <= e["available"] < start]
                dropped, events = events[: -sequence.max_length], events[-sequence.max_length :]
                out["cut through ties"] |= {sequence.name} if dropped and tied(dropped[-1], events[0]) else set()
            else:
                events = [e for e in events if start <= e["available"] < end]
            out[sequence.name] = events
        realtime = out[schema.realtime.name] if schema.realtime else []
        out["candidates"] = [
            {
                "ts": e["ts"],
                "item": stored_id(e["row"][schema.candidates.item]),
                "request": stored_id(e["row"][schema.candidates.request]) if schema.candidates.request else None,
                "sees": sum(r["available"] < e["ts"] for r in realtime),
                "features": {f.name: self.candidate(f, e, start) for f in schema.candidates.features if f.stored},
                "labels": {label.name: self.label(label, e) for label in schema.labels},
            }
            for e in exposures
        ]
        out["realtime_sees"] = [sum(r["available"] < q["available"] for r in realtime) for q in realtime]
        return out

    def profile(self, dt: str, user: Any) -> Row:
        out = {}
        for feature in self.schema.user.features:
            if kind := feature.stored:
                if isinstance(feature, Sql):
                    text = feature.expression
                    columns = {(c.table, c.name) for c in sqlglot.parse_one(text).find_all(sqlglot.exp.Column)}
                    row = {f"{t}.{c}": self.snapshot_row(t, user, dt).get(c) for t, c in columns}
                    value = self.sql(text, row)
                else:
                    assert isinstance(feature, Categorical | Numeric | MultiValued | TimeGap)
                    name, column = (feature.column or feature.name).split(".")
                    value = self.snapshot_row(name, user, dt).get(column)
                out[feature.name] = self.store(kind, value, getattr(feature, "max_values", 0))
        return out

    def sequence(self, sequence: Any, user: Any) -> list[Row]:
        """The user's events in order, each with its stored features. Rows that tie to the end are ordered by their content."""
        found = []
        for kind, entry in enumerate(sequence.events):
            if isinstance(entry, ChangePoints):
                found += self.changes(sequence, kind, entry, user)
                continue
            for made in self.logs[entry.source]:
                if made["user"] == user and (entry.where is None or self.sql(entry.where, made["row"])):
                    features = {f.name: self.keep(f, made) for f in sequence.features if f.stored}
                    found.append({"ts": made["ts"], "available": made["available"], "type": kind, "features": features})
        return sorted(found, key=order)

    def changes(self, sequence: Any, kind: int, entry: ChangePoints, user: Any) -> list[Row]:
        found = []
        before: Any = None
        for dt in sorted(self.snapshots[entry.source]):
            value = self.snapshots[entry.source][dt].get(user, {}).get(entry.column)
            if value is not None and value != before:
                features = {}
                for feature in sequence.features:
                    if stored := feature.stored:
                        reads = not isinstance(feature, Sql) and (feature.column or feature.name) == entry.column
                        features[feature.name] = self.store(stored, value if reads else None)
                found.append({"ts": self.start(dt), "available": self.start(dt), "type": kind, "features": features})
            before = value
        return found

    # ------------------------------------------------------------------ candidates

    def candidate(self, feature: Any, exposure: Row, start: int) -> Any:
        if not isinstance(feature, CrossFeature):
            return self.keep(feature, exposure)
        keys = {key: self.column(exposure, key) for key in feature.keys}
        listed = [key for key in feature.keys if self.is_list(key)]
        if not listed:
            value = self.statistic(feature, exposure, start, keys)
            return value if isinstance(value, set) else float32(value)
        elements = {one for one in keys[listed[0]] or [] if one is not None} or {None}
        values = [self.statistic(feature, exposure, start, keys | {listed[0]: one}) for one in elements]
        there = [value for value in values if not math.isnan(value)]
        if not there:
            return math.nan
        total = sum(map(Fraction, there))
        exact = {"mean": total / len(there), "sum": total, "max": max(there), "min": min(there)}[
            feature.reduce or "mean"
        ]
        return float32(float(exact))

    def is_list(self, key: str) -> bool:
        name, _, column = key.rpartition(".")
        source = self.schema.source(name) if name else self.schema.exposures
        return source.columns[column].startswith("list")

    def statistic(self, feature: CrossFeature, exposure: Row, start: int, keys: Row) -> Any:
        at = start if feature.as_of == "window_start" else exposure["ts"]
        events = self.visible(feature, feature.source, keys, at)
        if feature.where:
            events = [e for e in events if self.sql(feature.where, e["row"])]
        if feature.op == "count":
            return float(len(events))
        if feature.op == "rate":
            shown = len(self.visible(feature, feature.per or feature.source, keys, at)) + feature.strength
            return (len(events) + feature.prior * feature.strength) / shown if shown else feature.prior
        if feature.op == "recency":
            return (at - max(e["ts"] for e in events)) / 1000 if events else math.nan
        if feature.half_life:
            events = [e for e in events if feature.value is None or e["row"][feature.value] is not None]
            values = [1.0 if feature.value is None else e["row"][feature.value] for e in events]
            ages = [(at - e["ts"]) / parse_duration(feature.half_life) for e in events]
            return math.fsum(value * 2**-age for value, age in zip(values, ages, strict=True))
        assert feature.value is not None
        events = [e for e in events if e["row"][feature.value] is not None]
        values = [e["row"][feature.value] for e in events]
        if feature.op == "distinct":
            return float(len(set(values)))
        if feature.op == "sum":
            return math.fsum(values)
        if feature.op in ("max", "min"):
            return float({"max": max, "min": min}[feature.op](values)) if values else math.nan
        if feature.op == "std":
            return statistics.pstdev(values) if values else math.nan
        if feature.op == "mean":
            return math.fsum(values) / len(values) if values else math.nan
        newest = max((e["ts"] for e in events), default=None)
        kind = feature.stored
        # Events of the very same millisecond are ordered by a hash: any of their values will do.
        return {self.store(kind, e["row"][feature.value]) for e in events if e["ts"] == newest} or {
            self.store(kind, None)
        }

    def visible(self, feature: CrossFeature, source: str, keys: Row, at: int) -> list[Row]:
        if None in keys.values():
            return []

        def holds(event: Row, key: str) -> bool:
            found = self.column(event, key)
            return keys[key] in found if isinstance(found, list) else bool(found == keys[key])

        window = parse_duration(feature.window)
        return [
            e
            for e in self.logs[source]
            if e["available"] < at and at - window < e["ts"] < at and all(holds(e, key) for key in feature.keys)
        ]

    def label(self, label: Any, exposure: Row) -> tuple[Any, float]:
        """(value, weight); the set of both values where exposures of one millisecond compete for an event."""
        mature = exposure["ts"] + parse_duration(label.window) < self.as_of
        if label.column:
            value = exposure["row"][label.column]
            mature &= value is not None
            value = 0 if value is None else value
            value = float(value != 0) if label.kind == "binary" else float32(float(value))
        else:
            # Every day that the window touches has landed, of the label's log and, where the last exposure counts, of the exposures.
            day, last = self.dt(exposure["ts"]), self.dt(exposure["ts"] + parse_duration(label.window))
            while day <= last:
                mature &= day in self.landed[label.source]
                mature &= label.attribution != "last" or day in self.landed[self.schema.candidates.source]
                day = (date.fromisoformat(day) + timedelta(days=1)).isoformat()
            events = [
                e
                for e in self.logs[label.source]
                if self.matches(label, exposure, e) and e["arrived"] < self.as_of and self.counts(label, exposure, e)
            ]
            if label.where:
                events = [e for e in events if self.sql(label.where, e["row"])]
            if label.value:
                events = [e for e in events if e["row"][label.value] is not None]
            certain = [e for e in events if not self.contested(label, e)]
            value = (
                float(bool(certain))
                if label.kind == "binary"
                else float32(math.fsum(e["row"][label.value] for e in events))
            )
            if len(certain) < len(events) and label.kind == "binary":
                value = {1.0, value}
        if label.given:
            given = next(other for other in self.schema.labels if other.name == label.given)
            positive, weight = self.label(given, exposure)
            mature &= weight > 0
            assert not isinstance(positive, set)
            value = value if positive > 0 else 0.0
        return value, float(mature)

    def matches(self, label: Any, exposure: Row, event: Row) -> bool:
        own = [exposure["row"][c] for c in label.on]
        return exposure["user"] == event["user"] and None not in own and own == [event["row"][c] for c in label.on]

    def counts(self, label: Any, exposure: Row, event: Row) -> bool:
        if not exposure["ts"] <= event["ts"] <= exposure["ts"] + parse_duration(label.window):
            return False
        if label.attribution == "every":
            return True
        return exposure["ts"] == max(o["ts"] for o in self.shown_before(label, event))

    def contested(self, label: Any, event: Row) -> bool:
        """Whether the last exposure before the event is one of several of that millisecond: ordered by a hash."""
        if label.attribution == "every":
            return False
        times = [o["ts"] for o in self.shown_before(label, event)]
        return times.count(max(times)) > 1

    def shown_before(self, label: Any, event: Row) -> list[Row]:
        return [
            o
            for o in self.logs[self.schema.candidates.source]
            if self.matches(label, o, event) and o["ts"] <= event["ts"]
        ]


def tied(event: Row, other: Row) -> bool:
    """Whether only a hash decides which of two events of a sequence comes first."""
    return order(event)[:3] == order(other)[:3]


def order(event: Row) -> tuple[Any, ...]:
    """Sorts a sequence; the content stands for the builder's id, which is a hash."""
    return (event["available"], event["ts"], event["type"], repr(event["features"]))

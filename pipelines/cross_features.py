"""Cross features: statistics of past events as of each exposure's own millisecond.

Features with the same keys are answered together. Where the keys hold the user, the user's bucket has all it takes; otherwise
exposures and events travel to a slot of their key's hash, are answered there, and the answers travel back to the user's bucket.
Where a key is a list, a row stands at a key for each of its ids (`at_keys`), and an exposure's answers become one (`of_exposures`).

A past day that lies inside a window, or outside it, for every moment of the days built need not be read event by event: its
tile says the same, a row per key (`tile`). `ranges_of_tiles` says which days those are; the days that a window's edge passes
through, the days built, and days of which much is yet to arrive are read in full.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrank.pipelines import decay, list_keys, spread
from genrank.pipelines.column_roles import NUMBERS, Column
from genrank.pipelines.columns import cross_features, cross_sources, key_column, value_column
from genrank.pipelines.cross_feature_ops import Question, evaluation_of
from genrank.pipelines.days import whole_days
from genrank.pipelines.exact_sums import grouped, rounded, split
from genrank.pipelines.key_columns import KeyColumns
from genrank.pipelines.merge_scan import Coded, Int, Keys, Queries, Scan, mix
from genrank.schemas import CrossFeature, EventLog, Schema, UserError
from genrank.schemas.base import DAY_MS, parse_duration
from genrank.schemas.ids import MISSING_ID


@dataclass(frozen=True)
class KeySet:
    """Cross features that share their keys; those that count distinct values, also the values: their tiles have a row per value."""

    keys: tuple[str, ...]
    features: tuple[CrossFeature, ...]
    distinct: str = ""
    listed: str = ""
    """The key that is a list; empty where none is."""

    @property
    def tag(self) -> str:
        """Its name in messages and folders: the keys, and the value counted distinct."""
        return ",".join(self.keys) + (f"#{self.distinct}" if self.distinct else "")

    @property
    def list_column(self) -> str:
        """The column of a partial that holds `listed`."""
        return Column("set", self.listed).name

    def with_user(self, schema: Schema) -> bool:
        """Whether all events of a key are the same user's."""
        return schema.exposures.user in self.keys

    def windows(self, schema: Schema) -> dict[str, int]:
        """Log -> the longest window over it, in ms."""
        longest: dict[str, int] = {}
        for feature in self.features:
            for log in cross_sources(schema, feature):
                longest[log.name] = max(longest.get(log.name, 0), parse_duration(feature.window))
        return longest


def key_sets(schema: Schema) -> list[KeySet]:
    """All cross features, grouped by keys, in a fixed order."""
    groups: dict[tuple[tuple[str, ...], str], list[CrossFeature]] = {}
    for feature in cross_features(schema):
        distinct = (feature.value or "") if evaluation_of(feature).keyed_by_value else ""
        groups.setdefault((tuple(sorted(feature.keys)), distinct), []).append(feature)

    def listed(keys: tuple[str, ...]) -> str:
        return next((key for key in keys if key_column(schema, key).role == "set"), "")

    return [
        KeySet(keys, tuple(features), distinct, listed(keys)) for (keys, distinct), features in sorted(groups.items())
    ]


def days_back(schema: Schema) -> dict[str, int]:
    """Log -> how many days before the first day built its events matter to cross features."""
    back: dict[str, int] = {}
    for key_set in key_sets(schema):
        for log, window in key_set.windows(schema).items():
            back[log] = max(back.get(log, 0), schema.local_days.covering(window))
    return back


def event_columns(key_set: KeySet, log: EventLog) -> list[Column]:
    """Columns of the log's partial that the key set reads, keys aside."""
    wanted: set[Column] = set()
    for feature in key_set.features:
        if feature.source == log.name:
            if column := value_column(feature):
                wanted.add(column)
            if feature.where:
                wanted.add(Column("flag", feature.where, sql=True))
    return sorted(wanted)


def key_columns(key_set: KeySet) -> list[str]:
    """Columns of a partial that hold the keys."""
    return [key_set.list_column if key == key_set.listed else Column("id", key).name for key in key_set.keys]


def at_keys(key_set: KeySet, table: pa.Table) -> pa.Table:
    """Rows of a partial, where a key is a list one for each of its ids."""
    return list_keys.exploded(table, key_set.list_column) if key_set.listed else table


def keys_of(key_set: KeySet, table: pa.Table) -> tuple[list[Int], NDArray[np.bool_]]:
    """(each row's keys by column, whether all of them are present), of rows as `at_keys` gives them."""
    columns = [int64_column(table, name) for name in key_columns(key_set)]
    present = np.ones(table.num_rows, np.bool_)
    for column in columns:
        present &= column != MISSING_ID
    return columns, present


def hashed_keys(key_set: KeySet, table: pa.Table) -> tuple[Int, NDArray[np.bool_]]:
    """(hash of each row's keys, whether all of them are present), of rows as `at_keys` gives them."""
    columns, present = keys_of(key_set, table)
    return (mix(*columns) if columns else np.zeros(table.num_rows, np.int64)), present


def most_codes(key_set: KeySet, schema: Schema, days: int) -> int:
    """As many keys as fit one axis (`merge_scan.Axis`) with the times of so many days built and of the events that they see."""
    logs = {log for feature in key_set.features for log in cross_sources(schema, feature)}
    late = max(parse_duration(log.lateness) + parse_duration(log.delay) for log in logs)
    longest = max(parse_duration(feature.window) for feature in key_set.features)
    # Days are read whole; an axis has up to twice the times' span, and half is kept free.
    return min(1 << 30, (1 << 60) // (2 * (longest + late + (days + 4) * DAY_MS)))


def partial_columns(key_set: KeySet, log: EventLog, ids: bool = True) -> list[str]:
    """Columns of the log's partial that `events_at_keys` reads."""
    own = [column.kept.name for column in event_columns(key_set, log) if column.kept]
    return list(dict.fromkeys(["ts", "arrived", *(["id"] if ids else []), *key_columns(key_set), *own]))


def asks_ids(key_set: KeySet, log: EventLog) -> bool:
    """Whether a feature tells events of one moment apart."""
    return any(evaluation_of(f).newest is not None for f in key_set.features if f.source == log.name)


def events_at_keys(key_set: KeySet, log: EventLog, table: pa.Table, asked: KeyColumns | None = None) -> pa.Table:
    """Rows of a log's partial as the kernel reads them: key, ts, available, id (if it is there) and the columns of `event_columns`; with
    the keys `asked`, only those, with their `code` instead of a key."""
    if key_set.listed:
        own = [name for name in partial_columns(key_set, log) if name in table.column_names]
        table = at_keys(key_set, table.select(own))
    if asked is None:
        keys, present = hashed_keys(key_set, table)
    else:
        columns, present = keys_of(key_set, table)
        keys = asked.find(columns)
        present &= keys >= 0
    out = pa.table(
        {
            "key" if asked is None else "code": pa.array(keys),
            "ts": table.column("ts"),
            "available": pa.array(available(log, table)),
            **({"id": table.column("id")} if "id" in table.column_names else {}),
            **{
                column.name: table.column(column.kept.name) if column.kept else pa.array(np.ones(table.num_rows))
                for column in event_columns(key_set, log)
            },
        }
    )
    return out if present.all() else out.filter(pa.array(present))


def coded(table: pa.Table, asked: Keys) -> pa.Table:
    """Rows of `events_at_keys` or `tile` whose key is among those asked, with its `code`."""
    codes = asked.find(int64_column(table, "key"))
    table = table.append_column("code", pa.array(codes))
    known = codes >= 0
    return table if known.all() else table.filter(pa.array(known))


# ---------------------------------------------------------------------- tiles


def settling_days(log: EventLog) -> int:
    """Whole days after a day until (nearly) all of its rows are available; a tile leaves later ones as they are."""
    return whole_days(parse_duration(log.delay)) + (log.arrival is not None)


def ranges_of_tiles(key_set: KeySet, schema: Schema, log: EventLog, first: int, last: int) -> list[range]:
    """Runs of days that samples of first .. last may read as tiles, oldest first.

    A day qualifies if it has settled before `first`, and the far edge of no window (at t - W, for t in first .. last) falls
    into it. No edge lies within a run, so days of a run may be merged.
    """
    windows = {parse_duration(f.window) for f in key_set.features if log in cross_sources(schema, f)}
    days = schema.local_days
    begin, end = days.start(first), days.start(last + 1)
    edges = {day for w in windows for day in range(days.day(begin - w), days.day(end - 1 - w) + 1)}
    runs: list[range] = []
    for day in range(days.day(begin - max(windows)), first - settling_days(log)):
        if day in edges:
            continue
        if runs and runs[-1].stop == day:
            runs[-1] = range(runs[-1].start, day + 1)
        else:
            runs.append(range(day, day + 1))
    return runs


def newest_ops(key_set: KeySet, log: EventLog) -> set[str]:
    """Which ops of the key set ask a tile of the log for its newest events."""
    return {f.op for f in key_set.features if f.source == log.name and evaluation_of(f).newest}


def mergeable(key_set: KeySet, log: EventLog, rows: pa.Table) -> pa.Table:
    """Rows of `events_at_keys` with the columns that only merged rows need: 0 for events as they are."""
    if "merged" not in rows.column_names:
        rows = rows.append_column("merged", pa.array(np.zeros(rows.num_rows, np.int64)))
        for column in event_columns(key_set, log):
            if column.role == "spread":
                rows = rows.append_column(column.squares, pa.array(np.zeros(rows.num_rows)))
    return rows


def tile(key_set: KeySet, log: EventLog, rows: pa.Table, moment: int, settled: int) -> pa.Table:
    """Rows of `events_at_keys`, or of tiles, merged.

    What was available before `settled` becomes a row per key, condition, presence of values, and distinct value; it holds the number of events
    (`merged`), sums, extremes, means and squared differences, and the time, id and value of the newest.
    What came later stays as it is, so that a tile is exact to the millisecond.

    Args:
        moment: any within the tile's last day: the time of merged rows where no feature asks for it.
    """
    rows = mergeable(key_set, log, rows)
    early = int64_column(rows, "available") < settled
    late, rows = rows.filter(pa.array(~early)), rows.filter(pa.array(early)).combine_chunks()
    if not rows.num_rows:
        return late
    columns = event_columns(key_set, log)
    parts = [int64_column(rows, "code" if "code" in rows.column_names else "key")]
    for column in columns:
        value = rows.column(column.name).to_numpy()
        if column.role == "flag":
            parts.append(value.astype(np.int64))
        elif column.expression == key_set.distinct:
            parts.append(value)
        else:
            parts.append((np.isnan(value) if column.role in NUMBERS else value == MISSING_ID).astype(np.int64))
    group = Keys(mix(*parts) if len(parts) > 1 else parts[0])
    codes, groups = group.codes, group.count
    newest_of = {evaluation_of(f).newest for f in key_set.features if f.source == log.name} - {None}
    ts = np.full(groups, moment)
    id_ = np.zeros(groups, np.int64)
    newest = np.empty(groups, np.int64)
    if newest_of:
        ts = _greatest(int64_column(rows, "ts"), codes, groups)
        at = np.flatnonzero(int64_column(rows, "ts") == ts[codes])
        if "event" in newest_of:
            id_ = _greatest(int64_column(rows, "id")[at], codes[at], groups)
            at = at[int64_column(rows, "id")[at] == id_[codes[at]]]
        newest[codes[at]] = at
    else:
        newest[codes] = np.arange(rows.num_rows)
    out = rows.take(pa.array(newest))
    events = np.maximum(int64_column(rows, "merged"), 1)
    values = {
        "ts": ts,
        "available": np.full(groups, settled - 1),
        "id": id_,
        "merged": _total(events, codes, groups),
    }
    for column in columns:
        if column.role in ("amount", "spread", "decayed"):
            # A group's values are all there or all missing.
            amounts = np.nan_to_num(rows.column(column.name).to_numpy(), nan=0.0)
            missing = np.isnan(out.column(column.name).to_numpy())
            if column.role == "amount":
                total = rounded(grouped(split(amounts), codes, groups))
            elif column.role == "decayed":
                total = decay.merged(amounts, int64_column(rows, "ts"), codes, ts, column.half_life)
            else:
                total, values[column.squares] = spread.merged(
                    events, amounts, rows.column(column.squares).to_numpy(), codes, values["merged"]
                )
            values[column.name] = np.where(missing, np.nan, total)
        elif column.role in ("largest", "smallest"):
            sign = 1 if column.role == "largest" else -1
            own = sign * rows.column(column.name).to_numpy()
            extreme = np.full(groups, -np.inf, np.float32)
            np.maximum.at(extreme, codes, np.where(np.isnan(own), np.float32("-inf"), own))
            values[column.name] = np.where(np.isneginf(extreme), np.float32("nan"), sign * extreme)
    for name, value in values.items():
        if name == "id" and name not in out.column_names:
            continue
        out = out.set_column(out.column_names.index(name), name, pa.array(value))
    return pa.concat_tables([out, late])


# ---------------------------------------------------------------------- keys too big for one slot


def slices(first: int, last: int, number: int) -> Int:
    """Bounds (number + 1, epoch ms) of equal slices of [first, last)."""
    return first + np.arange(number + 1) * (last - first) // number


def slice_of_events(key_set: KeySet, schema: Schema, log: EventLog, rows: pa.Table, begin: int, end: int) -> pa.Table:
    """Of events of one key (with `merged`), what queries at [begin, end) may see.

    Those that come or go within the slice stay as they are; of the others those are merged that lie inside the same windows.
    """
    ts, seen = int64_column(rows, "ts"), int64_column(rows, "available")
    single = (seen >= begin) & (seen < end)
    inside = np.zeros(len(ts), np.int64)
    for window in {parse_duration(f.window) for f in key_set.features if log in cross_sources(schema, f)}:
        single |= (seen < end) & (begin - window < ts) & (ts < end - window)
        inside += ts >= end - window
    parts = [rows.filter(pa.array(single))]
    inside[single | (seen >= end)] = 0
    for number in np.unique(inside[inside > 0]):
        at = inside == number
        parts.append(tile(key_set, log, rows.filter(pa.array(at)), int(ts[at].max()), begin))
    return pa.concat_tables(parts)


def _greatest(values: Int, codes: Int, groups: int) -> Int:
    out = np.full(groups, np.iinfo(np.int64).min)
    np.maximum.at(out, codes, values)
    return out


def _total(values: Int, codes: Int, groups: int) -> Int:
    out = np.zeros(groups, np.int64)
    np.add.at(out, codes, values)
    return out


# ---------------------------------------------------------------------- answers


def answer(
    key_set: KeySet, schema: Schema, keys: Keys | KeyColumns, ts: Int, window_start: Int, events: Mapping[str, pa.Table]
) -> Iterator[tuple[str, pa.Array]]:
    """(feature, its value at each query) of every feature of the key set; where a key is a list, in float64.

    Args:
        keys: the queries' keys, hashed or by column.
        ts, window_start: int64 [queries]: the exposure's time, its window's start.
        events: log -> its rows as `events_at_keys` and `tile` give them, `coded` by `keys` or not; without `available` where that is `ts`.
    """
    if isinstance(keys, Keys):
        events = {log: rows if "code" in rows.column_names else coded(rows, keys) for log, rows in events.items()}
    scans = {
        name: Scan(
            Coded(keys, int64_column(table, "code")),
            int64_column(table, "ts"),
            int64_column(table, "available" if "available" in table.column_names else "ts"),
            int64_column(table, "id") if "id" in table.column_names else None,
            int64_column(table, "merged") if "merged" in table.column_names else None,
        )
        for name, table in events.items()
    }
    asked: dict[tuple[str, bool], Queries] = {}

    def at(log: str, start: bool) -> Queries:
        if (log, start) not in asked:
            asked[log, start] = scans[log].of_asked(window_start if start else ts)
        return asked[log, start]

    def count_all(start: bool, window: int, log: str) -> Int:
        return scans[log].sum(at(log, start), window)[0]

    for feature in key_set.features:
        start = feature.as_of == "window_start"
        scan, table, queries = scans[feature.source], events[feature.source], at(feature.source, start)
        window = parse_duration(feature.window)
        question = Question(
            feature,
            scan,
            queries,
            window,
            table,
            _flag(table, feature.where),
            value_column(feature),
            window_start if start else ts,
            partial(count_all, start, window),
        )
        result = evaluation_of(feature).answer(question)
        yield feature.name, pa.array(result.astype(np.float64)) if key_set.listed else _as_stored(feature, result)


def of_exposures(key_set: KeySet, answers: Mapping[str, pa.Array], exposures: pa.Table) -> Mapping[str, pa.Array]:
    """Feature -> its value at each exposure, of those at the exposures' keys."""
    if not key_set.listed:
        return answers
    number = list_keys.keys_of(exposures.column(key_set.list_column))
    values: dict[str, pa.Array] = {}
    for feature in key_set.features:
        one = list_keys.reduced(feature.reduction, answers[feature.name].to_numpy(), number)
        values[feature.name] = _as_stored(feature, one)
    return values


def _as_stored(feature: CrossFeature, values: NDArray[Any]) -> pa.Array:
    if feature.stored == "id":
        return pa.array(values.astype(np.int64))
    if values.dtype.kind == "f" and (np.abs(values) > np.finfo(np.float32).max).any():
        raise beyond_float32(feature)
    return pa.array(values.astype(np.float32))


def beyond_float32(feature: CrossFeature) -> UserError:
    """A statistic that can't be stored."""
    return UserError(
        f"cross feature {feature.name!r}: a {feature.op} of {feature.value} is beyond float32 (3.4e38); give the column a larger unit"
    )


def _flag(table: pa.Table, where: str | None) -> NDArray[np.bool_] | None:
    if where is None:
        return None
    flag: NDArray[np.bool_] = table.column(Column("flag", where, sql=True).name).to_numpy()
    return flag


def available(log: EventLog, table: pa.Table) -> Int:
    """When each row of a log's partial can be seen: max(ts, arrival) + delay."""
    arrived, delay = int64_column(table, "arrived"), parse_duration(log.delay)
    return arrived + delay if delay else arrived


def seen_at_once(log: EventLog) -> bool:
    """Whether rows of a log can be seen when they happen: `available` is `ts`."""
    return log.arrival is None and not parse_duration(log.delay)


def int64_column(table: pa.Table, name: str) -> Int:
    """An int64 column without nulls."""
    column: Int = table.column(name).to_numpy()
    return column

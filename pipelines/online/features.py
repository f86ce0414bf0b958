"""Features of one user's candidates as of now, from the partials that a build wrote and the events that came since."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from genrank.pipelines import cross_features, sequences
from genrank.pipelines.arrays import int64s, single_array
from genrank.pipelines.column_roles import Column
from genrank.pipelines.columns import feature_column, needed, on_snapshot, user_sources
from genrank.pipelines.cross_features import KeySet, key_sets
from genrank.pipelines.days import day_number
from genrank.pipelines.merge_scan import Bool, Int, mix
from genrank.pipelines.online.indexes import GrowingIndex, RowsByKey, SnapshotRows
from genrank.pipelines.online.rows import OnlineNormalizer, SnapshotDays, require_usable
from genrank.pipelines.partials import PartialStore, load, partial_schema
from genrank.pipelines.sources import times_of
from genrank.schemas import ChangePoints, EventLog, EventSequence, Schema, Snapshot, UserError
from genrank.schemas.base import parse_duration
from genrank.schemas.derive.sample_schema import arrow_schema
from genrank.schemas.manifest import SampleManifest
from genrank.schemas.schema import CANDIDATES, USER

_NEAR = 400
"""Days around the one being served of which events are taken."""


class OnlineFeatures:
    """Makes requests (`schemas.derive.sample_schema`, without labels and mask) of exposures as they are about to happen.

    In memory lie the partials that the last build read, once for each set of keys that cross features have and once for each sequence. One
    thread may add events while others make requests.

    Args:
        schema: what the samples are declared by.
        rows: event log -> rows of its partials.
        snapshots: snapshot -> its days.
    """

    def __init__(
        self, schema: Schema, rows: Mapping[str, pa.Table], snapshots: Mapping[str, Mapping[int, pa.Table]]
    ) -> None:
        self.schema = schema
        columns = needed(schema)
        self._partials = {s.name: partial_schema(schema, s, columns[s.name]) for s in schema.sources}
        held = {}
        for source in schema.sources:
            if isinstance(source, Snapshot):
                days = {day: SnapshotRows(table) for day, table in snapshots.get(source.name, {}).items()}
                held[source.name] = SnapshotDays(source, self._partials[source.name].empty_table(), days)
        self.snapshots = held
        self._target = pa.schema([f for f in arrow_schema(schema) if f.name not in ("labels", "mask")])
        self._adding = threading.Lock()
        self._normalizers: dict[int, OnlineNormalizer] = {}
        self._key_sets = key_sets(schema)
        self._added: dict[str, tuple[pa.Table, set[int]]] = {}
        self._loaded = {name: np.sort(int64s(table, "id")) for name, table in rows.items()}
        """Log -> hashes of its loaded rows, by which one that is read again is known."""
        self._changes: dict[tuple[str, int, int], RowsByKey] = {}
        self._events: dict[tuple[KeySet, str], GrowingIndex] = {}
        for key_set in self._key_sets:
            for log in key_set.windows(schema):
                make = partial(cross_features.events_at_keys, key_set, schema.event_log(log))
                self._events[key_set, log] = GrowingIndex(make, "key", rows[log])
        self._sequences: dict[tuple[str, int], GrowingIndex] = {}
        for sequence in schema.sequences:
            for kind, entry in enumerate(sequence.events):
                if not isinstance(entry, ChangePoints):
                    make = partial(self._of_sequence, sequence, kind)
                    self._sequences[sequence.name, kind] = GrowingIndex(make, "u", rows[entry.source])

    @classmethod
    def load(cls, schema: Schema, out: Path | str, built: str, *, live_from: str | None = None) -> Self:
        """What the build of a day read.

        Args:
            schema: what `out` was built with.
            out: the --out folder of `genrank build`.
            built: a published day, YYYY-MM-DD: the last one before the day being served.
            live_from: a day from which on events come by `add`; default: the one after `built`.

        Raises:
            UserError: the day isn't published, was built from another schema, or a partial is gone or damaged.
        """
        out = Path(out)
        folder = out / "samples" / f"dt={built}"
        manifest = SampleManifest.read(folder)
        manifest.check(folder, schema)
        store, columns = PartialStore(out), needed(schema)
        until = day_number(live_from) if live_from else day_number(built) + 1
        rows: dict[str, pa.Table] = {}
        snapshots: dict[str, dict[int, pa.Table]] = {}
        for source in schema.sources:
            types = partial_schema(schema, source, columns[source.name])
            refs = []
            for dt, key in sorted(manifest.partials.get(source.name, {}).items()):
                day = day_number(dt)
                if isinstance(source, EventLog) and day >= until:
                    continue
                found = store.find(source.name, day, key)
                if found is None:
                    raise UserError(
                        f"{store.folder(source.name, day, key)} is gone or can't be read; build {built} again with --force"
                    )
                refs.append(store.ref(found, day))
            if isinstance(source, EventLog):
                rows[source.name] = load(refs, None, types.names, types).drop_columns(["_day"])
            else:
                snapshots[source.name] = {
                    ref.day: load([ref], None, types.names, types).drop_columns(["_day"]) for ref in refs
                }
        return cls(schema, rows, snapshots)

    # ------------------------------------------------------------------ events as they happen

    def add(self, source: str, raw: pa.Table, day: str) -> list[str]:
        """Events that can now be read, in the order in which they came: of those that are one event (`dedup`) the first counts.

        Args:
            source: an event log of the schema.
            raw: its declared columns, as its files have them; those that are missing are null.
            day: on which they are read, YYYY-MM-DD: the partition that they land in.

        Returns:
            Of each row that can't be used the reason why the build would quarantine it.

        Raises:
            UserError: there is no such log.
        """
        log = self.schema.source(source)
        if not isinstance(log, EventLog):
            raise UserError(f"source {source!r} is a snapshot; its days are read from what `genrank build` wrote")
        found, reasons = self._normalizer(day_number(day)).rows(log, raw, day_number(day))
        if found is None:
            return reasons
        with self._adding:
            table, seen = self._added.get(source, (self._partials[source].empty_table(), set()))
            new = []
            again = _among(int64s(found.rows, "id"), self._loaded[source]).tolist()
            for at, same in enumerate(found.same.tolist()):
                if same not in seen and not again[at]:
                    seen.add(same)
                    new.append(at)
            table = pa.concat_tables([table, found.rows.take(pa.array(new, pa.int64())).select(table.column_names)])
            self._added[source] = (table, seen)
            for (_, name), index in self._events.items():
                if name == source:
                    index.extend(table)
            for (sequence, kind), index in self._sequences.items():
                if self._sequence(sequence).events[kind].source == source:
                    index.extend(table)
        return reasons

    # ------------------------------------------------------------------ a request

    def request(self, exposures: pa.Table, sample_id: str = "") -> pa.RecordBatch:
        """The request of candidates that one user is about to see.

        Args:
            exposures: a row a candidate, in the order in which scores shall come: the declared columns of the exposures' log that are
                known by then. Their times lie in one day.
            sample_id: the request's name.

        Returns:
            One row, as the build would store it of these exposures, and of the realtime events before the last of them.

        Raises:
            UserError: several users or days, no exposure, or one that the build would quarantine.
        """
        schema, log = self.schema, self.schema.exposures
        if not exposures.num_rows:
            raise UserError("a request has no exposure; give at least one candidate")
        times = _moments(log, exposures)
        day = schema.local_days.day(int(times[0]))
        found, reasons = self._normalizer(day).rows(log, exposures, day)
        require_usable(log, reasons)
        assert found is not None
        shown = found.rows
        user, ts = int64s(shown, "u"), int64s(shown, "ts")
        if len(np.unique(user)) > 1 or (found.day != day).any():
            raise UserError("a request's exposures are of several users or days; make a request of each")
        start = schema.local_days.start(day)
        columns: dict[str, pa.Array] = {
            "sample_id": pa.array([sample_id], pa.string()),
            "user_id": single_array(shown.column("user")).slice(0, 1),
            "window_start": pa.array([start], pa.int64()),
            "window_end": pa.array([schema.local_days.start(day + 1)], pa.int64()),
        }
        if USER in self._target.names:
            columns[USER] = self._profile(day, user[:1])
        for sequence in schema.sequences:
            columns[sequence.name] = self._events_of(sequence, day, user[:1], start, int(ts.max()))
        columns[CANDIDATES] = self._candidates(shown, self._crossed(shown, ts, start), user, start)
        return pa.RecordBatch.from_arrays([columns[name] for name in self._target.names], schema=self._target)

    def _crossed(self, shown: pa.Table, ts: Int, start: int) -> dict[str, pa.Array]:
        """Cross feature -> its value of each exposure."""
        values: dict[str, pa.Array] = {}
        for key_set in self._key_sets:
            keys, _ = cross_features.hashed_keys(key_set, shown)
            distinct, events = np.unique(keys), {}
            for log, window in key_set.windows(self.schema).items():
                events[log] = self._events[key_set, log].at(distinct, min(start, int(ts.min())) - window)
            values |= cross_features.answer(key_set, self.schema, keys, ts, np.full(len(ts), start), events)
        return values

    def _candidates(self, shown: pa.Table, crossed: Mapping[str, pa.Array], user: Int, start: int) -> pa.Array:
        candidates = self.schema.candidates
        leaves: dict[str, pa.Array] = {"ts": single_array(shown.column("ts"))}
        for feature in candidates.features:
            if feature.stored:
                column = feature_column(feature)
                leaves[feature.name] = single_array(shown.column(column.name)) if column else crossed[feature.name]
        leaves["item"] = single_array(shown.column(Column("id", candidates.item).name))
        if candidates.request:
            leaves["request"] = single_array(shown.column(Column("id", candidates.request).name))
        else:
            leaves["request"] = pa.array(mix(user, np.full(len(user), start, np.int64)))
        return _one_list(self._target.field(CANDIDATES), leaves)

    def _profile(self, day: int, user: Int) -> pa.Array:
        field = self._target.field(USER)
        values: dict[str, pa.Array] = {}
        for feature in self.schema.user.features:
            column = feature_column(feature)
            if column is None or feature.stored is None:
                continue
            if column.expression == self.schema.exposures.user:
                values[feature.name] = pa.array(user)
                continue
            values[feature.name] = sequences.missing(feature.stored, 1)
            if of := user_sources(self.schema, column):
                snapshot = self.snapshots[of[0].name].as_of(day)
                at, known = snapshot.find(user)
                if known[0]:
                    values[feature.name] = single_array(snapshot.rows.column(on_snapshot(of[0], column).name)).take(at)
        return pa.StructArray.from_arrays([values[child.name] for child in field.type], fields=list(field.type))

    # ------------------------------------------------------------------ sequences

    def _events_of(self, sequence: EventSequence, day: int, user: Int, start: int, last: int) -> pa.Array:
        """A history before the window, or the realtime events that the last exposure sees, newest `max_length`, oldest first."""
        parts = []
        for kind, entry in enumerate(sequence.events):
            if isinstance(entry, ChangePoints):
                parts.append(self._change_points(sequence, kind, day).at(user))
            else:
                parts.append(self._sequences[sequence.name, kind].at(user))
        timeline = sequences.merge(self.schema, sequence, user, parts)
        code = np.zeros(1, np.int64)
        realtime = sequence.scope == "realtime"
        moment = np.array([last if realtime else start], np.int64)
        oldest = np.array([start if realtime else start - parse_duration(sequence.lookback)], np.int64)
        until, since = (int(timeline.before(code, at)[0]) for at in (moment, oldest))
        rows = np.arange(max(since, until - sequence.max_length), until)
        leaves = timeline.gather(rows)
        if realtime:
            leaves["available"] = pa.array(timeline.available[rows])
        return _one_list(self._target.field(sequence.name), leaves)

    def _of_sequence(self, sequence: EventSequence, kind: int, table: pa.Table) -> pa.Table:
        return sequences.rows_of(self.schema, sequence, kind, table, np.zeros(0, np.int64), 0)

    def _change_points(self, sequence: EventSequence, kind: int, day: int) -> RowsByKey:
        """By user, as of a day; worked out at its first request."""
        if (sequence.name, kind, day) not in self._changes:
            entry = sequence.events[kind]
            days = sorted(at for at in self.snapshots[entry.source].days if at <= day)
            names = sequences.columns_of(sequence, entry)
            tables = [_with_day(self.snapshots[entry.source].days[at].rows.select(names), at) for at in days]
            table = pa.concat_tables(tables or [_with_day(self._partials[entry.source].empty_table().select(names), 0)])
            own = sequences.rows_of(
                self.schema, sequence, kind, table, np.array(days, np.int64), days[0] if days else 0
            )
            self._changes[sequence.name, kind, day] = RowsByKey(own, "u")
        return self._changes[sequence.name, kind, day]

    def _sequence(self, name: str) -> EventSequence:
        return next(sequence for sequence in self.schema.sequences if sequence.name == name)

    def _normalizer(self, day: int) -> OnlineNormalizer:
        if day not in self._normalizers:
            days = frozenset(range(day - _NEAR, day + _NEAR))
            of_sources = {source.name: days for source in self.schema.sources}
            self._normalizers[day] = OnlineNormalizer(self.schema, 1, of_sources, held=self.snapshots)
        return self._normalizers[day]


def _moments(log: EventLog, exposures: pa.Table) -> Int:
    """[n] epoch ms of exposures.

    Raises:
        UserError: one has no time.
    """
    if log.time not in exposures.column_names:
        raise UserError(f"a request's exposures have no column {log.time}, their time")
    ms = times_of(log, exposures.column(log.time)).values
    if ms.null_count:
        raise UserError(f"a request's exposure has no time in column {log.time}")
    found: Int = ms.to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _among(values: Int, ascending: Int) -> Bool:
    at = np.searchsorted(ascending, values)
    found: Bool = at < len(ascending)
    found[found] = ascending[at[found]] == values[found]
    return found


def _with_day(rows: pa.Table, day: int) -> pa.Table:
    return rows.append_column("_day", pa.array(np.full(rows.num_rows, day, np.int32)))


def _one_list(field: pa.Field, leaves: Mapping[str, pa.Array]) -> pa.StructArray:
    """A struct of one list a leaf."""
    children = []
    for child in field.type:
        values = single_array(leaves[child.name], child.type.value_type)
        ends = pa.array([0, len(values)], pa.int32())
        children.append(pa.ListArray.from_arrays(ends, values, type=child.type))
    return pa.StructArray.from_arrays(children, fields=list(field.type))

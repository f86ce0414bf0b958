"""Features of candidates as of now, from the partials that a build wrote and the events that came since."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrank.pipelines.arrays import int64s, single_array, taken
from genrank.pipelines.column_roles import Column
from genrank.pipelines.columns import feature_column, needed
from genrank.pipelines.days import day_number
from genrank.pipelines.merge_scan import Bool, Int, mix
from genrank.pipelines.online.crossed import FeaturePlan, stored
from genrank.pipelines.online.exposures import ExposureReader, Shown
from genrank.pipelines.online.profiles import UserProfiles
from genrank.pipelines.online.rows import OnlineNormalizer
from genrank.pipelines.online.shown import Exposures, day_of, exposures_of, moments
from genrank.pipelines.online.snapshots import SnapshotDays, SnapshotRows
from genrank.pipelines.online.state import State, StateBuilder
from genrank.pipelines.partials import PartialStore, layout_of, load, partial_schema
from genrank.schemas import EventLog, Schema, Snapshot, UserError
from genrank.schemas.derive.sample_schema import arrow_schema
from genrank.schemas.manifest import SampleManifest
from genrank.schemas.schema import CANDIDATES, USER

_NEAR = 400
"""Days around the one being served of which events are taken."""


class OnlineFeatures:
    """Makes requests (`schemas.derive.sample_schema`, without labels and mask) of exposures as they are about to happen.

    In memory lie the partials that the last build read, once for each set of keys that cross features have and once for each sequence, with
    what finds a key's and a user's rows. Any number of threads may make requests while others add events: a request sees all events of an
    `add` or none.

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
        partials = {s.name: partial_schema(schema, s, columns[s.name]) for s in schema.sources}
        self.snapshots: dict[str, SnapshotDays] = {}
        for source in schema.sources:
            if isinstance(source, Snapshot):
                days = {day: SnapshotRows(table) for day, table in snapshots.get(source.name, {}).items()}
                self.snapshots[source.name] = SnapshotDays(source, partials[source.name].empty_table(), days)
        self._partials = partials
        self._reader = ExposureReader(schema, columns[schema.exposures.name], self.snapshots)
        self._profiles = UserProfiles(schema, self.snapshots)
        self._target = pa.schema([f for f in arrow_schema(schema) if f.name not in ("labels", "mask")])
        self._fields = {f.name: list(f.type) for f in self._target if pa.types.is_struct(f.type)}
        self._candidate_columns = {
            feature.name: column.name for feature in schema.candidates.features if (column := feature_column(feature))
        }
        self._normalizers: dict[int, OnlineNormalizer] = {}
        self._known = {name: np.sort(int64s(table, "id")) for name, table in rows.items()}
        """Log -> hashes of its loaded rows, by which one that is read again is known."""
        self._same = {name: np.zeros(0, np.int64) for name in rows}
        """Log -> hashes of the events that were added, ascending."""
        self._adding = threading.Lock()
        self._builder = StateBuilder(schema, partials, self.snapshots, rows)
        self._state = self._builder.state()

    @classmethod
    def load(cls, schema: Schema, out: Path | str, built: str, *, live_from: str | None = None) -> Self:
        """What the build of a day read.

        Args:
            schema: what `out` was built with.
            out: the --out folder of `genrank build`.
            built: a published day, YYYY-MM-DD: the last one before the day being served.
            live_from: a day from which on events come by `add`; default: the one after `built`.

        Raises:
            UserError: the day isn't published, was built from another schema, or a partial is gone, damaged or of another release.
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
            try:
                if isinstance(source, EventLog):
                    layout = layout_of(schema, source, columns[source.name])
                    rows[source.name] = layout.columns(load(refs, None, layout.stored, types), layout.names)
                else:
                    snapshots[source.name] = {
                        ref.day: load([ref], None, types.names, types).drop_columns(["_day"]) for ref in refs
                    }
            except KeyError as error:
                raise UserError(
                    f"partials of {source.name!r} that {built} was built from are of another release ({error.args[0]});"
                    f" build {built} again with --force"
                ) from error
        return cls(schema, rows, snapshots)

    @property
    def nbytes(self) -> int:
        """What it holds in memory: indexed events, those added, and snapshots."""
        held = sum(int(rows.rows.nbytes) for days in self.snapshots.values() for rows in days.days.values())
        hashes = sum(array.nbytes for own in (self._known, self._same) for array in own.values())
        return self._state.nbytes + self._builder.added_bytes + held + hashes

    # ------------------------------------------------------------------ events as they happen

    def add(self, source: str, raw: pa.Table, day: str) -> list[str]:
        """Events that can now be read, in the order in which they came: of those that are one event (`dedup`) the first counts.

        Requests made after it returns see those of them that are available before their own moment, as the build would: an event is
        available at max(its time, its arrival) + the log's `delay`.

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
            same, first = np.unique(found.event, return_index=True)
            new = ~_among(same, self._same[source]) & ~_among(int64s(found.rows, "id")[first], self._known[source])
            if new.any():
                added = taken(found.rows, np.sort(first[new])).select(self._partials[source].names)
                self._builder.add(source, added)
                self._same[source] = np.sort(np.concatenate([self._same[source], same[new]]), kind="stable")
                self._state = self._builder.state()
        return reasons

    # ------------------------------------------------------------------ requests

    def request(self, exposures: Exposures, sample_id: str = "") -> pa.RecordBatch:
        """The request of candidates that one user is about to see.

        Args:
            exposures: a row a candidate, in the order in which scores shall come: the declared columns of the exposures' log that are
                known by then. A mapping may give one value for all candidates: `{"user_id": 17, "ts": now, "item_id": [12, 31]}`. Their
                times lie in one day.
            sample_id: the request's name.

        Returns:
            One row, as the build would store it of these exposures, and of the realtime events before the last of them.

        Raises:
            UserError: several users or days, no exposure, or one that the build would quarantine.
        """
        return self._requests([exposures_of(self.schema.exposures, exposures)], [sample_id])

    def requests(self, exposures: Sequence[Exposures], sample_ids: Sequence[str] | None = None) -> pa.RecordBatch:
        """Several requests at once, which costs less than each by itself.

        Args:
            exposures: of each request, as in `request`.
            sample_ids: the requests' names; default: their positions.

        Returns:
            A row a request, in their order, each as `request` gives it.

        Raises:
            UserError: no request, names that are not as many, or one of them is wrong: its position leads the message.
        """
        names = [str(at) for at in range(len(exposures))] if sample_ids is None else list(sample_ids)
        if len(names) != len(exposures) or not names:
            raise UserError(
                f"{len(exposures)} requests with {len(names)} sample_ids; give at least one, and each its name"
            )
        try:
            tables = [exposures_of(self.schema.exposures, own) for own in exposures]
            return self._requests(tables, names)
        except UserError:
            for at, own in enumerate(exposures):
                try:
                    self.request(own)
                except UserError as error:
                    raise UserError(f"requests[{at}]: {error}") from error
            raise

    def _requests(self, tables: Sequence[pa.Table], sample_ids: Sequence[str]) -> pa.RecordBatch:
        times = [moments(self.schema, table) for table in tables]
        days = [day_of(self.schema, own) for own in times]
        if len(set(days)) == 1:
            return self._of_day(days[0], tables, times, sample_ids)
        of_day = {day: [at for at, own in enumerate(days) if own == day] for day in sorted(set(days))}
        batches = [
            self._of_day(day, [tables[at] for at in own], [times[at] for at in own], [sample_ids[at] for at in own])
            for day, own in of_day.items()
        ]
        order = np.argsort(np.concatenate(list(of_day.values())), kind="stable")
        return pa.Table.from_batches(batches).take(pa.array(order)).combine_chunks().to_batches()[0]

    def _of_day(
        self, day: int, tables: Sequence[pa.Table], times: Sequence[Int], sample_ids: Sequence[str]
    ) -> pa.RecordBatch:
        state = self._state
        sizes = np.array([table.num_rows for table in tables], np.int64)
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        shown = self._shown(tables, times, day)
        first = bounds[:-1]
        user = shown.u[first]
        if (shown.u != np.repeat(user, sizes)).any():
            raise UserError("a request's exposures are of several users or days; make a request of each")
        start, end = self.schema.local_days.starts(np.array([day, day + 1])).tolist()
        starts = np.full(len(sizes), start)
        last = np.maximum.reduceat(shown.ts, first)
        at_users = pa.array(first)
        columns: dict[str, pa.Array] = {
            "sample_id": pa.array(sample_ids, pa.string()),
            "user_id": shown.user.take(at_users),
            "window_start": pa.array(starts),
            "window_end": pa.array(np.full(len(sizes), end)),
        }
        if USER in self._fields:
            values = self._profiles.of(user, day)
            columns[USER] = pa.StructArray.from_arrays(
                [values[child.name] for child in self._fields[USER]], fields=self._fields[USER]
            )
        for name, cuts in self._builder.cuts.items():
            own, leaves = cuts.cut(state.timelines[name], user, starts, last)
            columns[name] = self._lists(name, own, leaves)
        columns[CANDIDATES] = self._lists(CANDIDATES, bounds, self._candidates(shown, state, start))
        return pa.RecordBatch.from_arrays([columns[name] for name in self._target.names], schema=self._target)

    def _shown(self, tables: Sequence[pa.Table], times: Sequence[Int], day: int) -> Shown:
        """Exposures of one day, normalized.

        Raises:
            UserError: the build would quarantine one.
        """
        log = self.schema.exposures
        try:
            raw = tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="default")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise UserError(f"requests' columns are of different types: {error}; give all of them the same") from error
        shown = self._reader.read(raw, times[0] if len(times) == 1 else np.concatenate(times), day)
        if shown is None:
            _, reasons = self._normalizer(day).rows(log, raw, day)
            raise UserError(
                f"exposure of {log.name!r}: {reasons[0]}; the build would quarantine it, so it has no features"
            )
        return shown

    def _candidates(self, shown: Shown, state: State, start: int) -> dict[str, pa.Array]:
        """Leaf -> its value of each exposure."""
        candidates, starts = self.schema.candidates, np.full(len(shown.ts), start)
        found: list[tuple[FeaturePlan, NDArray[Any]]] = []
        keys = self._builder.keys.of(shown.columns, len(starts))
        for at, crossed in enumerate(self._builder.crossed):
            blocks = {log: state.blocks[at, log] for log in crossed.logs}
            if crossed.key_set.listed:
                found += crossed.of_lists(blocks, shown.columns, shown.ts, starts)
            else:
                found += crossed.answers(blocks, keys[at], shown.ts, starts)
        leaves = {name: shown.columns[column] for name, column in self._candidate_columns.items()} | stored(found)
        leaves["ts"] = pa.array(shown.ts)
        leaves["item"] = shown.columns[Column("id", candidates.item).name]
        if candidates.request:
            leaves["request"] = shown.columns[Column("id", candidates.request).name]
        else:
            leaves["request"] = pa.array(mix(shown.u, starts))
        return leaves

    def _lists(self, group: str, bounds: Int, leaves: Mapping[str, pa.Array]) -> pa.StructArray:
        """A struct of lists, one a leaf, all cut at the same bounds."""
        ends = pa.array(bounds.astype(np.int32))
        fields = self._fields[group]
        children = [
            pa.ListArray.from_arrays(ends, _typed(leaves[field.name], field.type.value_type), type=field.type)
            for field in fields
        ]
        return pa.StructArray.from_arrays(children, fields=fields)

    def _normalizer(self, day: int) -> OnlineNormalizer:
        if day not in self._normalizers:
            days = frozenset(range(day - _NEAR, day + _NEAR))
            of_sources = {source.name: days for source in self.schema.sources}
            self._normalizers[day] = OnlineNormalizer(self.schema, 1, of_sources, held=self.snapshots)
        return self._normalizers[day]


def _typed(array: pa.Array, type_: pa.DataType) -> pa.Array:
    return array if array.type == type_ else single_array(array, type_)


def _among(values: Int, ascending: Int) -> Bool:
    at = np.searchsorted(ascending, values)
    found: Bool = at < len(ascending)
    found[found] = ascending[at[found]] == values[found]
    return found

"""A bucket of users becomes samples: a row per user and day, by the contract of `schemas.derive.sample_schema`.

What a candidate sees depends only on what was available strictly before it, truncation included: samples are cut from left to
right, each begins with the newest realtime events as of its first candidate, and labels never move a cut.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genrank.pipelines import cross_features, sequences
from genrank.pipelines.blocks import Reader, Reading, Use
from genrank.pipelines.column_roles import Column
from genrank.pipelines.columns import feature_column, on_snapshot, user_sources
from genrank.pipelines.cross_features import KeySet, key_sets, numpy
from genrank.pipelines.days import dt_of, start_of, whole_days
from genrank.pipelines.engine import Piece, scatter
from genrank.pipelines.labels import Labels, label_exposures
from genrank.pipelines.merge_scan import Bool, Int, mix, ranges, slot_of
from genrank.pipelines.partials import PartialRef, load
from genrank.pipelines.quality import violations
from genrank.pipelines.sequences import Timeline
from genrank.pipelines.stats import join_rows, summarise
from genrank.schemas import Schema, files
from genrank.schemas.base import parse_duration
from genrank.schemas.derive.sample_schema import BUILD_KEY, Leaf, arrow_schema, leaves, stored_as
from genrank.schemas.schema import CANDIDATES, USER

WRITTEN = "samples"
COUNTED = "keys"
HOT_ROWS = 1 << 20
"""Exposures of one key that a task should hold at most."""
ROW_GROUP = 4096


class Cuts(NamedTuple):
    """One row per sample: candidates [begin, end) of the day's exposures, realtime [r_begin, r_end) of the timeline."""

    user: Int
    chunk: Int
    begin: Int
    end: Int
    r_begin: Int
    r_end: Int


@dataclass(frozen=True)
class Assembler:
    """Everything a task needs to make samples of some days; travels to tasks by pickle."""

    schema: Schema
    buckets: int
    days: tuple[int, ...]
    reader: Reader
    readings: dict[Use, Reading]
    """What is read of the days that came before."""
    profiles: dict[str, dict[int, PartialRef]]
    """User snapshot -> day built -> its partial."""
    as_of: int
    build_id: str
    staging: str
    hot: dict[str, dict[int, int]]
    """Tag of a key set -> key with more exposures than a task should hold -> slices of time it is cut in."""

    @cached_property
    def key_sets(self) -> list[KeySet]:
        return key_sets(self.schema)

    # ------------------------------------------------------------------ cross features of keys without the user

    def count(self, bucket: int) -> Iterator[Piece]:
        """Map step: how many of a bucket's exposures the most frequent keys have."""
        for key_set, queries in self._queries(bucket):
            # Queries at the day's start lie in no slice.
            if all(feature.as_of == "exposure" for feature in key_set.features):
                found = queries.column("key").combine_chunks().value_counts()
                rows = found.field("counts").to_numpy()
                many = found.filter(pa.array(rows * 8 * self.buckets >= HOT_ROWS))
                tag = pa.array([key_set.tag] * len(many), pa.string())
                yield Piece(
                    0, COUNTED, pa.table({"tag": tag, "key": many.field("values"), "rows": many.field("counts")})
                )

    def route(self, bucket: int) -> Iterator[Piece]:
        """Map step: a bucket's exposures and events, to the slots of their keys."""
        yield Piece(bucket, "bucket", pa.table({"bucket": [bucket]}))
        for key_set, queries in self._queries(bucket):
            keys, ts = numpy(queries, "key").copy(), numpy(queries, "ts")
            for key, bounds in self._slices(key_set):
                at = np.flatnonzero(keys == key)
                keys[at] = mix(keys[at], np.searchsorted(bounds, ts[at], "right") - 1)
            queries = queries.set_column(queries.column_names.index("key"), "key", pa.array(keys))
            yield from self._to_keys(queries, f"?{key_set.tag}")
        for use, events in self.reader.events(self._uses(with_user=False), bucket).items():
            assert use.key_set
            tag = f"{use.source}?{use.key_set.tag}"
            yield from self._to_keys(self._sliced(use, events), tag)

    def _queries(self, bucket: int) -> Iterator[tuple[KeySet, pa.Table]]:
        own = self.schema.candidates.source
        for key_set in self.key_sets:
            if key_set.with_user(self.schema):
                continue
            shown = self.reader.load(own, self.days, bucket, ["ts", *cross_features.key_columns(key_set)])
            if not shown.num_rows:
                continue
            keys, _ = cross_features.hashed_keys(key_set, shown)
            day = shown.column("_day").to_numpy().astype(np.int64)
            queries = {
                "key": pa.array(keys),
                "ts": shown.column("ts"),
                "start": pa.array(self._starts(day)),
                "position": pa.array(np.arange(shown.num_rows, dtype=np.int64)),
                "bucket": pa.array(np.full(shown.num_rows, bucket, np.int32)),
            }
            yield key_set, pa.table(queries)

    def _slices(self, key_set: KeySet) -> Iterator[tuple[int, Int]]:
        """Each hot key and the bounds of its slices: a slice is a key of its own, in a slot of its own."""
        offset = self.schema.offset_ms
        first, last = start_of(self.days[0], offset), start_of(self.days[-1] + 1, offset)
        for key, number in self.hot.get(key_set.tag, {}).items():
            yield key, cross_features.slices(first, last, number)

    def _sliced(self, use: Use, events: pa.Table) -> pa.Table:
        """Events with those of hot keys dealt out to the keys' slices."""
        assert use.key_set
        if use.key_set.tag not in self.hot:
            return events
        log = self.schema.event_log(use.source)
        if "merged" not in events.column_names:
            events = events.append_column("merged", pa.array(np.zeros(events.num_rows, np.int64)))
        keys = numpy(events, "key")
        hot = np.isin(keys, list(self.hot[use.key_set.tag]))
        parts = [events.filter(pa.array(~hot))]
        for key, bounds in self._slices(use.key_set):
            own = events.filter(pa.array(keys == key))
            for number, (begin, end) in enumerate(pairwise(bounds.tolist())):
                part = cross_features.slice_of_events(use.key_set, self.schema, log, own, begin, end)
                name = mix(np.full(part.num_rows, key), np.full(part.num_rows, number))
                parts.append(part.set_column(part.column_names.index("key"), "key", pa.array(name)))
        return pa.concat_tables(parts)

    def _uses(self, with_user: bool) -> dict[Use, Reading]:
        """What is read for key sets with the user among their keys, or for the others."""
        return {
            use: reading
            for use, reading in self.readings.items()
            if use.key_set and use.key_set.with_user(self.schema) == with_user
        }

    def _to_keys(self, rows: pa.Table, tag: str) -> Iterator[Piece]:
        for piece in scatter(rows, slot_of(numpy(rows, "key"), self.buckets), tag):
            yield piece._replace(slot=self.buckets + piece.slot)

    def meet(self, slot: int, tables: dict[str, pa.Table]) -> Iterator[Piece]:
        """Exchange step: answers travel back to the exposures' bucket; a bucket's own piece passes through."""
        if slot < self.buckets:
            yield Piece(slot, "bucket", tables["bucket"])
            return
        for key_set in self.key_sets:
            queries = tables.get(f"?{key_set.tag}")
            if queries is None:
                continue
            events = {}
            for log in key_set.windows(self.schema):
                use = Use(log, key_set=key_set)
                found = tables.get(f"{log}?{key_set.tag}")
                events[log] = found if found is not None else self.reader.events({use: Reading()}, 0)[use]
            answers = dict(
                cross_features.answer(
                    key_set, self.schema, numpy(queries, "key"), numpy(queries, "ts"), numpy(queries, "start"), events
                )
            )
            answered = pa.table({"position": queries.column("position"), **answers})
            yield from scatter(answered, queries.column("bucket").to_numpy(), key_set.tag)

    # ------------------------------------------------------------------ samples of a bucket

    def assemble(self, bucket: int, tables: dict[str, pa.Table]) -> Iterator[Piece]:
        """Exchange step: samples of every day of a bucket, one file a day; answers what was written."""
        own = self.schema.candidates.source
        exposures = self.reader.load(own, self.days, bucket, self.reader.schemas[own].names)
        if not exposures.num_rows:
            return
        users = np.unique(numpy(exposures, "u"))
        crossed = self._crossed(exposures, bucket, tables, users)
        timelines = {s.name: self._timeline(s, users, bucket) for s in self.schema.sequences}
        day = exposures.column("_day").to_numpy()
        for of_day in self.days:
            rows = np.flatnonzero(day == of_day)
            if len(rows):
                index = pa.array(rows)
                of = {name: column.take(index) for name, column in crossed.items()}
                yield from self._day(of_day, bucket, exposures.take(index), of, timelines)

    def _day(
        self,
        day: int,
        bucket: int,
        exposures: pa.Table,
        crossed: Mapping[str, pa.Array],
        timelines: Mapping[str, Timeline],
    ) -> Iterator[Piece]:
        start, end = start_of(day, self.schema.offset_ms), start_of(day + 1, self.schema.offset_ms)
        user = numpy(exposures, "u")
        begins = np.flatnonzero(np.concatenate([[True], user[1:] != user[:-1]]))
        active = pa.array(user[begins])

        def near(source: str, columns: list[str]) -> pa.Table:
            """Rows of a log that a label of this day may concern."""
            reach = max(parse_duration(label.window) for label in self.schema.labels)
            days = range(day, day + whole_days(reach) + 2)
            return self.reader.load(source, days, bucket, [*dict.fromkeys(["u", "ts", "arrived", *columns])], active)

        labels = label_exposures(self.schema, exposures, self.as_of, near)
        cuts = self._cut(user, begins, numpy(exposures, "ts"), start, end, timelines)
        kept, correction = self._kept(exposures, labels)
        table = self._samples(day, start, end, exposures, crossed, timelines, labels, cuts, kept, correction)
        path = Path(self.staging) / f"dt={dt_of(day)}" / f"part-{bucket:05d}-{uuid.uuid4().hex[:8]}.parquet"
        rows = table.num_rows
        if rows:
            write_samples(table, path, self.schema, self.build_id)
        yield Piece(
            0,
            WRITTEN,
            pa.table(
                {
                    "day": [day],
                    "bucket": [bucket],
                    "path": [str(path) if rows else ""],
                    "rows": [rows],
                    "bytes": [path.stat().st_size if rows else 0],
                    "sha256": [file_hash(path) if rows else ""],
                    "candidates": [int(kept.sum())],
                    "down_sampled": [int((~kept).sum())],
                }
            ),
        )
        yield Piece(0, "checks", violations(table, self.schema, day))
        yield Piece(0, "stats", summarise(table, self.schema, day))
        yield Piece(0, "stats", join_rows(day, self._known_users(day, bucket, active)))

    # ------------------------------------------------------------------ parts of a sample

    def _cut(self, user: Int, begins: Int, ts: Int, start: int, end: int, timelines: Mapping[str, Timeline]) -> Cuts:
        """Samples of a day: one per user, or several where candidates or realtime events exceed the schema's limits."""
        stops = np.append(begins[1:], len(user))
        most = self.schema.candidates.max_candidates
        realtime = self.schema.realtime
        users = len(begins)
        if realtime is None:
            r_begin = r_end = np.zeros(users, np.int64)
            seen = np.zeros(len(user), np.int64)
            limit = 1
        else:
            timeline = timelines[realtime.name]
            code = self._codes(timeline, user[begins])
            r_begin, r_end = timeline.before(code, np.full(users, start)), timeline.before(code, np.full(users, end))
            seen = timeline.before(np.repeat(code, stops - begins), ts)
            limit = realtime.max_length
        long = (stops - begins > most) | (seen[stops - 1] - r_begin > limit)
        cuts = [
            (
                np.flatnonzero(~long),
                np.zeros(users - int(long.sum()), np.int64),
                begins[~long],
                stops[~long],
                r_begin[~long],
                np.minimum(r_end[~long], r_begin[~long] + limit),
            )
        ]
        # Few users are cut, and each step of this loop makes a whole sample.
        for at in np.flatnonzero(long):
            pieces = list(_split(int(begins[at]), int(stops[at]), int(r_begin[at]), int(r_end[at]), seen, most, limit))
            chunk = np.arange(len(pieces))
            columns = np.array(pieces, np.int64).T
            cuts.append((np.full(len(pieces), at), chunk, *columns))
        joined = [np.concatenate([cut[i] for cut in cuts]).astype(np.int64) for i in range(6)]
        order = np.argsort(joined[2], kind="stable")
        return Cuts(*(column[order] for column in joined))

    def _kept(self, exposures: pa.Table, labels: Mapping[str, Labels]) -> tuple[Bool, np.ndarray]:
        """(which exposures stay, the weight that corrects for those that don't)."""
        rate = self.schema.candidates.negative_keep_rate
        rows = exposures.num_rows
        correction = np.ones(rows, np.float32)
        if rate == 1.0:
            return np.ones(rows, np.bool_), correction
        positive = np.zeros(rows, np.bool_)
        for label in labels.values():
            positive |= label.value > 0
        item = numpy(exposures, Column("id", self.schema.candidates.item).name)
        draw = mix(numpy(exposures, "u"), numpy(exposures, "ts"), item).view(np.uint64) / np.float64(2**64)
        if self.schema.candidates.keep_correction:
            correction[~positive] = np.float32(1 / rate)
        return positive | (draw < rate), correction

    def _samples(
        self,
        day: int,
        start: int,
        end: int,
        exposures: pa.Table,
        crossed: Mapping[str, pa.Array],
        timelines: Mapping[str, Timeline],
        labels: Mapping[str, Labels],
        cuts: Cuts,
        kept: Bool,
        correction: np.ndarray,
    ) -> pa.Table:
        before = np.concatenate([[0], np.cumsum(kept)])
        counts = before[cuts.end] - before[cuts.begin]
        cuts = Cuts(*(column[counts > 0] for column in cuts))
        counts = counts[counts > 0]
        rows = np.flatnonzero(kept)
        user = numpy(exposures, "u")
        schema = self.schema
        first = cuts.begin
        names = exposures.column("user").take(pa.array(first))
        chunks = pa.array([str(chunk) for chunk in cuts.chunk.tolist()], pa.string())
        sample_id = pc.binary_join_element_wise(pc.cast(names, pa.string()), dt_of(day), chunks, ":")
        window = np.full(len(first), start, np.int64)
        columns: dict[str, pa.Array] = {
            "sample_id": _single(sample_id),
            "user_id": _single(names),
            "window_start": pa.array(window),
            "window_end": pa.array(np.full(len(first), end, np.int64)),
        }
        by_group: dict[str, list[Leaf]] = {}
        for leaf in leaves(schema):
            by_group.setdefault(leaf.group, []).append(leaf)
        if USER in by_group:
            columns[USER] = self._profile(day, user[first])
        lists: dict[str, tuple[Int, dict[str, pa.Array]]] = {}
        for sequence in schema.histories:
            timeline = timelines[sequence.name]
            code = self._codes(timeline, user[first])
            until = timeline.before(code, window)
            oldest = timeline.before(code, window - parse_duration(sequence.lookback))
            since = np.maximum(oldest, until - sequence.max_length)
            lists[sequence.name] = (until - since, timeline.gather(ranges(since, until - since)))
        if schema.realtime:
            timeline = timelines[schema.realtime.name]
            lengths = cuts.r_end - cuts.r_begin
            tokens = ranges(cuts.r_begin, lengths)
            lists[schema.realtime.name] = (
                lengths,
                timeline.gather(tokens) | {"available": pa.array(timeline.available[tokens])},
            )
            columns["mask"] = self._mask(timeline, cuts, counts, rows, tokens, user, numpy(exposures, "ts"))
        index = pa.array(rows)
        own: dict[str, pa.Array] = {}
        for feature in schema.candidates.features:
            if stored_as(feature):
                column = feature_column(feature)
                values = _single(exposures.column(column.name)) if column else crossed[feature.name]
                own[feature.name] = values.take(index)
        own["ts"] = _single(exposures.column("ts")).take(index)
        own["item"] = _single(exposures.column(Column("id", schema.candidates.item).name)).take(index)
        own["request"] = self._requests(exposures, user, start).take(index)
        lists[CANDIDATES] = (counts, own)
        tasks: dict[str, pa.Array] = {}
        for label in schema.labels:
            found = labels[label.name]
            value = found.value.astype(np.int32) if label.kind == "binary" else found.value
            tasks[label.name] = pa.array(value[rows])
            tasks[f"{label.name}_weight"] = pa.array((found.weight * correction)[rows])
            if found.oracle is not None:
                tasks[f"{label.name}_oracle"] = pa.array(found.oracle[rows])
        lists["labels"] = (counts, tasks)
        target = arrow_schema(schema)
        for name, (lengths, fields) in lists.items():
            columns[name] = _struct_of_lists(target.field(name), lengths, fields)
        return pa.Table.from_arrays([columns[name] for name in target.names], schema=target)

    def _mask(
        self, timeline: Timeline, cuts: Cuts, counts: Int, rows: Int, tokens: Int, user: Int, ts: Int
    ) -> pa.Array:
        lengths = cuts.r_end - cuts.r_begin
        sample = np.repeat(np.arange(len(counts)), counts)
        seen = timeline.before(self._codes(timeline, user[rows]), ts[rows])
        candidate_sees = np.clip(seen - cuts.r_begin[sample], 0, lengths[sample])
        tied_from = np.searchsorted(timeline.packed, timeline.packed[tokens], "left")
        realtime_sees = np.maximum(tied_from - np.repeat(cuts.r_begin, lengths), 0)
        field = arrow_schema(self.schema).field("mask")
        children = [
            _list(field.type.field("candidate_sees"), counts, pa.array(candidate_sees.astype(np.int32))),
            _list(field.type.field("realtime_sees"), lengths, pa.array(realtime_sees.astype(np.int32))),
        ]
        return pa.StructArray.from_arrays(children, fields=list(field.type))

    def _profile(self, day: int, users: Int) -> pa.Array:
        """The user group: snapshots of the user as of the window's start."""
        field = arrow_schema(self.schema).field(USER)
        values: dict[str, pa.Array] = {}
        for feature in self.schema.user.features:
            stored = stored_as(feature)
            if stored is None:
                continue
            column = feature_column(feature)
            assert column is not None
            if column.expression == self.schema.exposures.user:
                values[feature.name] = pa.array(users)
                continue
            snapshots = user_sources(self.schema, column)
            ref = self.profiles.get(snapshots[0].name, {}).get(day) if snapshots else None
            bucket = int(slot_of(mix(users[:1]), self.buckets)[0])
            if ref is None or bucket not in ref.files:
                values[feature.name] = sequences.missing(stored, len(users))
                continue
            name = on_snapshot(snapshots[0], column).name
            table = load([ref], bucket, ["u", name], self.reader.schemas[snapshots[0].name])
            at = pc.index_in(pa.array(users), value_set=_single(table.column("u"))).to_numpy(zero_copy_only=False)
            at = np.where(np.isnan(at), table.num_rows, at).astype(np.int64)
            padded = pa.concat_arrays([_single(table.column(name)), sequences.missing(stored, 1)])
            values[feature.name] = padded.take(pa.array(at))
        return pa.StructArray.from_arrays([values[child.name] for child in field.type], fields=list(field.type))

    def _known_users(self, day: int, bucket: int, users: pa.Array) -> dict[str, tuple[int, int]]:
        """(how many of the day's users each user snapshot of the user group knows, how many users there are)."""
        columns = [column for feature in self.schema.user.features if (column := feature_column(feature))]
        known = {}
        for name in sorted({snapshot.name for column in columns for snapshot in user_sources(self.schema, column)}):
            ref = self.profiles.get(name, {}).get(day)
            have = load([ref] if ref else [], bucket, ["u"], self.reader.schemas[name], users)
            known[f"user → {name}"] = (have.num_rows, len(users))
        return known

    def _requests(self, exposures: pa.Table, user: Int, start: int) -> pa.Array:
        if self.schema.candidates.request:
            return _single(exposures.column(Column("id", self.schema.candidates.request).name))
        return pa.array(mix(user, np.full(len(user), start, np.int64)))

    def _crossed(
        self, exposures: pa.Table, bucket: int, tables: Mapping[str, pa.Table], users: Int
    ) -> dict[str, pa.Array]:
        """Cross feature -> its value per exposure."""
        out: dict[str, pa.Array] = {}
        day = exposures.column("_day").to_numpy().astype(np.int64)
        of_users = [key_set for key_set in self.key_sets if key_set.with_user(self.schema)]
        asked = {key_set: cross_features.hashed_keys(key_set, exposures)[0] for key_set in of_users}
        unique = {key_set: pa.array(keys).unique() for key_set, keys in asked.items()}
        events = self.reader.events(self._uses(with_user=True), bucket, pa.array(users), unique)
        for key_set in self.key_sets:
            if key_set.with_user(self.schema):
                keys = asked[key_set]
                own = {use.source: rows for use, rows in events.items() if use.key_set == key_set}
                out |= dict(
                    cross_features.answer(key_set, self.schema, keys, numpy(exposures, "ts"), self._starts(day), own)
                )
            else:
                answers = tables[key_set.tag].combine_chunks()
                at = np.argsort(numpy(answers, "position"), kind="stable")
                out |= {
                    name: _single(answers.column(name).take(pa.array(at)))
                    for name in answers.column_names
                    if name != "position"
                }
        return out

    def _timeline(self, sequence: sequences.Sequence, users: Int, bucket: int) -> Timeline:
        of = [Use(entry.source, sequence=sequence, kind=kind) for kind, entry in enumerate(sequence.events)]
        parts = [self.reader.rows(use, self.readings[use], bucket, pa.array(users)) for use in of]
        return sequences.merge(self.schema, sequence, users, parts)

    def _codes(self, timeline: Timeline, users: Int) -> Int:
        return np.searchsorted(timeline.users, users)

    def _starts(self, days: Int) -> Int:
        starts: Int = days * 86_400_000 - self.schema.offset_ms
        return starts


def hot_keys(counted: pa.Table, slots: int) -> dict[str, dict[int, int]]:
    """What `Assembler.hot` says, from the pieces of `Assembler.count`."""
    found: dict[str, dict[int, int]] = {}
    for row in counted.group_by(["tag", "key"]).aggregate([("rows", "sum")]).to_pylist():
        if row["rows_sum"] > HOT_ROWS:
            found.setdefault(row["tag"], {})[row["key"]] = min(slots, -(-row["rows_sum"] // HOT_ROWS))
    return found


def _split(
    begin: int, stop: int, r_begin: int, r_end: int, seen: Int, most: int, limit: int
) -> Iterator[tuple[int, int, int, int]]:
    """Samples of one user's day, left to right: at most `most` candidates and `limit` realtime events each."""
    while begin < stop:
        if seen[begin] - r_begin > limit:
            r_begin = int(seen[begin]) - (limit + 1) // 2
        end = min(begin + most, begin + int(np.searchsorted(seen[begin:stop], r_begin + limit, "right")))
        last = end == stop
        yield begin, end, r_begin, min(r_end, r_begin + limit) if last else int(seen[end - 1])
        begin = end


def _single(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        combined = column.combine_chunks()
        return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined
    return column


def _list(field: pa.Field, lengths: Int, values: pa.Array) -> pa.Array:
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, values.cast(field.type.value_type), type=field.type)


def _struct_of_lists(field: pa.Field, lengths: Int, values: Mapping[str, pa.Array]) -> pa.Array:
    children = [_list(child, lengths, values[child.name]) for child in field.type]
    return pa.StructArray.from_arrays(children, fields=list(field.type))


def write_samples(table: pa.Table, path: Path, schema: Schema, build_id: str) -> None:
    """One Parquet file of samples: times as deltas, numbers as split bytes, ids as dictionaries, zstd."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encodings, dictionaries = _encodings(table.schema)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), BUILD_KEY: build_id.encode()})
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=1,
        row_group_size=ROW_GROUP,
        use_dictionary=dictionaries,
        column_encoding=encodings,
        write_statistics=True,
    )
    files.sync(path)


def _encodings(schema: pa.Schema) -> tuple[dict[str, str], list[str]]:
    encodings: dict[str, str] = {}
    dictionaries: list[str] = []

    def visit(path: str, type_: pa.DataType, name: str) -> None:
        if pa.types.is_struct(type_):
            for child in type_:
                visit(f"{path}.{child.name}", child.type, child.name)
        elif pa.types.is_list(type_):
            visit(f"{path}.list.element", type_.value_type, name)
        elif pa.types.is_float32(type_):
            encodings[path] = "BYTE_STREAM_SPLIT"
        elif name in ("ts", "available", "window_start", "window_end"):
            encodings[path] = "DELTA_BINARY_PACKED"
        else:
            dictionaries.append(path)

    for field in schema:
        visit(field.name, field.type, field.name)
    return encodings, dictionaries


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""A day of a source becomes a partial: read, normalise, quarantine, join snapshots, deduplicate, sort, write.

Every row read is accounted for: in = out + duplicates + quarantined by reason.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genrank.pipelines.column_roles import ROLE_TYPES, Column
from genrank.pipelines.columns import compute, declared_schema, joined_columns, needed, store
from genrank.pipelines.engine import Piece, scatter
from genrank.pipelines.merge_scan import Axis, Bool, Int, mix, order_by, slot_of
from genrank.pipelines.partials import PartialRef, load
from genrank.pipelines.sources import home_days, read_rows, to_ms
from genrank.schemas import EventLog, Schema, Snapshot, files
from genrank.schemas.base import ARROW_TYPES, DAY_MS, parse_duration

QUARANTINE = "quarantine:"
WRITTEN = "written"
FOUND = "_found:"
"""Marks, of each row, whether a snapshot knows it; counted, not kept."""


@dataclass(frozen=True)
class ReadUnit:
    """One task's share of a partition."""

    source: str
    partition: int
    path: str
    row_groups: tuple[int, ...]


@dataclass(frozen=True)
class Normaliser:
    """Everything a task needs to turn raw rows into rows of partials; travels to tasks by pickle."""

    schema: Schema
    buckets: int
    days: dict[str, frozenset[int]]
    """Source -> the days wanted; rows of other days are left for theirs."""
    snapshots: dict[str, dict[int, PartialRef]] = field(default_factory=dict)
    """Snapshot -> row's day -> the partial joined to it."""
    staging: str = ""

    @cached_property
    def columns(self) -> dict[str, tuple[Column, ...]]:
        return needed(self.schema)

    def read(self, unit: ReadUnit) -> Iterator[Piece]:
        """Map step: raw rows of a unit, normalised, to their buckets."""
        yield from self.normalise(
            self.schema.source(unit.source),
            unit.partition,
            read_rows(self.schema.source(unit.source), unit.path, unit.row_groups),
        )

    def normalise(self, source: EventLog | Snapshot, partition: int, raw: pa.Table) -> Iterator[Piece]:
        """Rows of one partition to their buckets: good ones tagged by source, others with the reason."""
        if isinstance(source, EventLog):
            yield from self._events(source, partition, raw)
        else:
            yield from self._snapshot(source, partition, raw)

    # ------------------------------------------------------------------ events

    def _events(self, source: EventLog, partition: int, raw: pa.Table) -> Iterator[Piece]:
        ms = to_ms(raw.column(source.time).combine_chunks(), source.time_unit)
        lateness = parse_duration(source.lateness)
        home, day = home_days(ms, partition, self.schema.offset_ms, lateness)
        wanted = np.isin(home, np.fromiter(self.days[source.name], np.int64))
        if not wanted.all():
            raw, ms, home, day = raw.filter(pa.array(wanted)), ms.filter(pa.array(wanted)), home[wanted], day[wanted]
        rows = declared(source, raw)
        reasons = Reasons.first(
            raw.num_rows,
            [
                (f"{source.user} is null", _null(rows, source.user)),
                (f"{source.time} is null", ms.is_null().to_numpy(zero_copy_only=False)),
                (f"{source.time} is after its partition's day", day > partition),
                (f"later than {source.lateness}", home != day),
                (
                    f"arrives later than {source.lateness}",
                    self._arrived(source, rows, ms) - _zero(ms) > lateness + DAY_MS,
                ),
                *self._must_have(source, rows),
                *_conditions(source, rows),
            ],
        )
        frame = pl.from_arrow(rows)
        assert isinstance(frame, pl.DataFrame)
        user = store(rows.column(source.user), Column("id", source.user)).to_numpy()
        yield from _quarantine(source, rows, reasons, home, slot_of(mix(user), self.buckets))
        good = reasons.good
        if not good.any():
            return
        if not good.all():
            keep = pa.array(good)
            rows, ms, home, user = rows.filter(keep), ms.filter(keep), home[good], user[good]
            frame = frame.filter(pl.Series(good))
        ts, arrived = _zero(ms), self._arrived(source, rows, ms)
        columns = {
            "_day": pa.array(home.astype(np.int32)),
            "_same": pa.array(mix(user, home, content_hash(rows, source.dedup or tuple(source.columns)))),
            "u": pa.array(user),
            "ts": pa.array(ts),
            "arrived": pa.array(arrived),
            "id": pa.array(content_hash(rows, tuple(source.columns))),
        }
        if source.name == self.schema.candidates.source:
            columns["user"] = rows.column(source.user)
        frame, found = self._joined(source, frame, home)
        columns |= {f"{FOUND}{name}": pa.array(mask) for name, mask in found.items()}
        columns |= compute(frame, source, self.columns[source.name])
        yield from scatter(pa.table(columns), slot_of(mix(user), self.buckets), source.name)

    def _arrived(self, source: EventLog, rows: pa.RecordBatch, ms: pa.Array) -> Int:
        ts = _zero(ms)
        if source.arrival is None:
            return ts
        arrival = to_ms(rows.column(source.arrival), source.time_unit)
        return np.maximum(ts, pc.fill_null(arrival, np.iinfo(np.int64).min).to_numpy(zero_copy_only=False))

    def _must_have(self, source: EventLog, rows: pa.RecordBatch) -> Iterator[tuple[str, Bool]]:
        if source.name == self.schema.candidates.source:
            item = self.schema.candidates.item
            yield f"{item} is null", _null(rows, item)

    def _joined(self, source: EventLog, frame: pl.DataFrame, home: Int) -> tuple[pl.DataFrame, dict[str, Bool]]:
        """The frame with the snapshots' columns it reads, each row as of its own day; and which rows each snapshot knows."""
        found: dict[str, Bool] = {}
        for name, columns in joined_columns(self.schema, source, self.columns[source.name]).items():
            snapshot = self.schema.source(name)
            assert isinstance(snapshot, Snapshot)
            keys = store(_arrow(frame[snapshot.key]), Column("id", snapshot.key)).to_numpy()
            parts = []
            for day in np.unique(home):
                rows = np.flatnonzero(home == day)
                ref = self.snapshots.get(name, {}).get(int(day))
                joined, known = _lookup(ref, tuple(columns), self._snapshot_schema(snapshot), keys[rows])
                parts.append((rows, joined))
                found.setdefault(name, np.zeros(len(keys), np.bool_))[rows] = known
            at = np.argsort(np.concatenate([rows for rows, _ in parts]), kind="stable")
            joined = pa.concat_tables([table for _, table in parts]).take(pa.array(at))
            frame = frame.hstack([_series(columns[column], joined.column(column)) for column in columns])
        return frame, found

    # ------------------------------------------------------------------ snapshots

    def _snapshot(self, source: Snapshot, partition: int, raw: pa.Table) -> Iterator[Piece]:
        rows = declared(source, raw)
        reasons = Reasons.first(
            raw.num_rows, [(f"{source.key} is null", _null(rows, source.key)), *_conditions(source, rows)]
        )
        home = np.full(raw.num_rows, partition, np.int64)
        key = store(rows.column(source.key), Column("id", source.key)).to_numpy()
        slots = slot_of(mix(key), self.buckets)
        yield from _quarantine(source, rows, reasons, home, slots)
        good = reasons.good
        if not good.all():
            rows, key, slots, home = rows.filter(pa.array(good)), key[good], slots[good], home[good]
        frame = pl.from_arrow(rows)
        assert isinstance(frame, pl.DataFrame)
        columns = {
            "_day": pa.array(home.astype(np.int32)),
            "_same": pa.array(mix(key, home)),
            "u": pa.array(key),
            "ts": pa.array(home),
            "arrived": pa.array(home),
            "id": pa.array(content_hash(rows, tuple(source.columns))),
        }
        columns |= compute(frame, source, self.columns[source.name])
        yield from scatter(pa.table(columns), slots, source.name)

    def _snapshot_schema(self, snapshot: Snapshot) -> pa.Schema:
        return partial_schema(self.schema, snapshot, self.columns[snapshot.name])

    # ------------------------------------------------------------------ writing

    def write(self, slot: int, tables: dict[str, pa.Table]) -> Iterator[Piece]:
        """Exchange step: all rows of a bucket, a file per source and day; answers what was written."""
        for tag, table in sorted(tables.items()):
            if tag.startswith(QUARANTINE):
                yield from self._write_quarantine(slot, tag.removeprefix(QUARANTINE), table)
            else:
                yield from self._write_partial(slot, tag, table)

    def _write_partial(self, slot: int, source: str, table: pa.Table) -> Iterator[Piece]:
        table = table.combine_chunks()
        kept = first_of_each(*(_numpy(table, name) for name in ("_same", "arrived", "id")))
        day, user, ts, id_ = (_numpy(table, name) for name in ("_day", "u", "ts", "id"))
        partial = table.select([name for name in table.column_names if not name.startswith("_")])
        found = {
            name.removeprefix(FOUND): table.column(name).to_numpy()
            for name in table.column_names
            if name.startswith(FOUND)
        }
        for of_day in np.unique(day):
            rows = np.flatnonzero(kept & (day == of_day))
            rows = rows[by_user_and_time(user[rows], ts[rows], id_[rows])]
            path = _stage(self.staging, f"{source}-{of_day}-{slot:05d}")
            if len(rows):
                write_partial(partial.take(pa.array(rows)), path)
            duplicates = int(((day == of_day) & ~kept).sum())
            joins = {name: int(known[rows].sum()) for name, known in found.items()}
            yield _written(slot, source, int(of_day), str(path) if len(rows) else "", len(rows), duplicates, "", joins)

    def _write_quarantine(self, slot: int, source: str, table: pa.Table) -> Iterator[Piece]:
        day = _numpy(table, "_day")
        for of_day in np.unique(day):
            rows = table.filter(pa.array(day == of_day)).drop_columns(["_day"])
            path = _stage(self.staging, f"quarantine-{source}-{of_day}-{slot:05d}")
            pq.write_table(rows, path, compression="zstd")
            files.sync(path)
            for count in rows.column("reason").value_counts().to_pylist():
                yield _written(slot, source, int(of_day), str(path), count["counts"], 0, count["values"])


WRITTEN_SCHEMA = pa.schema(
    {
        "source": pa.string(),
        "day": pa.int64(),
        "bucket": pa.int64(),
        "path": pa.string(),
        "rows": pa.int64(),
        "duplicates": pa.int64(),
        "reason": pa.string(),
        "joins": pa.map_(pa.string(), pa.int64()),
    }
)
"""`joins`: snapshot -> rows that it knows."""


def _written(
    slot: int,
    source: str,
    day: int,
    path: str,
    rows: int,
    duplicates: int,
    reason: str,
    joins: Mapping[str, int] = MappingProxyType({}),
) -> Piece:
    values = [[source], [day], [slot], [path], [rows], [duplicates], [reason], [list(joins.items())]]
    return Piece(0, WRITTEN, pa.table(dict(zip(WRITTEN_SCHEMA.names, values, strict=True)), schema=WRITTEN_SCHEMA))


def joins_of(written: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Snapshot -> rows it knows, over what several tasks wrote."""
    total: dict[str, int] = {}
    for row in written:
        for name, found in row["joins"]:
            total[name] = total.get(name, 0) + found
    return dict(sorted(total.items()))


def _stage(staging: str, name: str) -> Path:
    """A name of this attempt's own: a retried or speculative task never writes another's file."""
    folder = Path(staging)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}-{uuid.uuid4().hex[:12]}.parquet"


def partial_schema(schema: Schema, source: EventLog | Snapshot, columns: tuple[Column, ...]) -> pa.Schema:
    """Arrow schema of a partial's files."""
    fields = {"u": pa.int64(), "ts": pa.int64(), "arrived": pa.int64(), "id": pa.int64()}
    if isinstance(source, EventLog) and source.name == schema.candidates.source:
        fields["user"] = ARROW_TYPES[source.columns[source.user]]
    for column in columns:
        fields[column.name] = (
            ARROW_TYPES[source.columns[column.expression]] if column.role == "raw" else ROLE_TYPES[column.role]
        )
    return pa.schema(fields)


def write_partial(table: pa.Table, path: Path) -> None:
    """One file of a partial. Times and hashes hardly repeat: trying a dictionary on them first would take as long as writing them."""
    unlike = ("ts", "arrived", "id")
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=1,
        use_dictionary=[name for name in table.column_names if name not in unlike],
        column_encoding=dict.fromkeys(("ts", "arrived"), "DELTA_BINARY_PACKED"),
    )
    files.sync(path)


def by_user_and_time(user: Int, ts: Int, id: Int) -> Int:
    """Order of rows by (user, ts, id)."""
    users = pa.array(user).dictionary_encode()
    ascending = np.argsort(users.dictionary.to_numpy())
    rank = np.empty(len(ascending), np.int64)
    rank[ascending] = np.arange(len(ascending))
    return order_by(Axis.over(len(rank), ts).pack(rank[users.indices.to_numpy()], ts), id)


def first_of_each(same: Int, arrived: Int, id: Int) -> Bool:
    """Marks one row of each set with equal `same`: the first by (arrived, id)."""
    kept = np.ones(len(same), np.bool_)
    repeated = np.flatnonzero(pl.Series(same).is_duplicated().to_numpy())
    if len(repeated):
        order = repeated[np.lexsort((id[repeated], arrived[repeated], same[repeated]))]
        kept[order[1:][same[order[1:]] == same[order[:-1]]]] = False
    return kept


def declared(source: EventLog | Snapshot, raw: pa.Table) -> pa.RecordBatch:
    """The rows as one batch of the declared types."""
    schema = declared_schema(source)
    columns = []
    for name, type_ in zip(schema.names, schema.types, strict=True):
        column = raw.column(name)
        array = column.combine_chunks()
        array = array.chunk(0) if isinstance(array, pa.ChunkedArray) and array.num_chunks else array
        if isinstance(array, pa.ChunkedArray):
            array = pa.array([], raw.schema.field(name).type)
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if array.type != type_:
            if pa.types.is_timestamp(type_) and pa.types.is_timestamp(array.type) and array.type.tz is None:
                array = array.cast(pa.timestamp("ms"), safe=False)
            array = array.cast(type_, safe=False)
        columns.append(array)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def content_hash(rows: pa.RecordBatch, columns: Iterable[str]) -> Int:
    """64-bit hash of each row over `columns`."""
    parts: list[Int] = []
    for name in columns:
        array = rows.column(name)
        if pa.types.is_list(array.type):
            lengths = pc.fill_null(pc.list_value_length(array), -1).to_numpy(zero_copy_only=False).astype(np.int64)
            sizes = np.maximum(lengths, 0)
            row = np.repeat(np.arange(len(sizes)), sizes)
            position = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            total = np.zeros(len(sizes), np.int64)
            np.add.at(total, row, mix(_bits(array.flatten()), position))
            parts += [lengths, total]
        else:
            parts.append(_bits(array))
    return mix(*parts)


def _bits(array: pa.Array) -> Int:
    if pa.types.is_floating(array.type):
        value = pc.fill_null(array.cast(pa.float64()), np.nan).to_numpy(zero_copy_only=False)
        bits: Int = np.where(np.isnan(value), np.nan, value + 0.0).view(np.int64)
        return bits
    return store(array, Column("id", "")).to_numpy()


def _zero(ms: pa.Array) -> Int:
    """Nulls as 0."""
    return pc.fill_null(ms, 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _null(rows: pa.RecordBatch, column: str) -> Bool:
    return rows.column(column).is_null().to_numpy(zero_copy_only=False)


def _conditions(source: EventLog | Snapshot, rows: pa.RecordBatch) -> Iterator[tuple[str, Bool]]:
    if source.valid:
        frame = pl.from_arrow(rows)
        assert isinstance(frame, pl.DataFrame)
        checks = tuple(Column("flag", condition, sql=True) for condition in source.valid)
        for check, met in compute(frame, source, checks).items():
            yield f"not valid: {check[5:-1]}", ~met.to_numpy(zero_copy_only=False)


@dataclass(frozen=True)
class Reasons:
    """Why each row can't be used: the first check that it fails."""

    names: list[str]
    which: np.ndarray[tuple[int], np.dtype[np.int16]]
    """Position among `names`; -1 for a good row."""

    @classmethod
    def first(cls, rows: int, checks: Iterable[tuple[str, Bool]]) -> Reasons:
        names: list[str] = []
        which = np.full(rows, -1, np.int16)
        for name, failed in checks:
            if failed.any():
                which[failed & (which < 0)] = len(names)
            names.append(name)
        return cls(names, which)

    @property
    def good(self) -> Bool:
        found: Bool = self.which < 0
        return found


def _quarantine(
    source: EventLog | Snapshot, rows: pa.RecordBatch, reasons: Reasons, home: Int, slots: np.ndarray
) -> Iterator[Piece]:
    bad = np.flatnonzero(~reasons.good)
    if len(bad):
        table = pa.Table.from_batches([rows]).take(pa.array(bad))
        reason = pa.array([reasons.names[i] for i in reasons.which[bad].tolist()], pa.string())
        table = table.append_column("reason", reason)
        table = table.append_column("_day", pa.array(home[bad].astype(np.int32)))
        yield from scatter(table, slots[bad], f"{QUARANTINE}{source.name}")


@lru_cache(maxsize=32)
def _snapshot_table(folder: str, files: tuple[tuple[int, str], ...], columns: tuple[str, ...]) -> pa.Table:
    return load([PartialRef(0, folder, dict(files))], None, ("u", *columns), pa.schema([]))


def _lookup(ref: PartialRef | None, columns: tuple[str, ...], schema: pa.Schema, keys: Int) -> tuple[pa.Table, Bool]:
    """The snapshot's columns at `keys`, null where it has no such key; and where it has."""
    if ref is None or not ref.files:
        empty = pa.schema([schema.field(name) for name in columns]).empty_table()
        return empty.take(pa.nulls(len(keys), pa.int64())), np.zeros(len(keys), np.bool_)
    table = _snapshot_table(ref.folder, tuple(sorted(ref.files.items())), columns)
    at = pc.index_in(pa.array(keys), value_set=table.column("u").combine_chunks())
    return table.select(list(columns)).take(at), at.is_valid().to_numpy(zero_copy_only=False)


def _arrow(series: pl.Series) -> pa.Array:
    return series.to_arrow(compat_level=pl.CompatLevel.oldest())


def _series(name: str, column: pa.ChunkedArray) -> pl.Series:
    series = pl.from_arrow(column)
    assert isinstance(series, pl.Series)
    return series.alias(name)


def _numpy(table: pa.Table, name: str) -> Int:
    return table.column(name).to_numpy().astype(np.int64, copy=False)

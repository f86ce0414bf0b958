"""Raw rows of the logs as a recount needs them: of some users or keys only, each row judged by the source's own rules.

Reads the same files as the builder, but keeps no state of it: neither partials nor tiles nor snapshots of histories. A row is usable if every
column fits its declared type, it has a user and a time, lies in a partition of its day or at most `lateness` later, and meets the source's
conditions; of rows that are one event, the first to arrive counts. The hash that orders rows of one millisecond is the builder's
(`raw_rows.content_hash`), for it is part of what samples are defined by.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from genrank.pipelines.arrays import frame_of, single_array
from genrank.pipelines.column_roles import NUMBERS
from genrank.pipelines.columns import needed
from genrank.pipelines.engine import Piece
from genrank.pipelines.gate.users import draw
from genrank.pipelines.messages import DRIVER
from genrank.pipelines.raw_rows import content_hash
from genrank.pipelines.sources import Partition, open_rows
from genrank.schemas import EventLog, Schema, Snapshot, exact_arithmetic, expression
from genrank.schemas.absent_columns import with_absent_columns
from genrank.schemas.base import ARROW_TYPES, DAY_MS, parse_duration
from genrank.schemas.conversion import convert, epoch_ms
from genrank.schemas.files import reading
from genrank.schemas.ids import MISSING_ID, hash_string

Bool = NDArray[np.bool_]
HOME, USER, TS, ARRIVED, ID = "_home", "_user", "_ts", "_arrived", "_id"
"""Columns beside the declared ones: the row's day, its user's stored id, its time and arrival in epoch ms, the hash that breaks ties."""
TASK_ROWS = 1_000_000
MOST_ROWS = 3_000_000
"""Rows that are brought together at most."""
TOO_MANY = "too many"
"""Tag of what tells the driver that rows of a source were left out."""


@dataclass(frozen=True)
class RawUnit:
    """Row groups of one file of a partition."""

    source: str
    partition: int
    path: str
    row_groups: tuple[int, ...]
    rows: int


def units_of(partition: Partition) -> Iterator[RawUnit]:
    """Whole row groups of one file, about `TASK_ROWS` rows each."""
    for file in partition.files:
        groups: list[int] = []
        rows = 0
        for group, size in enumerate(file.row_groups):
            if groups and rows + size > TASK_ROWS:
                yield RawUnit(partition.source, partition.day, file.path, tuple(groups), rows)
                groups, rows = [], 0
            groups.append(group)
            rows += size
        if groups:
            yield RawUnit(partition.source, partition.day, file.path, tuple(groups), rows)


@dataclass(frozen=True)
class Lowest:
    """Rows of users that draw less than a number (`users.draw`)."""

    column: str
    day: int
    below: int


@dataclass(frozen=True)
class Among:
    """Rows whose columns all have one of the given values."""

    columns: tuple[tuple[str, tuple[Any, ...]], ...]
    """(column, values); without any, every row. There is always one filter that names a column."""


Filter = Lowest | Among


@dataclass(frozen=True)
class RawReader:
    """Reads the rows wanted of raw files; travels to tasks by pickle."""

    schema: Schema
    days: Mapping[str, frozenset[int]]
    """Source -> the days wanted."""
    wanted: Mapping[str, tuple[Filter, ...]]
    """Source -> filters, of which a row meets one."""
    most: int = MOST_ROWS
    """Rows of a unit at most; where the filters let more through, only the first one counts, and the driver hears of it."""

    def read(self, unit: RawUnit) -> Iterator[Piece]:
        """Usable rows of a unit, tagged with their source."""
        source = self.schema.source(unit.source)
        filters = self.wanted[unit.source]
        names = sorted({name for one in filters for name in _columns_of(one)})
        table = _read(source, unit, names)
        rows = _chosen(source, table, filters)
        if rows.sum() > self.most and len(filters) > 1:
            yield Piece(DRIVER, f"{TOO_MANY}:{unit.source}", pa.table({"rows": [int(rows.sum())]}))
            rows = _chosen(source, table, filters[:1])
        if not rows.any():
            return
        chosen = pa.array(rows)
        columns = dict(zip(names, table.filter(chosen).columns, strict=True))
        if others := [name for name in source.columns if name not in columns]:
            columns |= dict(zip(others, _read(source, unit, others).filter(chosen).columns, strict=True))
        usable = self._usable(source, unit.partition, pa.table({name: columns[name] for name in source.columns}))
        if usable.num_rows:
            yield Piece(DRIVER, unit.source, usable)

    def read_all(self, units: Iterable[RawUnit]) -> Iterator[Piece]:
        """Map step: `read` of some units."""
        for unit in units:
            yield from self.read(unit)

    def nothing(self, source: EventLog | Snapshot) -> pa.Table:
        """No row of a source."""
        types = {name: ARROW_TYPES[declared] for name, declared in source.columns.items()}
        return pa.schema(types | dict.fromkeys((HOME, TS, ARRIVED, ID, USER), pa.int64())).empty_table()

    def _usable(self, source: EventLog | Snapshot, partition: int, raw: pa.Table) -> pa.Table:
        bad = np.zeros(raw.num_rows, np.bool_)
        columns = []
        for name, declared in source.columns.items():
            converted = convert(single_array(raw.column(name)), declared)
            columns.append(converted.values)
            for misfit in converted.misfits:
                bad |= misfit.rows
        rows = pa.RecordBatch.from_arrays(columns, names=list(source.columns))
        key = source.user if isinstance(source, EventLog) else source.key
        bad |= _null(rows.column(key))
        frame = frame_of(rows)
        for condition in source.valid:
            bad |= ~holds(condition, source.name, frame)
        bad |= beyond_float32(self.schema, source, frame)
        home = np.full(raw.num_rows, partition, np.int64)
        ts = arrived = home
        if isinstance(source, EventLog):
            times = epoch_ms(rows.column(source.time), source.time_unit)
            bad |= _null(times.values)
            ts = pc.fill_null(times.values, 0).to_numpy(zero_copy_only=False)
            home = self.schema.local_days.days(ts)
            bad |= (home > partition) | (partition - home > parse_duration(source.lateness) // DAY_MS)
            arrived = ts
            if source.arrival:
                late = epoch_ms(rows.column(source.arrival), source.time_unit)
                for misfit in late.misfits:
                    bad |= misfit.rows
                arrived = np.maximum(
                    ts, pc.fill_null(late.values, np.iinfo(np.int64).min).to_numpy(zero_copy_only=False)
                )
            bad |= arrived - ts > parse_duration(source.lateness) + DAY_MS + self.schema.local_days.spread
            if source.name == self.schema.candidates.source:
                bad |= _null(rows.column(self.schema.candidates.item))
        bad |= ~np.isin(home, np.fromiter(self.days[source.name], np.int64))
        own = {
            HOME: home,
            TS: ts,
            ARRIVED: arrived,
            ID: content_hash(rows, tuple(source.columns)),
            USER: _stored_ids(rows.column(key)),
        }
        table = pa.table({**{n: rows.column(n) for n in source.columns}, **{n: pa.array(v) for n, v in own.items()}})
        return table.filter(pa.array(~bad))


def beyond_float32(schema: Schema, source: EventLog | Snapshot, frame: pl.DataFrame) -> Bool:
    """Rows of which a number that samples keep doesn't fit float32, as far as the frame has the columns that it is made of."""
    bad = np.zeros(frame.height, np.bool_)
    for column in needed(schema)[source.name]:
        if column.role not in NUMBERS and column.role != "vector":
            continue
        read = expression.columns(column.expression) if column.sql else (column.expression,)
        own = [name if name in frame.columns else name.removeprefix(f"{source.name}.") for name in read]
        if all(name in frame.columns for name in own):
            values = evaluate(column.expression, source.name, frame) if column.sql else frame[own[0]]
            if column.role == "vector":
                bad |= np.array([_odd(vector, column.limit) for vector in values.to_list()], np.bool_)
                continue
            numbers = values.cast(pl.Float64, strict=False).fill_null(0).to_numpy()
            bad |= np.abs(numbers) > np.finfo(np.float32).max
    return bad


def _odd(vector: list[float | None] | None, length: int) -> bool:
    """Whether a vector is there and can't be kept."""
    there = vector or []
    return bool(there) and (len(there) != length or not all(x is not None and math.isfinite(x) for x in there))


def once(source: EventLog | Snapshot, rows: pa.Table) -> pl.DataFrame:
    """Rows of a log, those that are one event once: the first by arrival."""
    frame = frame_of(rows)
    same = [HOME, USER, *((source.dedup or tuple(source.columns)) if isinstance(source, EventLog) else ())]
    lists = [name for name in same if isinstance(frame.schema[name], pl.List)]
    keyed = frame.with_columns(
        **{
            f"_same:{name}": pl.Series([repr(value) for value in frame[name].to_list()], dtype=pl.String)
            for name in lists
        }
    ).with_columns(pl.col(pl.Float32, pl.Float64).fill_null(float("nan")))
    on = [f"_same:{name}" if name in lists else name for name in same]
    first = keyed
    if keyed.select(on).is_duplicated().any():
        first = keyed.sort([ARRIVED, ID], maintain_order=True).unique(on, keep="first", maintain_order=True)
    floats = [name for name, type_ in frame.schema.items() if type_.is_float()]
    return first.select(frame.columns).with_columns(pl.col(floats).fill_nan(None))


def holds(condition: str, source: str, frame: pl.DataFrame) -> Bool:
    """Rows that meet a SQL condition; those where it is null don't."""
    return evaluate(condition, source, frame).cast(pl.Boolean).fill_null(False).to_numpy()


def evaluate(text: str, source: str, frame: pl.DataFrame) -> pl.Series:
    """SQL over the rows of a frame: own columns, and joined ones under `snapshot.column`."""
    parsed = expression.parse(text)
    values = []
    for name in parsed.columns:
        own = name if name in frame.columns else name.removeprefix(f"{source}.")
        series = frame[own] if own in frame.columns else pl.Series([None] * frame.height)
        values.append((series.dt.epoch("ms") if series.dtype == pl.Datetime else series).alias(name))
    if parsed.computes:
        values = [series.cast(_wide(series.dtype)) for series in values]
    if parsed.needs_one:
        values.append(pl.Series(exact_arithmetic.ONE, np.ones(frame.height)))
    known = pl.DataFrame(values) if values else pl.DataFrame({"_": np.zeros(frame.height)})
    series = known.select(pl.sql_expr(parsed.polars).alias("value"))["value"]
    if series.dtype == pl.Int128:
        series = series.cast(pl.Int64, strict=False)
    return series if len(series) == frame.height else series.gather([0] * frame.height)


def _wide(type_: pl.DataType) -> pl.DataType:
    """Whole numbers are computed with in 128 bits, where none wraps."""
    inner = type_.inner if isinstance(type_, pl.List) else None
    if isinstance(inner, pl.DataType) and inner.is_integer():
        return pl.List(pl.Int128)
    return pl.Int128() if type_.is_integer() else type_


def stored_id(value: Any) -> int:
    """An id as samples keep it."""
    if value is None:
        return MISSING_ID
    return hash_string(value) if isinstance(value, str) else int(value)


def _stored_ids(column: pa.Array) -> NDArray[np.int64]:
    if pa.types.is_integer(column.type):
        ids: NDArray[np.int64] = pc.fill_null(column.cast(pa.int64()), MISSING_ID).to_numpy(zero_copy_only=False)
        return ids
    return np.array([stored_id(value) for value in column.to_pylist()], np.int64)


def _columns_of(one: Filter) -> list[str]:
    return [one.column] if isinstance(one, Lowest) else [name for name, _ in one.columns]


def _chosen(source: EventLog | Snapshot, table: pa.Table, filters: tuple[Filter, ...]) -> Bool:
    """Rows that meet one of the filters."""
    columns = {
        name: convert(single_array(table.column(name)), source.columns[name]).values for name in table.column_names
    }
    chosen = np.zeros(table.num_rows, np.bool_)
    for one in filters:
        if isinstance(one, Lowest):
            chosen |= draw(columns[one.column], one.day) < np.uint64(one.below)
            continue
        met = np.ones(table.num_rows, np.bool_)
        for name, values in one.columns:
            met &= pc.is_in(columns[name], value_set=_typed(values, source.columns[name])).to_numpy(
                zero_copy_only=False
            )
        chosen |= met
    return chosen


def _typed(values: tuple[Any, ...], declared: str) -> pa.Array:
    """Those of the values that a column of this type can have."""
    type_ = ARROW_TYPES[declared]
    if pa.types.is_integer(type_):
        ends = np.iinfo(type_.to_pandas_dtype())
        values = tuple(value for value in values if not isinstance(value, str) and ends.min <= value <= ends.max)
    elif pa.types.is_string(type_):
        values = tuple(value for value in values if isinstance(value, str))
    return pa.array(values, type_)


def _null(array: pa.Array) -> Bool:
    null: Bool = array.is_null().to_numpy(zero_copy_only=False)
    return null


def _read(source: EventLog | Snapshot, unit: RawUnit, names: list[str]) -> pa.Table:
    """Columns of a unit's rows, under the schema's names."""
    physical = [source.physical(name) for name in names]
    with reading(unit.path, "replace the file", at=f"source {source.name!r}: "):
        file = open_rows(unit.path)
        held = [name for name in physical if name in file.schema_arrow.names]
        table = file.read_row_groups(list(unit.row_groups), columns=held, use_threads=False)
    table = with_absent_columns(source, unit.path, table, names)
    return table.select(physical).rename_columns(names)

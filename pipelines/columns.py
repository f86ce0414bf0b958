"""What the schema asks of each source: the columns a daily partial keeps, computed once when a row is normalised.

Everything later (sequences, cross features, labels) reads these columns by name, so strings are hashed, conditions evaluated
and snapshots joined exactly once per row, and no job knows a feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from genrank.pipelines.arrays import single_array
from genrank.pipelines.column_roles import NUMBERS, ROLE_TYPES, Column
from genrank.pipelines.cross_feature_ops import evaluation_of
from genrank.schemas import (
    ChangePoints,
    CrossFeature,
    EventLog,
    Events,
    EventSequence,
    Schema,
    Snapshot,
    UserError,
    exact_arithmetic,
    expression,
)
from genrank.schemas.base import ARROW_TYPES
from genrank.schemas.conversion import filled
from genrank.schemas.features import Feature
from genrank.schemas.ids import MISSING_ID, hash_strings
from genrank.schemas.stored import Stored
from genrank.schemas.type_rules import ID_LISTS


def owner(schema: Schema, source: EventLog | Snapshot, reference: str) -> tuple[EventLog | Snapshot, str] | None:
    """The source and column a reference means when read from a row of `source`; None if the row can't have it."""
    if "." in reference:
        name, column = reference.split(".", 1)
        if name == source.name:
            return (source, column) if column in source.columns else None
        snapshot = schema.source(name)
        joins = isinstance(snapshot, Snapshot) and snapshot.key in source.columns and column in snapshot.columns
        return (snapshot, column) if joins else None
    return (source, reference) if reference in source.columns else None


def column_type(schema: Schema, source: EventLog | Snapshot, reference: str) -> str | None:
    """Declared type of a reference read from `source`."""
    found = owner(schema, source, reference)
    return found[0].columns[found[1]] if found else None


def references(column: Column) -> tuple[str, ...]:
    """Columns a computed column reads, snapshots' as `snapshot.column`."""
    return expression.columns(column.expression) if column.sql else (column.expression,)


# ---------------------------------------------------------------------- what each part of the schema reads


def feature_column(feature: Feature) -> Column | None:
    """The column a stored feature reads from its row; None for derived and cross features."""
    stored = feature.stored
    if stored is None:
        return None
    if feature.row_sql is not None:
        return Column(stored, feature.row_sql, sql=True)
    if feature.column_reference is None:
        return None
    limit = feature.list_limit if stored == "ids" else feature.vector_length
    return Column(stored, feature.column_reference, limit=limit)


def sequence_features(sequence: EventSequence) -> Iterator[tuple[Feature, Stored]]:
    """Stored features of a sequence, by name."""
    for feature in sorted(sequence.features, key=lambda feature: feature.name):
        if stored := feature.stored:
            yield feature, stored


def cross_features(schema: Schema) -> list[CrossFeature]:
    """Cross features of the candidates, by name."""
    of_candidates = dict(schema.groups())["candidates"]
    return [feature for feature in of_candidates if isinstance(feature, CrossFeature)]


def key_column(schema: Schema, key: str) -> Column:
    """A key of cross features: one id, or the different ones of a list, of which each is a key."""
    return Column("set" if column_type(schema, schema.exposures, key) in ID_LISTS else "id", key)


def value_column(feature: CrossFeature) -> Column | None:
    """What events at keys hold for a cross feature, besides whether they meet `where`."""
    return evaluation_of(feature).value_column(feature)


def needed(schema: Schema) -> dict[str, tuple[Column, ...]]:
    """Source -> the columns its daily partials keep, in a fixed order."""
    columns: dict[str, set[Column]] = {source.name: set() for source in schema.sources}
    exposures = schema.exposures

    def add(source: EventLog | Snapshot, column: Column) -> None:
        """Keep `column` on `source`; what it reads through a snapshot is kept on the snapshot too."""
        columns[source.name].add(column)
        for reference in references(column):
            found = owner(schema, source, reference)
            if found and found[0] is not source:
                role = Column("raw", found[1]) if column.sql else Column(column.role, found[1], limit=column.limit)
                columns[found[0].name].add(role)

    candidates = schema.candidates
    add(exposures, Column("id", candidates.item))
    if candidates.request:
        add(exposures, Column("id", candidates.request))
    for feature in candidates.features:
        if column := feature_column(feature):
            add(exposures, column)
    for feature in schema.user.features:
        if column := feature_column(feature):
            for source in user_sources(schema, column):
                columns[source.name].add(on_snapshot(source, column))
    for sequence in schema.sequences:
        features = list(sequence_features(sequence))
        for entry in sequence.events:
            if isinstance(entry, Events):
                log = schema.event_log(entry.source)
                if entry.where:
                    add(log, Column("flag", entry.where, sql=True))
                for feature, _ in features:
                    if column := feature_column(feature):
                        add(log, column)
            else:
                for column in change_columns(entry, sequence):
                    columns[entry.source].add(column)
    for cross in cross_features(schema):
        for log in (exposures, *cross_sources(schema, cross)):
            for key in cross.keys:
                add(log, key_column(schema, key))
        if (column := value_column(cross)) and column.kept:
            add(schema.event_log(cross.source), column.kept)
        if cross.where:
            add(schema.event_log(cross.source), Column("flag", cross.where, sql=True))
    for label in schema.labels:
        if label.oracle:
            add(exposures, Column("number", label.oracle))
        if label.column:
            add(exposures, Column("number", label.column))
        if label.source:
            log = schema.event_log(label.source)
            for key in label.on:
                add(exposures, Column("id", key))
                add(log, Column("id", key))
            if label.where:
                add(log, Column("flag", label.where, sql=True))
            if label.value:
                add(log, Column("amount", label.value))
    return {name: tuple(sorted(wanted)) for name, wanted in columns.items()}


def cross_sources(schema: Schema, feature: CrossFeature) -> list[EventLog]:
    """The logs a cross feature counts."""
    return [schema.event_log(feature.source)] + ([schema.event_log(feature.per)] if feature.per else [])


def user_sources(schema: Schema, column: Column) -> list[Snapshot]:
    """User snapshots that a column of the user group reads, in the order of the schema."""
    refs = references(column)
    found = []
    for source in schema.sources:
        if isinstance(source, Snapshot) and source.key == schema.exposures.user:
            own = [r for r in refs if (r.split(".", 1)[0] == source.name if "." in r else r in source.columns)]
            if own:
                found.append(source)
    if len(found) > 1:
        raise UserError(
            f"user feature over {column.expression!r} reads several snapshots ({', '.join(s.name for s in found)});"
            " write the column as snapshot.column, of one snapshot"
        )
    return found


def on_snapshot(source: Snapshot, column: Column) -> Column:
    """The column as the snapshot itself keeps it: without its own name as a prefix."""
    if column.sql:
        return column
    return Column(column.role, column.expression.removeprefix(f"{source.name}."), limit=column.limit)


def change_columns(changes: ChangePoints, sequence: EventSequence) -> list[Column]:
    """The attribute's value, in each way that a feature of the sequence reads it; as an id where none does."""
    read = [
        column
        for feature, _ in sequence_features(sequence)
        if (column := feature_column(feature)) and reads_change(changes, column)
    ]
    return sorted(set(read)) or [Column("id", changes.column)]


def reads_change(changes: ChangePoints, column: Column) -> bool:
    """Whether a sequence's feature takes its value from the change points: they offer the changed column alone."""
    return set(references(column)) == {changes.column}


# ---------------------------------------------------------------------- computing them


def compute(frame: pl.DataFrame, source: EventLog | Snapshot, columns: tuple[Column, ...]) -> dict[str, pa.Array]:
    """Each column's values by name.

    `frame` holds the source's declared columns; joined snapshot columns lie in it too: those already computed by the snapshot under
    `snapshot/<name>`, raw ones as `snapshot.column`.
    """
    out: dict[str, pa.Array] = {}
    for column in columns:
        joined = _joined_name(column) if not column.sql and "." in column.expression else None
        if column.sql:
            out[column.name] = store(_evaluate(frame, source, column), column)
        elif joined and joined in frame.columns:
            out[column.name] = fill(_arrow(frame[joined]), column)
        else:
            own = column.expression.removeprefix(f"{source.name}.")
            series = frame[own] if own in frame.columns else pl.Series(own, [None] * frame.height, pl.Null)
            out[column.name] = store(_arrow(series), column)
    return out


def infinite_numbers(computed: pa.Table, columns: tuple[Column, ...]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """(reason, rows it concerns) of each number that is none as it is stored."""
    for column in columns:
        if column.role in NUMBERS:
            infinite = np.abs(computed.column(column.name).to_numpy()) > np.finfo(np.float32).max
            if infinite.any():
                yield f"{column.expression} does not fit float32", infinite
        elif column.role == "vector":
            yield from _odd_vectors(single_array(computed.column(column.name)), column)


def _odd_vectors(vectors: pa.ListArray, column: Column) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    lengths = pc.list_value_length(vectors).to_numpy(zero_copy_only=False)
    odd = (lengths != 0) & (lengths != column.limit)
    if odd.any():
        yield f"{column.expression} has another length than {column.limit}", odd
    values = np.isfinite(vectors.flatten().to_numpy())
    if not values.all():
        holes = np.zeros(len(vectors), np.bool_)
        holes[np.repeat(np.arange(len(vectors)), lengths)[~values]] = True
        yield f"{column.expression} holds a missing or infinite number", holes


def joined_columns(schema: Schema, source: EventLog, columns: tuple[Column, ...]) -> dict[str, dict[str, str]]:
    """Snapshot -> {its column: name in the frame} that `compute` expects to have been joined."""
    wanted: dict[str, dict[str, str]] = {}
    for column in columns:
        for reference in references(column):
            found = owner(schema, source, reference)
            if found and found[0] is not source:
                if column.sql:
                    wanted.setdefault(found[0].name, {})[Column("raw", found[1]).name] = reference
                else:
                    kept = Column(column.role, found[1], limit=column.limit).name
                    wanted.setdefault(found[0].name, {})[kept] = _joined_name(column)
    return wanted


def _joined_name(column: Column) -> str:
    return f"snapshot/{column.name}"


@lru_cache(maxsize=4096)
def _parsed(text: str) -> expression.Expression:
    return expression.parse(text)


@lru_cache(maxsize=4096)
def _compiled(text: str) -> pl.Expr:
    return pl.sql_expr(_parsed(text).polars)


def _evaluate(frame: pl.DataFrame, source: EventLog | Snapshot, column: Column) -> pa.Array:
    parsed = _parsed(column.expression)
    values = []
    for name in parsed.columns:
        own = name if name in frame.columns else name.removeprefix(f"{source.name}.")
        series = frame[own] if own in frame.columns else pl.Series([None] * frame.height)
        # A timestamp reads as epoch ms, in every expression.
        values.append((series.dt.epoch("ms") if series.dtype == pl.Datetime else series).alias(name))
    if parsed.computes:
        values = [_widened(series) for series in values]
    if parsed.needs_one:
        values.append(pl.Series(exact_arithmetic.ONE, np.ones(frame.height)))
    known = pl.DataFrame(values) if values else frame.select(pl.lit(0).repeat_by(frame.height).explode().alias("_"))
    try:
        series = _narrowed(known.select(_compiled(column.expression).alias("value"))["value"], source, column)
    except pl.exceptions.PolarsError as error:
        message = str(error).splitlines()[0]
        raise UserError(f"source {source.name!r}: SQL {column.expression!r} can't be evaluated: {message}") from error
    return _arrow(series if len(series) == frame.height else pl.concat([series] * frame.height))


def _widened(series: pl.Series) -> pl.Series:
    """Whole numbers, also in lists, as 128 bits."""
    if series.dtype.is_integer():
        return series.cast(pl.Int128)
    inner = series.dtype.inner if isinstance(series.dtype, pl.List) else None
    return series.cast(pl.List(pl.Int128)) if isinstance(inner, pl.DataType) and inner.is_integer() else series


def _narrowed(series: pl.Series, source: EventLog | Snapshot, column: Column) -> pl.Series:
    """Whole numbers of 128 bits as 64.

    Raises:
        UserError: one doesn't fit.
    """
    if series.dtype != pl.Int128:
        return series
    narrow = series.cast(pl.Int64, strict=False)
    beyond = int((narrow.is_null() & series.is_not_null()).sum())
    if beyond:
        raise UserError(
            f"source {source.name!r}: SQL {column.expression!r} is beyond int64 in {beyond:,} rows; CAST an operand to DOUBLE, or leave such"
            " rows out with a condition in valid="
        )
    return narrow


def _arrow(series: pl.Series) -> pa.Array:
    array = series.to_arrow(compat_level=pl.CompatLevel.oldest())
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def fill(array: pa.Array, column: Column) -> pa.Array:
    """A joined column: rows without a partner hold null, which becomes the role's missing value."""
    if column.role in ("ids", "set"):
        empty = pa.array([[]], ROLE_TYPES["ids"])
        return (
            pc.fill_null(array.cast(ROLE_TYPES["ids"]), empty[0]) if array.null_count else array.cast(ROLE_TYPES["ids"])
        )
    if column.role == "vector":
        return _vectors(array)
    if column.role in NUMBERS:
        return pc.fill_null(array, pa.scalar(np.nan, ROLE_TYPES[column.role]))
    return pc.fill_null(array, False if column.role == "flag" else MISSING_ID)


def store(array: pa.Array, column: Column) -> pa.Array:
    """An array of any readable type in the way `column.role` says; never null (but for `raw`)."""
    role = column.role
    if role == "raw":
        return array
    if role == "id":
        return _ids(array)
    if role == "ids":
        return _id_lists(array, column.limit)
    if role == "set":
        return _different(_id_lists(array, 0))
    if role == "vector":
        return _vectors(array)
    if role == "time":
        if pa.types.is_timestamp(array.type):
            array = pc.cast(array, pa.timestamp("ms", tz=array.type.tz), safe=False)
        return filled(pc.cast(array, pa.int64(), safe=False), MISSING_ID)
    if role == "flag":
        return pc.fill_null(pc.cast(array, pa.bool_()), False)
    number = pc.cast(pc.cast(array, pa.float64(), safe=False), ROLE_TYPES[role], safe=False)
    return pc.fill_null(number, pa.scalar(np.nan, ROLE_TYPES[role]))


def _ids(array: pa.Array) -> pa.Array:
    if pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type):
        array = array.cast(pa.string())
    if pa.types.is_string(array.type):
        return hash_strings(array)
    if pa.types.is_timestamp(array.type):
        array = pc.cast(array, pa.timestamp("ms", tz=array.type.tz), safe=False)
    return filled(pc.cast(array, pa.int64(), safe=False), MISSING_ID)


def _id_lists(array: pa.Array, limit: int) -> pa.Array:
    """Lists of ids without nulls, of each the first `limit`; 0 keeps all."""
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        ids = _ids(array).to_numpy()
        present = ids != MISSING_ID
        offsets = np.concatenate([[0], np.cumsum(present)]).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, pa.array(ids[present]), type=ROLE_TYPES["ids"])
    ids = _ids(array.flatten()).to_numpy()
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    present = ids != MISSING_ID
    row = np.repeat(np.arange(len(lengths)), lengths)
    before = np.concatenate([[0], np.cumsum(present)])
    starts = before[np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)] if len(lengths) else before[:0]
    kept = present & (before[:-1] - starts[row] < limit) if limit else present
    counts = np.bincount(row[kept], minlength=len(lengths))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(ids[kept]), type=ROLE_TYPES["ids"])


def _different(lists: pa.ListArray) -> pa.ListArray:
    """Each list's different ids, ascending."""
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    ids, row = lists.flatten().to_numpy(), np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((ids, row))
    ids, row = ids[order], row[order]
    first = np.ones(len(ids), np.bool_)
    first[1:] = (ids[1:] != ids[:-1]) | (row[1:] != row[:-1])
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row[first], minlength=len(lengths)))]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(ids[first]), type=ROLE_TYPES["set"])


def _vectors(array: pa.Array) -> pa.Array:
    """Lists of float32, a null one empty; a null number is NaN."""
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        array = pa.nulls(len(array), ROLE_TYPES["vector"])  # of a column that the files lack
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = pc.fill_null(pc.cast(array.flatten(), pa.float32(), safe=False), pa.scalar(np.nan, pa.float32()))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values, type=ROLE_TYPES["vector"])


def declared_schema(source: EventLog | Snapshot) -> pa.Schema:
    """The source's columns as declared."""
    return pa.schema([pa.field(name, ARROW_TYPES[type_]) for name, type_ in source.columns.items()])

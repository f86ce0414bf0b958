"""A sample of a source's rows, under the schema's names and types, and what its columns look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genrank.schemas.absent_columns import absent_columns, with_absent_columns
from genrank.schemas.conversion import INT96_UNIT, convert, readable_as
from genrank.schemas.findings import present_values
from genrank.schemas.source import EventLog, Snapshot
from genrank.schemas.source_files import day_files


@dataclass(frozen=True)
class ColumnStats:
    """A declared column as the sample shows it."""

    source: str
    column: str
    physical: str
    """Name in the files, and declared type."""
    rows: int
    null_rate: float
    distinct: int
    """Different values in the sample; of lists, different elements."""
    low: str
    high: str


@dataclass(frozen=True)
class Sample:
    """Rows of one day of a source, under the schema's names and types."""

    day: str
    rows: pa.Table
    whole: bool
    """Whether these are all rows of the day."""
    misfits: Mapping[tuple[str, str], int]
    """(column, what is wrong) -> rows whose value doesn't fit the declared type; null in `rows`."""


def read_sample(source: EventLog | Snapshot, days: dict[str, Path], limit: int) -> Sample | None:
    """Rows of the newest day that has any: row groups from all of its files in turn, until `limit`."""
    for day, folder in reversed(days.items()):
        try:
            paths = day_files(source, folder).data
            files = [pq.ParquetFile(file, coerce_int96_timestamp_unit=INT96_UNIT) for file in paths]
        except (OSError, pa.ArrowException):
            continue
        has = [c for c in source.columns if all(_fits(f, source, c) for f in zip(paths, files, strict=True))]
        turns = sorted((group, i) for i, file in enumerate(files) for group in range(file.num_row_groups))
        tables, rows = [], 0
        misfits: Counter[tuple[str, str]] = Counter()
        for group, i in turns:
            if rows >= limit:
                break
            held = [name for c in has if (name := source.physical(c)) in files[i].schema_arrow.names]
            table = with_absent_columns(source, paths[i], files[i].read_row_group(group, columns=held))
            table = table.select([source.physical(c) for c in has]).rename_columns(has)
            tables.append(_as_declared(source, table.slice(0, limit - rows), misfits))
            rows += tables[-1].num_rows
        if rows:
            return Sample(day, pa.concat_tables(tables), rows == sum(file.metadata.num_rows for file in files), misfits)
    return None


def _fits(file: tuple[Path, pq.ParquetFile], source: EventLog | Snapshot, column: str) -> bool:
    path, schema, physical = file[0], file[1].schema_arrow, source.physical(column)
    if physical not in schema.names:
        return column not in absent_columns(source, path, schema.names)
    return schema.names.count(physical) == 1 and readable_as(schema.field(physical).type, source.columns[column])


def _as_declared(source: EventLog | Snapshot, table: pa.Table, misfits: Counter[tuple[str, str]]) -> pa.Table:
    arrays = []
    for column in table.column_names:
        chunks = table.column(column).combine_chunks()
        array = pa.concat_arrays(chunks.chunks) if isinstance(chunks, pa.ChunkedArray) else chunks
        converted = convert(array, source.columns[column])
        arrays.append(converted.values)
        for misfit in converted.misfits:
            misfits[column, misfit.what] += int(np.count_nonzero(misfit.rows))
    return pa.table(arrays, names=table.column_names)


def column_stats(source: EventLog | Snapshot, sample: Sample) -> Iterator[ColumnStats]:
    """Of each declared column that could be read."""
    for column in sample.rows.column_names:
        array = sample.rows.column(column)
        values = present_values(array)
        low, high = "", ""
        if len(values) and not pa.types.is_boolean(values.type):
            ends = pc.min_max(values)
            low, high = str(ends["min"].as_py()), str(ends["max"].as_py())
        yield ColumnStats(
            source.name,
            column,
            f"{source.physical(column)}: {source.columns[column]}",
            len(array),
            array.null_count / max(len(array), 1),
            int(pc.count_distinct(values).as_py()),
            low[:24],
            high[:24],
        )

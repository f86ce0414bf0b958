"""What lies under the data root: which days a source has, their files, and whether a file holds what the schema declares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrank.pipelines.arrays import single_array
from genrank.pipelines.days import day_number, dt_of
from genrank.pipelines.documents import Footer
from genrank.pipelines.merge_scan import Int
from genrank.schemas import EventLog, Schema, Snapshot, UserError, source_files
from genrank.schemas.absent_columns import absent_columns, may_be_missing, with_absent_columns
from genrank.schemas.base import DAY_MS, parse_duration
from genrank.schemas.conversion import INT96_UNIT, Converted, convert, epoch_ms, filled, readable_as
from genrank.schemas.digest import digest
from genrank.schemas.files import reading
from genrank.schemas.local_days import LocalDays
from genrank.schemas.manifest import Input, InputFile
from genrank.schemas.source_files import Unread

LANDED = "landed"
"""Where copies of catalog tables and of what lies at URIs are, below the output."""


@dataclass(frozen=True)
class SourceFile:
    """One Parquet file of a partition, as its footer has it."""

    path: str
    bytes: int
    mtime_ns: int
    rows: int
    row_groups: tuple[int, ...]
    """Rows of each row group."""
    first: int | None
    last: int | None
    """Event time's bounds in epoch ms, where the footer has them."""
    absent: tuple[str, ...] = ()
    """Declared columns that neither the file, nor its path, nor a default has."""


@dataclass(frozen=True)
class Partition:
    """One day of a source, as it lies there now."""

    source: str
    day: int
    files: tuple[SourceFile, ...]
    unread: tuple[Unread, ...] = ()
    """Files of the day that the rule of data files leaves out."""

    @property
    def rows(self) -> int:
        """As the footers count them."""
        return sum(file.rows for file in self.files)

    @cached_property
    def input(self) -> Input:
        """What the manifest keeps of it."""
        files = tuple(InputFile(path=f.path, bytes=f.bytes, mtime_ns=f.mtime_ns) for f in self.files)
        return Input(source=self.source, dt=dt_of(self.day), files=files, hash=digest([f.model_dump() for f in files]))


def uri_of(source: EventLog | Snapshot, root: Path | str) -> str | None:
    """Where a source's days lie that only Spark can read, with `{dt}` in it: its path, or the data root, is a URI (`s3a://...`)."""
    if source.path is None or "://" in source.path:
        return source.path
    return f"{str(root).rstrip('/')}/{source.path}" if "://" in str(root) else None


def days_present(source: EventLog | Snapshot, root: Path | str, landed: Path) -> dict[int, Path]:
    """Day -> folder (or file) of every day that lies under the data root; of a catalog table or a URI, of every day landed.

    Raises:
        UserError: the folder of the days doesn't exist.
    """
    if source.catalog or uri_of(source, root):
        source, root = source.replace(path=f"{source.name}/dt={{dt}}", catalog=None), landed
    return {day_number(dt): path for dt, path in source_files.days_present(source, Path(root)).items()}


def read_partition(source: EventLog | Snapshot, day: int, path: Path, known: dict[str, Footer]) -> Partition:
    """The partition's files, each checked against the declared columns.

    Args:
        known: path -> the footer read before, so that those of a long past needn't be read for every build; added to.

    Raises:
        UserError: no file, an unreadable one, a missing column, or a column of another type.
    """
    paths, unread = source_files.day_files(source, path)
    if not paths:
        other = f" (only {unread[0]})" if unread else ""
        raise UserError(
            f"source {source.name!r}: {path} holds no Parquet file{other}: {dt_of(day)} is still being written, or, if nothing happened, write a file without rows there"
        )
    time = [source.time, source.time_unit] if isinstance(source, EventLog) else None
    declared = digest([source.columns, source.rename, time, source.defaults])
    return Partition(source.name, day, tuple(_file(source, declared, path, known) for path in paths), unread)


def require_all_read(schema: Schema, root: Path | str, partitions: Iterable[Partition]) -> None:
    """Whether every file that lies under the sources' paths, of days read or of none, is read.

    Raises:
        UserError: one that holds bytes isn't, and no `ignore` of its source matches it.
    """
    for source in schema.sources:
        unread = [one for partition in partitions if partition.source == source.name for one in partition.unread]
        if not source.catalog and not uri_of(source, root):
            unread += source_files.beside_days(source, Path(root), schema.sources)
        if unread:
            more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
            raise UserError(
                f"source {source.name!r}: {unread[0]}{more} would not be read; {source_files.remedy(source)}"
            )


def _file(source: EventLog | Snapshot, declared: str, path: Path, known: dict[str, Footer]) -> SourceFile:
    with reading(path, "replace the file", at=f"source {source.name!r}: "):
        stat = path.stat()
    footer = known.get(str(path))
    if footer is None or footer[:3] != (stat.st_size, stat.st_mtime_ns, declared):
        footer = known[str(path)] = _read_footer(source, declared, path)
    return SourceFile(
        str(path),
        stat.st_size,
        stat.st_mtime_ns,
        footer.rows,
        footer.row_groups,
        footer.first,
        footer.last,
        footer.absent,
    )


def _read_footer(source: EventLog | Snapshot, declaration: str, path: Path) -> Footer:
    with reading(path, "replace the file", at=f"source {source.name!r}: "):
        stat = path.stat()
        metadata = pq.read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
    for name, declared in source.columns.items():
        physical = source.physical(name)
        if physical not in schema.names:
            continue
        if schema.names.count(physical) > 1:
            raise UserError(_twice(source, path, physical))
        if not readable_as(schema.field(physical).type, declared):
            raise UserError(
                f"source {source.name!r}: column {physical!r} of {path} is {schema.field(physical).type}, declared {declared};"
                " fix the file or the schema"
            )
    absent = absent_columns(source, path, schema.names)
    for column in absent:
        if not may_be_missing(source, column):
            raise no_column(source, column, path, schema.names)
    if isinstance(source, EventLog) and source.physical(source.time) not in schema.names:
        raise no_column(source, source.time, path, schema.names)  # A time in the path is no time of day.
    groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
    first, last = _time_bounds(source, metadata) if isinstance(source, EventLog) else (None, None)
    return Footer(stat.st_size, stat.st_mtime_ns, declaration, metadata.num_rows, groups, first, last, tuple(absent))


def columns_of(path: Path | str) -> list[str]:
    """Names of a file's columns."""
    names: list[str] = pq.read_schema(path).names
    return names


def no_column(source: EventLog | Snapshot, column: str, path: Path | str, held: Sequence[str]) -> UserError:
    """A file that lacks a column which nothing else gives."""
    physical = source.physical(column)
    near = get_close_matches(physical, held, 1)
    hint = f"did you mean {near[0]!r}" if near else f"it has {', '.join(held)}"
    later = f', or say what it is there: defaults={{"{column}": None}}' if may_be_missing(source, column) else ""
    return UserError(
        f"source {source.name!r}: {path} has no column {physical!r} ({hint}); fix the file, or the schema's columns and rename{later}"
    )


def _twice(source: EventLog | Snapshot, path: Path | str, physical: str) -> str:
    return (
        f"source {source.name!r}: {path} has several columns {physical!r}; write the file with one of them,"
        " or give the others another name"
    )


def _time_bounds(
    source: EventLog, metadata: pq.FileMetaData, row_groups: Iterable[int] | None = None
) -> tuple[int | None, int | None]:
    names = metadata.schema.to_arrow_schema().names
    at = next(
        (i for i in range(metadata.num_columns) if metadata.schema.column(i).path == source.physical(source.time)), None
    )
    if at is None or source.physical(source.time) not in names:
        return None, None
    type_ = metadata.schema.to_arrow_schema().field(source.physical(source.time)).type
    if not (pa.types.is_timestamp(type_) or pa.types.is_signed_integer(type_)):
        return None, None
    first: list[int] = []
    last: list[int] = []
    for i in range(metadata.num_row_groups) if row_groups is None else row_groups:
        statistics = metadata.row_group(i).column(at).statistics
        if statistics is None or not statistics.has_min_max:
            if statistics is not None and statistics.null_count == metadata.row_group(i).num_rows:
                continue
            return None, None
        first.append(statistics.min_raw)
        last.append(statistics.max_raw)
    if not first:
        return None, None
    # As integers: Python has no time outside the years 1 to 9999.
    bounds = epoch_ms(pa.array([min(first), max(last)], pa.int64()).cast(type_), source.time_unit)
    return (None, None) if bounds.misfits else (bounds.values[0].as_py(), bounds.values[1].as_py())


def home_days(ms: pa.Array, partition: int, local_days: LocalDays, lateness: int) -> tuple[Int, Int]:
    """(day each row belongs to, its day by event time): rows without a usable time belong to their partition's day.

    Args:
        ms: int64 epoch ms of the years 1 to 9999 (`conversion.epoch_ms`), so that no sum here leaves 64 bits; or null.
    """
    null = ms.is_null().to_numpy(zero_copy_only=False)
    day = local_days.days(filled(ms, 0).to_numpy(zero_copy_only=False))
    usable = ~null & (day <= partition) & (partition - day <= lateness // DAY_MS)
    return np.where(usable, day, partition), day


def census(source: EventLog, partition: Partition, local_days: LocalDays) -> dict[int, int]:
    """Home day -> rows. Of row groups that lie in their partition's day, as most do beside those of late rows, by the footers alone."""
    counts: dict[int, int] = {}
    begin, end = local_days.start(partition.day), local_days.start(partition.day + 1)
    for file in partition.files:
        if file.first is not None and file.last is not None and begin <= file.first and file.last < end:
            counts[partition.day] = counts.get(partition.day, 0) + file.rows
            continue
        counted = 0
        for ms, rows in _times(source, file, begin, end):
            found = {partition.day: rows}
            if ms is not None:
                home, _ = home_days(ms, partition.day, local_days, parse_duration(source.lateness))
                found = dict(zip(*(column.tolist() for column in np.unique(home, return_counts=True)), strict=True))
            counted += rows
            for day, number in found.items():
                counts[day] = counts.get(day, 0) + number
        if counted != file.rows:
            raise UserError(
                f"source {source.name!r}: {file.path} counts {file.rows} rows in its footer and holds {counted}; replace the file"
            )
    return counts


def _times(source: EventLog, file: SourceFile, begin: int, end: int) -> Iterator[tuple[pa.Array | None, int]]:
    """(epoch ms, how many) of a file's rows, a batch at a time; None for row groups that lie in [begin, end)."""
    with reading(file.path, "replace the file", at=f"source {source.name!r}: "):
        opened = open_rows(file.path)
        for group in range(opened.num_row_groups):
            first, last = _time_bounds(source, opened.metadata, [group])
            if first is not None and last is not None and begin <= first and last < end:
                yield None, opened.metadata.row_group(group).num_rows
                continue
            columns = [source.physical(source.time)]
            for batch in opened.iter_batches(row_groups=[group], columns=columns, use_threads=False):
                yield times_of(source, batch.column(0)).values, batch.num_rows


def open_rows(path: Path | str) -> pq.ParquetFile:
    """A file whose rows are to be read: times of INT96 aren't wrapped into 64 bits of nanoseconds, and pages that have a checksum are
    compared with it."""
    return pq.ParquetFile(path, coerce_int96_timestamp_unit=INT96_UNIT, page_checksum_verification=True)


def times_of(source: EventLog, column: pa.ChunkedArray | pa.Array) -> Converted:
    """Epoch ms of the log's time column, as a file has it; null where it has no usable time."""
    return epoch_ms(convert(single_array(column), source.columns[source.time]).values, source.time_unit)


def read_rows(source: EventLog | Snapshot, path: str, row_groups: Iterable[int]) -> pa.Table:
    """Rows of some row groups, under the schema's names; of the file's types."""
    physical = [source.physical(name) for name in source.columns]
    with reading(path, "replace the file", at=f"source {source.name!r}: "):
        file = open_rows(path)
        names = file.schema_arrow.names
        if twice := [name for name in physical if names.count(name) > 1]:
            raise UserError(_twice(source, path, twice[0]))
        held = [name for name in physical if name in names]
        table = file.read_row_groups(list(row_groups), columns=held, use_threads=False)
        table.validate(full=True)  # Text that is none, or lists that end before they begin, would fail far from here.
    table = with_absent_columns(source, path, table)
    return table.select(physical).rename_columns(list(source.columns))

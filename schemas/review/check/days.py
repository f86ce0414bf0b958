"""Days and footers of sources: what is there, and of which types."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.parquet as pq

from genrank.schemas.absent_columns import absent_columns, may_be_missing
from genrank.schemas.base import DAY_MS, parse_duration
from genrank.schemas.conversion import convert, readable_as
from genrank.schemas.expression import nearest
from genrank.schemas.findings import Finding
from genrank.schemas.schema import Schema
from genrank.schemas.source import EventLog, Snapshot
from genrank.schemas.source_files import beside_days, day_files, remedy


def missing_days(source: EventLog | Snapshot, present: list[str]) -> Iterator[Finding]:
    """Days that lack between the first and the last, ascending, and what that means for a snapshot."""
    first, last = date.fromisoformat(present[0]), date.fromisoformat(present[-1])
    every = [(first + timedelta(days=i)).isoformat() for i in range((last - first).days + 1)]
    lacking = [day for day in every if day not in set(present)]
    if not lacking:
        return
    message = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
    if isinstance(source, EventLog):
        yield Finding("warning", source.name, f"missing days: {message}")
        return
    stale = parse_duration(source.max_age) // DAY_MS
    known = [date.fromisoformat(day) for day in present]
    widest = max((b - a).days for a, b in pairwise(known))
    beyond = (
        f"; {widest} days without one is longer than max_age {source.max_age}, so attributes are missing"
        if widest > stale
        else ""
    )
    yield Finding("warning", source.name, f"missing days: {message}; the newest before serves{beyond}")


def reach(schema: Schema, days: dict[str, tuple[str, str, int]]) -> Iterator[Finding]:
    """Sources whose days don't reach as far as the exposures'."""
    name = schema.candidates.source
    if name not in days:
        return
    first, last, _ = days[name]
    for source in schema.sources:
        if source.name == name or source.name not in days:
            continue
        begins, ends, _ = days[source.name]
        if isinstance(source, Snapshot):
            if begins > first:
                yield Finding(
                    "warning", source.name, f"begins at {begins}, {name} at {first}: attributes are missing before"
                )
            fresh = (date.fromisoformat(ends) + timedelta(milliseconds=parse_duration(source.max_age))).isoformat()
            if fresh < last:
                message = f"ends at {ends} and serves until {fresh} (max_age {source.max_age}), {name} go on to {last}"
                yield Finding("error", source.name, f"{message}: attributes are missing from then on")
        elif ends < last:
            yield Finding("warning", source.name, f"ends at {ends}, {name} at {last}")


def beside(schema: Schema, source: EventLog | Snapshot, root: Path) -> Iterator[Finding]:
    """Files beside a source's days, which no day reads."""
    for one in beside_days(source, root, schema.sources):
        yield Finding("error", source.name, f"{one} is not read; {remedy(source)}")


def footers(source: EventLog | Snapshot, days: dict[str, Path]) -> Iterator[Finding]:
    """Of each file of some days: whether it can be read, and its columns' types; and days with few rows."""
    rows: dict[str, int] = {}
    lacking: dict[str, dict[str, list[bool]]] = {}
    reported: set[str] = set()  # A column that is wrong is wrong in most files: the first one says it.
    for day, folder in days.items():
        files, unread = day_files(source, folder)
        for one in unread:
            yield Finding("error", source.name, f"{one} is not read; {remedy(source)}")
        if not files:
            yield Finding("error", source.name, f"{folder} holds no Parquet file")
        rows[day] = 0
        for file in files:
            try:
                metadata = pq.read_metadata(file)
            except (OSError, pa.ArrowException) as error:
                yield Finding("error", source.name, f"{file} can't be read as Parquet ({str(error).splitlines()[0]})")
                continue
            rows[day] += metadata.num_rows
            held = metadata.schema.to_arrow_schema().names
            absent = absent_columns(source, file, held)
            for column in source.columns:
                lacking.setdefault(column, {}).setdefault(day, []).append(column in absent)
            for finding in [*_types(source, file, metadata.schema.to_arrow_schema()), *_ends(source, file, metadata)]:
                if finding.where not in reported:
                    reported.add(finding.where)
                    yield finding
    for column, by_day in lacking.items():
        yield from _absent(source, column, by_day, days)
    usual = median(rows.values())
    for day, count in rows.items():
        if count < usual / 10:
            yield Finding("warning", source.name, f"{day} has {count:,} rows, the median day {usual:,.0f}")


def _absent(
    source: EventLog | Snapshot, column: str, by_day: dict[str, list[bool]], days: dict[str, Path]
) -> Iterator[Finding]:
    """Files that lack a column: whether it was added after them, or is wanted there.

    Args:
        by_day: day, ascending -> of each of its files, whether it lacks the column.
    """
    lacking = [day for day, files in by_day.items() if any(files)]
    if not lacking:
        return
    where, last = f"{source.name}.{column}", lacking[-1]
    before = [files for day, files in by_day.items() if day <= last]
    if last != max(by_day) and all(map(all, before)) and may_be_missing(source, column):
        message = (
            f'was added after {last}; it is missing (null) there, unless defaults={{"{column}": ...}} says what it was'
        )
        yield Finding("warning", where, message)
        return
    file = day_files(source, days[lacking[0]]).data[by_day[lacking[0]].index(True)]
    names = set(pq.read_schema(file).names)
    physical = source.physical(column)
    remedy = f'; or say what it is there: defaults={{"{column}": None}}' if may_be_missing(source, column) else ""
    yield Finding("error", where, f"{file} has no column {physical!r}{nearest(physical, names)}{remedy}")


def _types(source: EventLog | Snapshot, file: Path, schema: pa.Schema) -> Iterator[Finding]:
    for column, declared in source.columns.items():
        physical = source.physical(column)
        where = f"{source.name}.{column}"
        if physical not in schema.names:
            continue
        if schema.names.count(physical) > 1:
            yield Finding("error", where, f"{file} has several columns {physical!r}; write it with one of them")
        elif not readable_as(schema.field(physical).type, declared):
            held = str(schema.field(physical).type).removeprefix("large_")
            remedy = "declare what it is"
            if isinstance(source, EventLog) and column in (source.time, source.arrival) and held.startswith("string"):
                remedy = "write the times as Parquet timestamps, or as integers since 1970, and declare that"
            yield Finding("error", where, f"{held} in {file}, declared {declared}; {remedy}")


def _ends(source: EventLog | Snapshot, file: Path, metadata: pq.FileMetaData) -> Iterator[Finding]:
    """Columns whose least or greatest value, as the footer has it, doesn't fit the declared type."""
    schema = metadata.schema.to_arrow_schema()
    at = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
    for column, declared in source.columns.items():
        physical = source.physical(column)
        if schema.names.count(physical) != 1 or not readable_as(type_ := schema.field(physical).type, declared):
            continue
        if not (pa.types.is_integer(type_) or pa.types.is_floating(type_)) or physical not in at:
            continue
        ends: list[object] = []
        for group in range(metadata.num_row_groups):
            statistics = metadata.row_group(group).column(at[physical]).statistics
            if statistics is not None and statistics.has_min_max:
                ends += [statistics.min, statistics.max]
        found = pa.array(ends, type_)
        for misfit in convert(found, declared).misfits:
            value = found.filter(pa.array(misfit.rows))[-1].as_py()
            message = f"{value} in {file} {misfit.what}; such rows are quarantined"
            yield Finding(
                "warning", f"{source.name}.{column}", f"{message}; declare a type that holds them, or fix the file"
            )

"""Rows of one source against its declaration: keys, times, repeats."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime

import pyarrow as pa
import pyarrow.compute as pc

from genrank.schemas.base import DAY_MS, parse_duration
from genrank.schemas.derive.lineage import lineage
from genrank.schemas.findings import Finding
from genrank.schemas.messages import share
from genrank.schemas.review.check.sample import Sample
from genrank.schemas.schema import Schema
from genrank.schemas.source import EventLog, Snapshot


def row_findings(schema: Schema, source: EventLog | Snapshot, sample: Sample) -> Iterator[Finding]:
    """Columns without a value, missing keys and times, repeated rows, times in the wrong unit."""
    used = lineage(schema)
    for column in sample.rows.column_names:
        array, where = sample.rows.column(column), f"{source.name}.{column}"
        if len(array) and array.null_count == len(array) and (source.name, column) in used:
            yield Finding(
                "warning",
                where,
                f"null in every row of {sample.day}, and {', '.join(used[source.name, column])} reads it",
            )
    for (column, what), wrong in sample.misfits.items():
        rate = wrong / sample.rows.num_rows
        yield Finding(
            "error" if rate > source.max_quarantine_rate else "warning",
            f"{source.name}.{column}",
            f"{share(rate)} of {sample.day} {what}; such rows are quarantined; fix the files, or declare a type that holds them",
        )
    must = [source.user, source.time] if isinstance(source, EventLog) else [source.key]
    for column in must:
        if column in sample.rows.column_names:
            rate = sample.rows.column(column).null_count / sample.rows.num_rows
            if rate > source.max_quarantine_rate:
                yield Finding(
                    "error",
                    f"{source.name}.{column}",
                    f"null in {share(rate)} of {sample.day}; such rows are quarantined, more than max_quarantine_rate {source.max_quarantine_rate:.0%}",
                )
    if isinstance(source, Snapshot):
        if source.key in sample.rows.column_names:
            keys = sample.rows.column(source.key).drop_null()
            twice = 1 - pc.count_distinct(keys).as_py() / max(len(keys), 1)
            if twice > 0:
                yield Finding(
                    "warning",
                    f"{source.name}.{source.key}",
                    f"{share(twice)} of the rows of {sample.day} repeat a key; one row a key is kept",
                )
    else:
        yield from _times(schema, source, sample)
        yield from _repeats(source, sample)


def _times(schema: Schema, source: EventLog, sample: Sample) -> Iterator[Finding]:
    where = f"{source.name}.{source.time}"
    if source.time not in sample.rows.column_names:
        return
    times = sample.rows.column(source.time).drop_null()
    if not len(times):
        return
    raw = pc.cast(times, pa.int64())
    factor = (
        {"s": 1000.0, "ms": 1.0, "us": 0.001}[source.time_unit] if source.columns[source.time] != "timestamp" else 1.0
    )
    ms = pc.multiply(pc.cast(raw, pa.float64()), factor)
    middle = pc.approximate_median(ms).as_py()
    if not _plausible(middle):
        rough = middle / factor
        unit = next((u for u, f in (("s", 1000), ("ms", 1), ("us", 0.001)) if _plausible(rough * f)), None)
        said = f'; they look like time_unit="{unit}"' if unit else "; set time_unit to what they are"
        yield Finding(
            "error", where, f"read as {source.time_unit}, times of {sample.day} lie around {_year(middle)}{said}"
        )
        return
    day = (date.fromisoformat(sample.day) - date(1970, 1, 1)).days
    oldest = schema.local_days.start(day - parse_duration(source.lateness) // DAY_MS)
    usable = pc.and_(pc.less(ms, schema.local_days.start(day + 1)), pc.greater_equal(ms, oldest))
    outside = 1 - pc.sum(usable).as_py() / len(ms)
    if outside > source.max_quarantine_rate:
        yield Finding(
            "error",
            where,
            f"{share(outside)} of {sample.day} lies outside its day and lateness {source.lateness}; check utc_offset, time_unit and lateness",
        )


def _plausible(ms: float) -> bool:
    return 315_532_800_000 <= ms <= 4_102_444_800_000  # 1980 to 2100: MovieLens is of 1997


def _year(ms: float) -> str:
    try:
        return str(datetime.fromtimestamp(ms / 1000, UTC).year)
    except (OverflowError, ValueError, OSError):
        return f"{1970 + ms / 1000 / 31_556_952:.3g}"


def _repeats(source: EventLog, sample: Sample) -> Iterator[Finding]:
    on = [column for column in source.dedup or source.columns if column in sample.rows.column_names]
    plain = [column for column in on if not pa.types.is_list(sample.rows.schema.field(column).type)]
    if not plain or (not source.dedup and plain != on):
        return
    different = sample.rows.group_by(plain).aggregate([]).num_rows
    rate = 1 - different / sample.rows.num_rows
    if rate > 0.05:
        said = f"equal on {', '.join(source.dedup)}" if source.dedup else "equal on every column"
        yield Finding(
            "warning", source.name, f"{share(rate)} of {sample.day} are duplicates ({said}); the first of each is kept"
        )

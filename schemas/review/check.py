"""Does the data hold what the schema says? Footers of the newest days, and a sample of rows of the newest.

    for finding in check(schema, Path("data/world")).findings:
        print(finding)

An `error` would stop a build or ruin a feature; a `warning` is worth a look. What a sample can't show (a share below one in
`sample_rows`) isn't found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genrank.schemas.base import ARROW_TYPES, DAY_MS, parse_duration
from genrank.schemas.derive import columns
from genrank.schemas.derive.tables import transform_of
from genrank.schemas.errors import UserError
from genrank.schemas.expression import nearest
from genrank.schemas.features import Categorical, CrossFeature, Feature, MultiValued, Numeric
from genrank.schemas.files import days_present, files_of, readable_as
from genrank.schemas.schema import Schema
from genrank.schemas.source import EventLog, Snapshot
from genrank.schemas.transforms import FixedBuckets
from genrank.schemas.vocabularies import Dynamic, Enumerated, Hashed, Identity, Vocabulary

Level = Literal["error", "warning"]

USELESS = 0.95
"""A feature whose values read the unknown row more often than this says nothing."""


@dataclass(frozen=True)
class Finding:
    """One thing that is not as the schema says, or as one would wish."""

    level: Level
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.what}"


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


@dataclass
class Checked:
    """What `check` found."""

    findings: list[Finding] = field(default_factory=list)
    columns: list[ColumnStats] = field(default_factory=list)
    days: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    """Source -> (first day, last day, days present)."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found that would stop a build or ruin a feature."""
        return all(finding.level != "error" for finding in self.findings)


@dataclass(frozen=True)
class _Sample:
    """Rows of one day of a source, under the schema's names and types."""

    day: str
    rows: pa.Table
    whole: bool
    """Whether these are all rows of the day."""


def check(schema: Schema, root: Path, *, sample_rows: int = 200_000, days: int = 14) -> Checked:
    """Compare sources with what the schema declares of them.

    Args:
        root: the data root that the sources' paths are relative to.
        sample_rows: rows read of each source's newest day.
        days: footers of the newest so many days are read.

    Raises:
        UserError: the data root is no folder.
    """
    if not root.is_dir():
        raise UserError(f"--data {root}: there is no such folder")
    checked = Checked()
    samples: dict[str, _Sample] = {}
    for source in schema.sources:
        if source.path is None or "://" in source.path:
            what = "a catalog table" if source.path is None else f"lies at {source.path}"
            checked.findings.append(Finding("warning", source.name, f"{what}; `check` reads only local folders"))
            continue
        try:
            present = days_present(source, root)
        except UserError as error:
            checked.findings.append(Finding("error", source.name, str(error).removeprefix(f"source {source.name!r}: ")))
            continue
        if not present:
            checked.findings.append(Finding("error", source.name, f"no day lies at {source.path!r} under {root}"))
            continue
        checked.days[source.name] = (min(present), max(present), len(present))
        checked.findings += _missing_days(source, list(present))
        newest = dict(list(present.items())[-days:])
        checked.findings += _footers(source, newest)
        if sample := _sample(source, newest, sample_rows):
            samples[source.name] = sample
            checked.columns += _stats(source, sample)
            checked.findings += _rows(schema, source, sample)
    checked.findings += _reach(schema, checked.days)
    checked.findings += _joins(schema, samples)
    checked.findings += _features(schema, samples)
    checked.findings += _labels(schema, samples)
    checked.findings = sorted(dict.fromkeys(checked.findings), key=lambda finding: finding.level)
    return checked


# ---------------------------------------------------------------------- days and footers


def _missing_days(source: EventLog | Snapshot, present: list[str]) -> Iterator[Finding]:
    first, last = date.fromisoformat(present[0]), date.fromisoformat(present[-1])
    every = [(first + timedelta(days=i)).isoformat() for i in range((last - first).days + 1)]
    lacking = [day for day in every if day not in set(present)]
    if not lacking:
        return
    told = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
    if isinstance(source, EventLog):
        yield Finding("warning", source.name, f"missing days: {told}")
        return
    stale = parse_duration(source.max_age) // DAY_MS
    known = [date.fromisoformat(day) for day in present]
    widest = max((b - a).days for a, b in pairwise(known))
    beyond = (
        f"; {widest} days without one is longer than max_age {source.max_age}, so attributes are missing"
        if widest > stale
        else ""
    )
    yield Finding("warning", source.name, f"missing days: {told}; the newest before serves{beyond}")


def _reach(schema: Schema, days: dict[str, tuple[str, str, int]]) -> Iterator[Finding]:
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
                told = f"ends at {ends} and serves until {fresh} (max_age {source.max_age}), {name} go on to {last}"
                yield Finding("error", source.name, f"{told}: attributes are missing from then on")
        elif ends < last:
            yield Finding("warning", source.name, f"ends at {ends}, {name} at {last}")


def _footers(source: EventLog | Snapshot, days: dict[str, Path]) -> Iterator[Finding]:
    rows: dict[str, int] = {}
    told: set[str] = set()  # A column that is wrong is wrong in most files: the first one says it.
    for day, folder in days.items():
        files = files_of(folder)
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
            for finding in _types(source, file, metadata.schema.to_arrow_schema()):
                if finding.where not in told:
                    told.add(finding.where)
                    yield finding
    usual = median(rows.values())
    for day, count in rows.items():
        if count < usual / 10:
            yield Finding("warning", source.name, f"{day} has {count:,} rows, the median day {usual:,.0f}")


def _types(source: EventLog | Snapshot, file: Path, schema: pa.Schema) -> Iterator[Finding]:
    for column, declared in source.columns.items():
        physical = source.physical(column)
        where = f"{source.name}.{column}"
        if physical not in schema.names:
            told = f"{file} has no column {physical!r}{nearest(physical, set(schema.names))}"
            yield Finding("error", where, told)
        elif not readable_as(schema.field(physical).type, declared):
            held = str(schema.field(physical).type).removeprefix("large_")
            remedy = "declare what it is"
            if isinstance(source, EventLog) and column in (source.time, source.arrival) and held.startswith("string"):
                remedy = "write the times as Parquet timestamps, or as integers since 1970, and declare that"
            yield Finding("error", where, f"{held} in {file}, declared {declared}; {remedy}")


# ---------------------------------------------------------------------- a sample of rows


def _sample(source: EventLog | Snapshot, days: dict[str, Path], limit: int) -> _Sample | None:
    """Rows of the newest day that has any: row groups from all of its files in turn, until `limit`."""
    for day, folder in reversed(days.items()):
        try:
            files = [pq.ParquetFile(file) for file in files_of(folder)]
        except (OSError, pa.ArrowException):
            continue
        has = [c for c in source.columns if all(_fits(f.schema_arrow, source, c) for f in files)]
        turns = sorted((group, i) for i, file in enumerate(files) for group in range(file.num_row_groups))
        tables, rows = [], 0
        for group, i in turns:
            if rows >= limit:
                break
            table = files[i].read_row_group(group, columns=[source.physical(c) for c in has])
            table = table.select([source.physical(c) for c in has]).rename_columns(has)
            tables.append(_as_declared(source, table).slice(0, limit - rows))
            rows += tables[-1].num_rows
        if rows:
            return _Sample(day, pa.concat_tables(tables), rows == sum(file.metadata.num_rows for file in files))
    return None


def _fits(schema: pa.Schema, source: EventLog | Snapshot, column: str) -> bool:
    physical = source.physical(column)
    return physical in schema.names and readable_as(schema.field(physical).type, source.columns[column])


def _as_declared(source: EventLog | Snapshot, table: pa.Table) -> pa.Table:
    arrays = []
    for column in table.column_names:
        declared, array = ARROW_TYPES[source.columns[column]], table.column(column)
        if pa.types.is_timestamp(array.type):
            array = pc.cast(array, pa.timestamp("ms", array.type.tz), safe=False)
            array = pc.cast(array, pa.timestamp("ms", "UTC")) if array.type.tz else pc.assume_timezone(array, "UTC")
        arrays.append(pc.cast(array, declared, safe=False))
    return pa.table(arrays, names=table.column_names)


def _stats(source: EventLog | Snapshot, sample: _Sample) -> Iterator[ColumnStats]:
    for column in sample.rows.column_names:
        array = sample.rows.column(column)
        values = _values(array)
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


def _rows(schema: Schema, source: EventLog | Snapshot, sample: _Sample) -> Iterator[Finding]:
    used = columns.lineage(schema)
    for column in sample.rows.column_names:
        array, where = sample.rows.column(column), f"{source.name}.{column}"
        if len(array) and array.null_count == len(array) and (source.name, column) in used:
            yield Finding(
                "warning",
                where,
                f"null in every row of {sample.day}, and {', '.join(used[source.name, column])} reads it",
            )
    must = [source.user, source.time] if isinstance(source, EventLog) else [source.key]
    for column in must:
        if column in sample.rows.column_names:
            rate = sample.rows.column(column).null_count / sample.rows.num_rows
            if rate > source.max_quarantine_rate:
                yield Finding(
                    "error",
                    f"{source.name}.{column}",
                    f"null in {_share(rate)} of {sample.day}; such rows are quarantined, more than max_quarantine_rate {source.max_quarantine_rate:.0%}",
                )
    if isinstance(source, Snapshot):
        if source.key in sample.rows.column_names:
            keys = sample.rows.column(source.key).drop_null()
            twice = 1 - pc.count_distinct(keys).as_py() / max(len(keys), 1)
            if twice > 0:
                yield Finding(
                    "warning",
                    f"{source.name}.{source.key}",
                    f"{_share(twice)} of the rows of {sample.day} repeat a key; one row a key is kept",
                )
    else:
        yield from _times(schema, source, sample)
        yield from _repeats(source, sample)


def _times(schema: Schema, source: EventLog, sample: _Sample) -> Iterator[Finding]:
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
        told = f'; they look like time_unit="{unit}"' if unit else "; set time_unit to what they are"
        yield Finding(
            "error", where, f"read as {source.time_unit}, times of {sample.day} lie around {_year(middle)}{told}"
        )
        return
    begin = datetime.fromisoformat(sample.day).replace(tzinfo=UTC).timestamp() * 1000 - schema.offset_ms
    usable = pc.and_(pc.less(ms, begin + DAY_MS), pc.greater_equal(ms, begin - parse_duration(source.lateness)))
    outside = 1 - pc.sum(usable).as_py() / len(ms)
    if outside > source.max_quarantine_rate:
        yield Finding(
            "error",
            where,
            f"{_share(outside)} of {sample.day} lies outside its day and lateness {source.lateness}; check utc_offset, time_unit and lateness",
        )


def _plausible(ms: float) -> bool:
    return 315_532_800_000 <= ms <= 4_102_444_800_000  # 1980 to 2100: MovieLens is of 1997


def _year(ms: float) -> str:
    try:
        return str(datetime.fromtimestamp(ms / 1000, UTC).year)
    except (OverflowError, ValueError, OSError):
        return f"{1970 + ms / 1000 / 31_556_952:.3g}"


def _repeats(source: EventLog, sample: _Sample) -> Iterator[Finding]:
    on = [column for column in source.dedup or source.columns if column in sample.rows.column_names]
    plain = [column for column in on if not pa.types.is_list(sample.rows.schema.field(column).type)]
    if not plain or (not source.dedup and plain != on):
        return
    different = sample.rows.group_by(plain).aggregate([]).num_rows
    rate = 1 - different / sample.rows.num_rows
    if rate > 0.05:
        told = f"equal on {', '.join(source.dedup)}" if source.dedup else "equal on every column"
        yield Finding(
            "warning", source.name, f"{_share(rate)} of {sample.day} are duplicates ({told}); the first of each is kept"
        )


# ---------------------------------------------------------------------- joins


def _joins(schema: Schema, samples: dict[str, _Sample]) -> Iterator[Finding]:
    """Keys that find no partner in a snapshot that some feature joins."""
    for name, snapshot in columns.snapshots(schema).items():
        if name not in samples or snapshot.key not in samples[name].rows.column_names or not samples[name].whole:
            continue
        known = pc.unique(samples[name].rows.column(snapshot.key).drop_null())
        for source in schema.sources:
            joins = (
                isinstance(source, EventLog) and source.name in samples and _reads_through(schema, source.name, name)
            )
            if not joins or snapshot.key not in samples[source.name].rows.column_names:
                continue
            keys = samples[source.name].rows.column(snapshot.key).drop_null()
            if not len(keys) or keys.type != known.type:
                continue
            missed = 1 - pc.sum(pc.is_in(keys, value_set=known)).as_py() / len(keys)
            where = f"{source.name}.{snapshot.key}"
            told = f"{_share(missed)} of {samples[source.name].day} find no row in {name} of {samples[name].day}"
            if missed == 1:
                yield Finding("error", where, f"{told}: the keys never meet")
            elif missed > 0.05:
                yield Finding("warning", where, f"{told}: their attributes are missing")


def _reads_through(schema: Schema, log: str, snapshot: str) -> bool:
    for group, features in schema.groups():
        for name, own in columns.rows(schema, group):
            if name == log:
                for feature in features:
                    if any(r in own and columns.split(r)[0] == snapshot for r in columns.reads(feature)):
                        return True
    keys = {key for feature in schema.candidates.features if isinstance(feature, CrossFeature) for key in feature.keys}
    return any(columns.split(key)[0] == snapshot for key in keys) and log == schema.candidates.source


# ---------------------------------------------------------------------- features against values


def _features(schema: Schema, samples: dict[str, _Sample]) -> Iterator[Finding]:
    for group, features in schema.groups():
        for feature in features:
            if reference := columns.column_of(feature):
                for source, column in _homes(schema, group, reference):
                    sample = samples.get(source)
                    if sample and column in sample.rows.column_names:
                        array = sample.rows.column(column)
                        yield from _feature(f"{group}.{feature.name}", feature, array, f"{source}.{column}")


def _homes(schema: Schema, group: str, reference: str) -> list[tuple[str, str]]:
    """(source, column) where the values of a reference lie."""
    snapshot, column = columns.split(reference)
    found = [(snapshot or name, column) for name, own in columns.rows(schema, group) if reference in own]
    return list(dict.fromkeys(found))


def _feature(where: str, feature: Feature, array: pa.ChunkedArray, home: str) -> Iterator[Finding]:
    values = _values(array)
    if not len(values):
        return
    if isinstance(feature, MultiValued):
        lengths = pc.list_value_length(array.drop_null())
        longer = pc.sum(pc.greater(lengths, feature.max_values)).as_py() / len(lengths)
        if longer > 0.05:
            yield Finding(
                "warning",
                where,
                f"{_share(longer)} of {home} hold more than max_values {feature.max_values}; up to {pc.max(lengths).as_py()}",
            )
    if isinstance(feature, Categorical | MultiValued):
        vocabulary = feature.table.vocabulary if feature.table else feature.vocabulary
        assert vocabulary is not None
        yield from _vocabulary(where, vocabulary, values, home)
    transform = transform_of(feature)
    if (
        isinstance(feature, Numeric)
        and isinstance(transform, FixedBuckets)
        and pa.types.is_floating(values.type) | pa.types.is_integer(values.type)
    ):
        yield from _buckets(where, transform, values, home)


def _vocabulary(where: str, vocabulary: Vocabulary, values: pa.ChunkedArray, home: str) -> Iterator[Finding]:
    if pa.types.is_boolean(values.type):
        values = pc.cast(values, pa.int32())
    different = int(pc.count_distinct(values).as_py())
    if isinstance(vocabulary, Identity):
        outside = pc.or_(pc.less(values, 0), pc.greater_equal(values, vocabulary.size))
        if rate := pc.sum(outside).as_py() / len(values):
            ends = pc.min_max(values)
            told = (
                f"{_share(rate)} of {home} lie outside Identity(size={vocabulary.size}): {ends['min']} to {ends['max']}"
            )
            remedy = (
                "use Hashed or Dynamic"
                if ends["min"].as_py() < 0 or ends["max"].as_py() > 10_000_000
                else f"size={ends['max'].as_py() + 1}"
            )
            yield Finding(
                "error" if rate > USELESS else "warning", where, f"{told}; they all read the unknown row: {remedy}"
            )
    elif isinstance(vocabulary, Enumerated):
        known = pa.array(list(vocabulary.values)).cast(values.type)
        strange = values.filter(pc.invert(pc.is_in(values, value_set=known)))
        if len(strange):
            rate = len(strange) / len(values)
            counts = sorted(pc.value_counts(strange).to_pylist(), key=lambda c: -c["counts"])
            shown = ", ".join(repr(c["values"]) for c in counts[:3])
            yield Finding(
                "error" if rate > USELESS else "warning",
                where,
                f"{_share(rate)} of {home} are not enumerated ({shown}); they read the unknown row",
            )
    elif isinstance(vocabulary, Hashed):
        # An id shares its bucket with one of d - 1 others with this probability.
        shared = (
            1 - math.exp((different - 1) * math.log1p(-1 / vocabulary.size))
            if vocabulary.size > 1
            else float(different > 1)
        )
        if shared > 0.3 and different > 10:
            yield Finding(
                "warning",
                where,
                f"{different:,} different values of {home} in {vocabulary.size:,} buckets: {shared:.0%} share theirs with another",
            )
    elif isinstance(vocabulary, Dynamic):
        counts = pc.value_counts(values).field("counts")
        admitted = int(pc.sum(pc.greater_equal(counts, vocabulary.admit_after)).as_py())
        if admitted > vocabulary.capacity:
            yield Finding(
                "warning",
                where,
                f"{admitted:,} values of {home} are admitted in one day's sample, capacity {vocabulary.capacity:,}: rows are evicted at once",
            )


def _buckets(where: str, transform: FixedBuckets, values: pa.ChunkedArray, home: str) -> Iterator[Finding]:
    numbers = pc.cast(values, pa.float64())
    edges = [-math.inf, *transform.boundaries, math.inf]
    shares = [
        pc.sum(pc.and_(pc.greater_equal(numbers, low), pc.less(numbers, high))).as_py() / len(numbers)
        for low, high in pairwise(edges)
    ]
    if max(shares) > 0.98:
        yield Finding(
            "warning",
            where,
            f"{_share(max(shares))} of {home} fall in one of {len(shares)} buckets; move the boundaries, or use QuantileBuckets",
        )


def _share(rate: float) -> str:
    """`12.5%`; never `0.0%` of something that was found."""
    return "less than 0.1%" if 0 < rate < 0.001 else f"{rate:.1%}"


def _values(array: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values that are not null; of lists, their elements."""
    array = array.drop_null()
    if pa.types.is_list(array.type):
        array = pc.list_flatten(array).drop_null()
    return array


# ---------------------------------------------------------------------- labels


def _labels(schema: Schema, samples: dict[str, _Sample]) -> Iterator[Finding]:
    exposures = samples.get(schema.candidates.source)
    if exposures is None:
        return
    for label in schema.labels:
        where = f"label {label.name}"
        if label.column and label.kind == "binary" and label.column in exposures.rows.column_names:
            values = pc.cast(_values(exposures.rows.column(label.column)), pa.float64())
            positives = pc.sum(pc.not_equal(values, 0)).as_py() or 0
            if positives in (0, len(values)):
                yield Finding(
                    "error",
                    where,
                    f"all {len(values):,} values of {label.column} are {'non-zero' if positives else 'zero'}: nothing to learn",
                )
        events = samples.get(label.source or "")
        if events and exposures.whole and events.day == exposures.day:
            on = [c for c in label.on if c in exposures.rows.column_names and c in events.rows.column_names]
            theirs, ours = events.rows.select(on), exposures.rows.select(on)
            if len(on) == len(label.on) and theirs.schema.types == ours.schema.types and theirs.num_rows:
                met = theirs.join(ours, on, join_type="left semi").num_rows / theirs.num_rows
                if met < 0.05:
                    yield Finding(
                        "warning",
                        where,
                        f"{_share(met)} of {label.source} of {events.day} match an exposure of that day on {', '.join(on)}",
                    )

"""What travels between tasks: a dataclass and an Arrow schema for each message.

| message | from | to | tag |
|---|---|---|---|
| `NormalizedRows` | reading a unit of a partition | the bucket's partial writer | `rows:<source>` |
| `QuarantinedRows` | reading a unit of a partition | the bucket's partial writer | `quarantine:<source>` |
| `PartialReport` | partial writer | driver | `partials` |
| `CompactedReport` | tile writer | driver | `compacted` |
| `KeyCount` | counting keys | driver | `keys` |
| `BucketMessage` | routing | the bucket's assembler | `bucket` |
| `KeyQueries` | routing | the key's slot | `queries:<key set>` |
| events at keys (`cross_features.events_at_keys`) | routing | the key's slot | `events:<log>:<key set>` |
| `KeyAnswers` | the key's slot | the bucket's assembler | `answers:<key set>` |
| `SampleReport` | assembler | driver | `samples` |
| `StagedReport` | gate, reading a staged file | driver | `staged` |
| whole samples of a few users (`gate.staged`) | gate, reading a staged file | driver | `recomputed:<day>` |
| raw rows of a few users and keys (`gate.raw_log`) | gate, reading raw files | driver | `<source>` |
| `LeafSummary` | assembler (of joins), gate | driver | `statistics` |

Reports are few and read row by row (`Report`); the others are many rows and stay columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrank.pipelines.arrays import int64s, single_array, taken
from genrank.pipelines.engine import Piece
from genrank.pipelines.merge_scan import Bool, Int, mix

DRIVER = 0
"""Slot of what is collected: the driver takes it from there."""


def tag_parts(tag: str) -> tuple[str, str]:
    """(kind, what follows the first colon)."""
    kind, _, of = tag.partition(":")
    return kind, of


# ---------------------------------------------------------------------- reports to the driver


@dataclass(frozen=True)
class Report:
    """A row for the driver; fields are the columns of `SCHEMA`, a map column is a mapping."""

    TAG: ClassVar[str]
    SCHEMA: ClassVar[pa.Schema]

    @classmethod
    def table(cls, reports: Iterable[Self]) -> pa.Table:
        """A row per report."""
        rows = [{field.name: _plain(getattr(report, field.name)) for field in fields(report)} for report in reports]
        return pa.Table.from_pylist(rows, cls.SCHEMA)

    @classmethod
    def pieces(cls, reports: Iterable[Self]) -> Piece:
        """Reports on their way to the driver."""
        return Piece(DRIVER, cls.TAG, cls.table(reports))

    def piece(self) -> Piece:
        """This report on its way to the driver."""
        return self.pieces([self])

    @classmethod
    def of_table(cls, table: pa.Table) -> list[Self]:
        """The reports of a table that `table` made."""
        maps = [field.name for field in cls.SCHEMA if pa.types.is_map(field.type)]
        rows = table.to_pylist()
        return [cls(**row | {name: dict(row[name]) for name in maps}) for row in rows]

    @classmethod
    def collected(cls, tables: Mapping[str, pa.Table]) -> list[Self]:
        """The reports among what an engine collected."""
        return cls.of_table(tables[cls.TAG]) if cls.TAG in tables else []


def _plain(value: object) -> object:
    return list(value.items()) if isinstance(value, Mapping) else value


@dataclass(frozen=True)
class PartialReport(Report):
    """A file of a partial, or the rows that one reason kept out of it."""

    TAG = "partials"
    SCHEMA = pa.schema(
        {
            "source": pa.string(),
            "day": pa.int64(),
            "bucket": pa.int64(),
            "path": pa.string(),
            "rows": pa.int64(),
            "duplicates": pa.int64(),
            "reason": pa.string(),
            "joins": pa.map_(pa.string(), pa.int64()),
            "sha256": pa.string(),
        }
    )

    source: str
    day: int
    bucket: int
    path: str
    """Empty where no row is left."""
    rows: int
    duplicates: int
    reason: str
    """Why the rows are quarantined; empty for rows of the partial."""
    joins: Mapping[str, int]
    """Snapshot -> rows that it knows."""
    sha256: str = ""
    """Of the partial's file."""


@dataclass(frozen=True)
class CompactedReport(Report):
    """A bucket's file of a tile or snapshot."""

    TAG = "compacted"
    SCHEMA = pa.schema(
        {
            "use": pa.int64(),
            "first": pa.int64(),
            "last": pa.int64(),
            "bucket": pa.int64(),
            "path": pa.string(),
            "rows": pa.int64(),
            "sha256": pa.string(),
        }
    )

    use: int
    """Position of the use among those with something missing."""
    first: int
    last: int
    bucket: int
    path: str
    """Empty where the bucket has no rows."""
    rows: int
    sha256: str


@dataclass(frozen=True)
class KeyCount(Report):
    """How many of a bucket's exposures share a frequent key."""

    TAG = "keys"
    SCHEMA = pa.schema({"key_set": pa.string(), "key": pa.int64(), "rows": pa.int64()})

    key_set: str
    key: int
    rows: int


@dataclass(frozen=True)
class SampleReport(Report):
    """A bucket's file of a day of samples."""

    TAG = "samples"
    SCHEMA = pa.schema(
        {
            "day": pa.int64(),
            "bucket": pa.int64(),
            "path": pa.string(),
            "rows": pa.int64(),
            "bytes": pa.int64(),
            "sha256": pa.string(),
            "candidates": pa.int64(),
            "down_sampled": pa.int64(),
        }
    )

    day: int
    bucket: int
    path: str
    """Empty where there is no sample."""
    rows: int
    bytes: int
    sha256: str
    candidates: int
    down_sampled: int
    """Exposures that down-sampling left out."""


@dataclass(frozen=True)
class StagedReport(Report):
    """What a staged file of samples holds, read back."""

    TAG = "staged"
    SCHEMA = pa.schema(
        {
            "day": pa.int64(),
            "bucket": pa.int64(),
            "rows": pa.int64(),
            "candidates": pa.int64(),
            "sha256": pa.string(),
            "broken": pa.map_(pa.string(), pa.int64()),
            "examples": pa.map_(pa.string(), pa.string()),
        }
    )

    day: int
    bucket: int
    rows: int
    candidates: int
    sha256: str
    broken: Mapping[str, int]
    """Invariant (`gate.invariants.INVARIANTS`) -> values that break it."""
    examples: Mapping[str, str]
    """Invariant -> the first of them: where, what it is, and what it should be."""


@dataclass(frozen=True)
class LeafSummary(Report):
    """One leaf of one file: the rows of `OUT/stats/dt=<day>.parquet`."""

    TAG = "statistics"
    SCHEMA = pa.schema(
        {
            "day": pa.int64(),
            "leaf": pa.string(),
            "kind": pa.string(),
            "count": pa.int64(),
            "missing": pa.int64(),
            "total": pa.float64(),
            "low": pa.float64(),
            "high": pa.float64(),
            "distinct": pa.int64(),
            "values": pa.list_(pa.float64()),
            "weights": pa.list_(pa.float64()),
            "ids": pa.list_(pa.int64()),
            "id_counts": pa.list_(pa.float64()),
            "sketch": pa.list_(pa.int64()),
            "counted": pa.int64(),
        }
    )

    day: int
    leaf: str
    kind: str
    """`number` (also lengths and labels' values), `id`, or `join` (`count` rows asked, `missing` found none)."""
    count: int
    missing: int
    total: float | None = None
    low: float | None = None
    high: float | None = None
    distinct: int | None = None
    values: list[float] | tuple[float, ...] = ()
    """A sample of a number, each value standing for its share (`weights`) of the file's."""
    weights: list[float] | tuple[float, ...] = ()
    ids: list[int] | tuple[int, ...] = ()
    """The most frequent ids, their counts (`id_counts`) scaled to the whole file."""
    id_counts: list[float] | tuple[float, ...] = ()
    sketch: list[int] | tuple[int, ...] | None = None
    """The smallest hashes of different ids, ascending (`leaf_summaries.SKETCH`); None in statistics of before there were any."""
    counted: int | None = None
    """How many of the `count` ids `distinct` and `sketch` are of."""


# ---------------------------------------------------------------------- rows to buckets and keys

_DAY, _SAME, _FOUND, _REASON = "_day", "_same", "_found:", "reason"


@dataclass(frozen=True)
class NormalizedRows:
    """Rows of one source on their way to their bucket."""

    day: Int
    """The day each row belongs to."""
    same: Int | None
    """Equal for rows that are the same event (or the same snapshot key and day); None where rows of one user, day and id are."""
    rows: pa.Table
    """Columns of the source's partial that its files have (`partials.Layout.stored`)."""
    found: Mapping[str, Bool]
    """Snapshot -> which rows it knows; counted, not kept."""

    @property
    def event(self) -> Int:
        """Equal for rows that are the same event, of rows that have their ids."""
        return mix(int64s(self.rows, "u"), self.day, int64s(self.rows, "id")) if self.same is None else self.same

    @staticmethod
    def tag(source: str) -> str:
        """Rows of this source."""
        return f"rows:{source}"

    def table(self) -> pa.Table:
        """As it travels."""
        own = {_DAY: pa.array(self.day.astype(np.int32))}
        if self.same is not None:
            own[_SAME] = pa.array(self.same)
        own |= {f"{_FOUND}{name}": pa.array(known) for name, known in self.found.items()}
        return pa.table(own | dict(zip(self.rows.column_names, self.rows.columns, strict=True)))

    def only(self, rows: Bool) -> NormalizedRows:
        """Those of the rows."""
        found = {name: known[rows] for name, known in self.found.items()}
        same = None if self.same is None else self.same[rows]
        return NormalizedRows(self.day[rows], same, self.rows.filter(pa.array(rows)), found)

    @classmethod
    def of(cls, table: pa.Table) -> NormalizedRows:
        """As it was sent."""
        kept = [name for name in table.column_names if not name.startswith("_")]
        found = [name for name in table.column_names if name.startswith(_FOUND)]
        return cls(
            int64s(table, _DAY),
            int64s(table, _SAME) if _SAME in table.column_names else None,
            table.select(kept),
            {name.removeprefix(_FOUND): table.column(name).to_numpy() for name in found},
        )


@dataclass(frozen=True)
class QuarantinedRows:
    """Rows of one source that can't be used, as they were declared."""

    KIND: ClassVar[str] = "quarantine"

    day: Int
    rows: pa.Table
    """The declared columns, and `reason`."""

    @classmethod
    def tag(cls, source: str) -> str:
        """Rows of this source."""
        return f"{cls.KIND}:{source}"

    @classmethod
    def because(cls, rows: pa.Table, reasons: list[str], day: Int) -> QuarantinedRows:
        """Rows, each with its reason."""
        return cls(day, rows.append_column(_REASON, pa.array(reasons, pa.string())))

    def table(self) -> pa.Table:
        """As it travels."""
        return self.rows.append_column(_DAY, pa.array(self.day.astype(np.int32)))

    @classmethod
    def of(cls, table: pa.Table) -> QuarantinedRows:
        """As it was sent."""
        return cls(int64s(table, _DAY), table.drop_columns([_DAY]))

    def on(self, day: int) -> pa.Table:
        """Rows of a day, as they are stored."""
        return self.rows.filter(pa.array(self.day == day))

    @staticmethod
    def counts(rows: pa.Table) -> dict[str, int]:
        """Reason -> rows."""
        counted = rows.column(_REASON).value_counts().to_pylist()
        return {count["values"]: count["counts"] for count in counted}


@dataclass(frozen=True)
class BucketMessage:
    """A bucket to be assembled, which has a task even if none of its exposures asked at a key."""

    TAG: ClassVar[str] = "bucket"
    SCHEMA: ClassVar[pa.Schema] = pa.schema({"bucket": pa.int64()})

    bucket: int

    def piece(self) -> Piece:
        """On its way to the bucket."""
        return Piece(self.bucket, self.TAG, pa.table({"bucket": [self.bucket]}, schema=self.SCHEMA))


@dataclass(frozen=True)
class KeyQueries:
    """Exposures that ask what happened at their keys; one value per exposure and key."""

    SCHEMA: ClassVar[pa.Schema] = pa.schema(
        {"key": pa.int64(), "ts": pa.int64(), "day": pa.int32(), "position": pa.int32(), "bucket": pa.int32()}
    )

    key: Int
    """Hash of the key columns."""
    ts: Int
    """Epoch ms of the exposure."""
    day: NDArray[np.int32]
    """The day it belongs to."""
    position: NDArray[np.int32]
    """Its row among the bucket's exposures, or among their keys where one is a list."""
    bucket: NDArray[np.int32]

    @staticmethod
    def tag(key_set: str) -> str:
        """Queries of this key set."""
        return f"queries:{key_set}"

    def table(self) -> pa.Table:
        """As it travels."""
        return pa.table({name: pa.array(getattr(self, name)) for name in self.SCHEMA.names}, schema=self.SCHEMA)

    @classmethod
    def of(cls, table: pa.Table) -> KeyQueries:
        """As it was sent."""
        return cls(**{name: table.column(name).to_numpy() for name in cls.SCHEMA.names})


def events_tag(log: str, key_set: str) -> str:
    """Tag of a log's events at the keys of a key set."""
    return f"events:{log}:{key_set}"


@dataclass(frozen=True)
class KeyAnswers:
    """Cross features of a key set at exposures of a bucket."""

    position: pa.Array | pa.ChunkedArray
    """As of the queries."""
    features: Mapping[str, pa.Array | pa.ChunkedArray]
    """Feature -> its value, one per query."""

    @staticmethod
    def tag(key_set: str) -> str:
        """Answers of this key set."""
        return f"answers:{key_set}"

    def table(self) -> pa.Table:
        """As it travels."""
        return pa.table({"position": self.position, **self.features})

    @classmethod
    def of(cls, table: pa.Table) -> KeyAnswers:
        """As it was sent."""
        names = [name for name in table.column_names if name != "position"]
        return cls(table.column("position"), {name: table.column(name) for name in names})

    def in_order(self) -> dict[str, pa.Array]:
        """Feature -> its value, by the queries' position."""
        position = single_array(self.position).to_numpy()
        at = np.empty(len(position), np.int64)
        at[position] = np.arange(len(position))
        return {name: taken(single_array(column), at) for name, column in self.features.items()}

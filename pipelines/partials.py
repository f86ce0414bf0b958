"""Daily partials: one day of one source, normalised and deduplicated, a file per bucket of users (or of snapshot keys).

A user's bucket is a hash modulo the number of buckets, which each build chooses by its own day's size (`plan.BuildPlan.buckets`). A build
reads partials of any number: a bucket of 8 is every other file of 16, half the rows of a file of 4, and some rows of each file of 3.

`OUT/partials/<source>/dt=<day>/<key>/bucket-NNNNN.parquet` and its `partial.json`. The key is a hash of everything the content
depends on (input files, declaration, computed columns, the snapshots joined), so a partial is never stale: another content has
another key. A partial depends on no other day's partial of its own source, so any day can be rebuilt alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from genrank.pipelines.arrays import int64s, taken
from genrank.pipelines.column_roles import ROLE_TYPES, Column
from genrank.pipelines.days import dt_of
from genrank.pipelines.engine import AnyEngine
from genrank.pipelines.merge_scan import Bool, Int, mix, ranges, slot_of
from genrank.pipelines.moving import move_files
from genrank.schemas import EventLog, Schema, Snapshot, UserError
from genrank.schemas.base import ARROW_TYPES
from genrank.schemas.checked_json import checked, with_checksum
from genrank.schemas.files import move, reading, write_atomically
from genrank.schemas.manifest import Input

PARTIAL = "partial.json"


class Partial(BaseModel):
    """What a partial holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    dt: str
    key: str
    buckets: int
    inputs: tuple[Input, ...]
    files: dict[int, str]
    """Bucket -> file name; buckets without rows have none."""
    sha256: dict[int, str] = {}
    """Bucket -> digest of its file; none in partials of earlier releases."""
    rows: int
    duplicates: int
    quarantined: dict[str, int]
    joins: dict[str, int] = {}
    """Snapshot -> rows that found theirs in it."""

    @property
    def rows_in(self) -> int:
        """Rows that were read of the day: those kept, duplicates and quarantined ones."""
        return self.rows + self.duplicates + sum(self.quarantined.values())


class Bucket(NamedTuple):
    """A share of the users (or of the keys of a snapshot): those whose hash is `number` modulo `of`."""

    number: int
    of: int

    def holds(self, users: Int) -> Bool:
        """Which of the users are in it."""
        held: Bool = slot_of(mix(users), self.of) == self.number
        return held

    def files(self, among: int) -> range:
        """Numbers of the files, of `among`, that its rows lie in."""
        if self.whole(among):
            return range(self.number, among, self.of)
        if self.of % among == 0:
            return range(self.number % among, self.number % among + 1)
        return range(among)

    def whole(self, among: int) -> bool:
        """Whether all rows of these files are its own."""
        return among % self.of == 0


@dataclass(frozen=True)
class PartialRef:
    """Where a task finds a partial."""

    day: int
    folder: str
    files: Mapping[int, str]
    """Bucket -> file name; buckets without rows have none."""
    buckets: int
    """It was written with so many."""
    sha256: Mapping[int, str] = field(default_factory=dict)
    """Bucket -> digest of its file."""

    def path(self, bucket: int) -> str:
        """Where a bucket's file lies."""
        return os.path.join(self.folder, self.files[bucket])

    def read(self, bucket: int, known: bool = False) -> bytes:
        """A bucket's file, as it was written.

        Args:
            known: it was compared with its digest before.

        Raises:
            UserError: it is missing, or another.
        """
        path = self.path(bucket)
        remedy = f"remove {self.folder} and build again"
        with reading(path, remedy), open(path, "rb") as file:
            content = file.read()
        wanted = None if known else self.sha256.get(bucket)
        if wanted and hashlib.sha256(content).hexdigest() != wanted:
            raise UserError(f"{path} is damaged: its digest is not that of its record; {remedy}")
        return content


class PartialStore:
    """The partials under one output folder."""

    def __init__(self, out: Path) -> None:
        self.root = out / "partials"
        self.written: set[str] = set()
        """Paths of files that this store committed: their digests are of what was read back from the disk."""

    def folder(self, source: str, day: int, key: str) -> Path:
        """Where a partial lies."""
        return self.root / source / f"dt={dt_of(day)}" / key

    def find(self, source: str, day: int, key: str) -> Partial | None:
        """The partial, if it was committed and its record can be read; it is made again otherwise."""
        path = self.folder(source, day, key) / PARTIAL
        try:
            partial = Partial.model_validate(checked(path.read_bytes()))
        except (FileNotFoundError, ValueError):
            return None
        return partial if (partial.source, partial.dt, partial.key) == (source, dt_of(day), key) else None

    def ref(self, partial: Partial, day: int) -> PartialRef:
        """What tasks need of it."""
        return PartialRef(
            day, str(self.folder(partial.source, day, partial.key)), partial.files, partial.buckets, partial.sha256
        )

    def commit(self, engine: AnyEngine, partial: Partial, day: int, staged: dict[int, Path]) -> None:
        """Move the winners' files (which are on the disk) in and make the partial visible, by one rename."""
        files = {partial.files[bucket]: path for bucket, path in staged.items()}
        folder = self.folder(partial.source, day, partial.key)
        install(engine, folder, files, PARTIAL, with_checksum(partial.model_dump_json()))
        self.written |= {str(folder / name) for name in files}


def install(engine: AnyEngine, final: Path, files: Mapping[str, Path], record: str, text: str) -> None:
    """A folder of staged `files` (by their names in it, on the disk already) and a record of them, there whole or not at all."""
    building = final.with_name(f".{final.name}-{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    move_files(engine, [(path, building / name) for name, path in files.items()])
    write_atomically(building / record, text)
    shutil.rmtree(final, ignore_errors=True)
    move(building, final)


class OpenFiles:
    """Files of partials that a task reads several times: each is read and compared with its digest once, each column decoded once.

    Args:
        most: bytes of files and columns kept; what is read beyond is read again.
        known: paths of files that were compared with their digests, by other tasks too; added to.
    """

    def __init__(self, most: int = 64 << 20, known: set[str] | None = None) -> None:
        self._left = most
        self._known = set() if known is None else known
        self._files: dict[str, pq.ParquetFile] = {}
        self._columns: dict[tuple[str, str], pa.ChunkedArray] = {}

    def read(self, ref: PartialRef, bucket: int, columns: Sequence[str]) -> pa.Table:
        """Columns of a bucket's file.

        Raises:
            UserError: it is missing, damaged, or another.
        """
        path = ref.path(bucket)
        lacking = [name for name in columns if (path, name) not in self._columns]
        found = {name: self._columns[path, name] for name in columns if name not in lacking}
        if lacking:
            with reading(path, f"remove {ref.folder} and build again"):
                decoded = self._file(ref, bucket, path).read(lacking, use_threads=False)
            found |= dict(zip(lacking, decoded.select(lacking).columns, strict=True))
            if decoded.nbytes <= self._left:
                self._left -= decoded.nbytes
                self._columns |= {(path, name): found[name] for name in lacking}
        return pa.table({name: found[name] for name in columns})

    def _file(self, ref: PartialRef, bucket: int, path: str) -> pq.ParquetFile:
        if path in self._files:
            return self._files[path]
        content = ref.read(bucket, path in self._known)
        self._known.add(path)
        file = pq.ParquetFile(pa.py_buffer(content))
        if len(content) <= self._left:
            self._left -= len(content)
            self._files[path] = file
        return file


def load(
    refs: Sequence[PartialRef],
    bucket: Bucket | None,
    columns: Sequence[str],
    schema: pa.Schema,
    users: pa.Array | None = None,
    files: OpenFiles | None = None,
) -> pa.Table:
    """Rows of several days (with `_day`, int32), of one bucket or of all; with `users` (of the bucket), only rows whose `u` is among them."""
    files = files or OpenFiles(most=0)
    tables = []
    for ref in refs:
        for at in sorted(ref.files) if bucket is None else bucket.files(ref.buckets):
            if at in ref.files:
                foreign = bucket is not None and users is None and not bucket.whole(ref.buckets)
                table = files.read(ref, at, [*columns, "u"] if foreign and "u" not in columns else columns)
                if bucket is not None and foreign:
                    table = table.filter(pa.array(bucket.holds(int64s(table, "u")))).select(list(columns))
                if users is not None:
                    table = of_users(table, users)
                tables.append(table.append_column("_day", pa.array(np.full(table.num_rows, ref.day, np.int32))))
    if not tables:
        wanted = pa.schema([schema.field(name) for name in columns]).append(pa.field("_day", pa.int32()))
        return wanted.empty_table()
    return pa.concat_tables(tables).combine_chunks()


def of_users(table: pa.Table, users: pa.Array) -> pa.Table:
    """Rows whose `u`, in which the table ascends, is among the users (int64, ascending)."""
    own, wanted = int64s(table, "u"), users.to_numpy()
    begin, end = np.searchsorted(own, wanted, "left"), np.searchsorted(own, wanted, "right")
    lengths = end - begin
    return table if lengths.sum() == len(own) else taken(table, ranges(begin, lengths))


@dataclass(frozen=True)
class Layout:
    """Which columns the files of a source's partials have, and how the others come of them. Files that older releases wrote have them all."""

    names: tuple[str, ...]
    """All columns of the partial."""
    repeated: Mapping[str, str]
    """Columns of a log that hold, row by row, what another one does -> that one."""
    hashed: tuple[str, ...]
    """Columns of the files that hold all that a log declares, in its order: `id` is their hash. Empty where they don't hold it all."""

    @property
    def stored(self) -> list[str]:
        """Columns of the files, and of rows on their way to them."""
        return [name for name in self.names if name not in self.repeated and not (name == "id" and self.hashed)]

    def made_of(self, names: Iterable[str]) -> list[str]:
        """Columns of the files that columns come of."""
        found: dict[str, None] = {}
        for name in names:
            found |= dict.fromkeys(self.hashed if name == "id" and self.hashed else [self.repeated.get(name, name)])
        return list(found)

    def columns(self, rows: pa.Table, names: Iterable[str]) -> pa.Table:
        """The columns of these names, of rows that have those which they are `made_of`."""
        return pa.table(
            {
                name: pa.array(self.ids(rows)) if name == "id" else rows.column(self.repeated.get(name, name))
                for name in names
            }
        )

    def ids(self, rows: pa.Table) -> Int:
        """Hashes of rows as they were declared (`raw_rows.content_hash`): they order rows of one moment."""
        if not self.hashed:
            return int64s(rows, "id")
        return mix(*(int64s(rows, name) for name in self.hashed))


def layout_of(schema: Schema, source: EventLog | Snapshot, columns: tuple[Column, ...]) -> Layout:
    """Of the partials of a source that keep these columns."""
    names = tuple(partial_schema(schema, source, columns).names)
    if isinstance(source, Snapshot):
        return Layout(names, {}, ())
    repeated = {Column("id", source.user).name: "u"}
    if source.arrival is None:
        repeated["arrived"] = "ts"
    if source.columns[source.user] == "int64":
        repeated["user"] = "u"  # Of the exposures.
    return Layout(names, repeated, tuple(_hashed(source, columns, repeated)))


def _hashed(source: EventLog, columns: Iterable[Column], repeated: Mapping[str, str]) -> list[str]:
    kept = {column.name for column in columns if not column.sql}
    found = []
    for name, declared in source.columns.items():
        own = Column("id", name).name
        if declared.startswith(("float", "list")):
            return []  # Are hashed in another way than ids are kept.
        if own in repeated:
            found.append(repeated[own])
        elif name == source.time and (declared == "timestamp" or (declared, source.time_unit) == ("int64", "ms")):
            found.append("ts")
        elif own in kept:
            found.append(own)
        else:
            return []
    return found


def partial_schema(schema: Schema, source: EventLog | Snapshot, columns: tuple[Column, ...]) -> pa.Schema:
    """Arrow schema of a partial's rows; its files have those of `Layout.stored`."""
    fields = {"u": pa.int64(), "ts": pa.int64(), "arrived": pa.int64(), "id": pa.int64()}
    if isinstance(source, EventLog) and source.name == schema.candidates.source:
        fields["user"] = ARROW_TYPES[source.columns[source.user]]
    for column in columns:
        fields[column.name] = (
            ARROW_TYPES[source.columns[column.expression]] if column.role == "raw" else ROLE_TYPES[column.role]
        )
    return pa.schema(fields)

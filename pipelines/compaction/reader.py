"""Past days as tasks read them: what is compacted, and partials for the rest."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genrank.pipelines import cross_features, sequences
from genrank.pipelines.arrays import int64s
from genrank.pipelines.columns import needed
from genrank.pipelines.compaction import sizes
from genrank.pipelines.compaction.plan import ReadPlan
from genrank.pipelines.compaction.uses import SequenceUse, TileUse
from genrank.pipelines.cross_features import KeySet
from genrank.pipelines.key_columns import KeyColumns
from genrank.pipelines.merge_scan import Keys
from genrank.pipelines.partials import (
    Bucket,
    Layout,
    OpenFiles,
    PartialRef,
    layout_of,
    load,
    partial_schema,
)
from genrank.schemas import ChangePoints, EventLog, Schema
from genrank.schemas.files import reading as reading_file

_UNTHREADED = pa.ipc.IpcReadOptions(use_threads=False)


@dataclass(frozen=True)
class PastReader:
    """Reads what read plans name; travels to tasks by pickle."""

    schema: Schema
    partials: Mapping[str, tuple[PartialRef, ...]]
    """Source -> partials of every day that matters, ascending."""
    buckets: int
    """What is asked for are buckets of so many."""
    known: set[str] = field(default_factory=set, repr=False, compare=False, kw_only=True)
    """Paths of files that this process wrote or compared with their digests: they are compared once. Stays behind when this travels."""
    _open: dict[int, OpenFiles] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Bucket -> its files, where a task reads several times."""

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "known": set(), "_open": {}}

    @contextmanager
    def several_times(self, bucket: int) -> Iterator[None]:
        """Within it, what is read of a bucket's partials is kept for being read again, as far as `OpenFiles` does."""
        self._open[bucket] = OpenFiles(known=self.known)
        try:
            yield
        finally:
            self._open.pop(bucket, None)

    @cached_property
    def schemas(self) -> dict[str, pa.Schema]:
        """Source -> the columns of its partials."""
        columns = needed(self.schema)
        return {s.name: partial_schema(self.schema, s, columns[s.name]) for s in self.schema.sources}

    @cached_property
    def _layouts(self) -> dict[str, Layout]:
        columns = needed(self.schema)
        return {s.name: layout_of(self.schema, s, columns[s.name]) for s in self.schema.sources}

    def load(
        self,
        source: str,
        days: Collection[int],
        bucket: int,
        columns: Sequence[str],
        users: pa.Array | None = None,
    ) -> pa.Table:
        """Rows of the partials of some days (with `_day`), of one bucket; with `users`, only theirs."""
        names = columns if users is None or "u" in columns else [*columns, "u"]
        refs = [ref for ref in self.partials[source] if ref.day in days]
        layout, opened = self._layouts[source], self._open.get(bucket)
        stored = layout.made_of(names)
        rows = load(refs, Bucket(bucket, self.buckets), stored, self.schemas[source], users, opened)
        return layout.columns(rows, (*names, "_day"))

    def events(
        self,
        wanted: Mapping[TileUse, ReadPlan],
        bucket: int,
        users: pa.Array | None = None,
        asked: Mapping[KeySet, Keys | KeyColumns] | None = None,
        lean: bool = False,
    ) -> dict[TileUse, pa.Table]:
        """Events and tiles of logs at the keys of key sets; with `users` and the keys `asked`, only those, with their codes; `lean` leaves
        out ids that no feature of the key sets asks for.

        A partial is read once, for all key sets. Where there is much to read, what may be merged is merged on the way, so that a
        task holds a few days in full, however many it reads.
        """
        found: dict[TileUse, list[pa.Table]] = {}
        for source in dict.fromkeys(use.source for use in wanted):
            log = self.schema.event_log(source)
            own = {use: reading for use, reading in wanted.items() if use.source == source}
            ids = not lean or any(cross_features.asks_ids(use.key_set, log) for use in own)
            for use, reading in own.items():
                tiles = self._tiles(use, reading.compacted, bucket, asked[use.key_set] if asked is not None else None)
                found[use] = tiles if ids else [tile.drop_columns(["id"]) for tile in tiles]
            columns = [name for use in own for name in cross_features.partial_columns(use.key_set, log, ids)]
            days = sorted({day for reading in own.values() for day in reading.days})
            for rows, much in self._chunks(source, days, bucket, list(dict.fromkeys(columns)), users):
                for use, reading in own.items():
                    keys = asked[use.key_set] if asked is not None else None
                    everything = len(reading.days) == len(days)
                    found[use] += self._at_keys(use.key_set, log, reading, rows, keys, much, everything)
        return {use: pa.concat_tables(tables) for use, tables in found.items()}

    def _chunks(
        self, source: str, days: list[int], bucket: int, columns: list[str], users: pa.Array | None
    ) -> Iterator[tuple[pa.Table, bool]]:
        """Whole days, about `sizes.CHUNK` rows at a time, and whether there is more than one chunk's worth; one chunk at least."""
        pending, much = [self.load(source, (), bucket, columns, users)], False
        for day in days:
            pending.append(self.load(source, (day,), bucket, columns, users))
            if sum(table.num_rows for table in pending) >= sizes.CHUNK:
                much = True
                yield pa.concat_tables(pending).combine_chunks(), much
                pending = []
        if pending:
            yield pa.concat_tables(pending).combine_chunks(), much

    def _at_keys(
        self,
        key_set: KeySet,
        log: EventLog,
        reading: ReadPlan,
        rows: pa.Table,
        asked: Keys | KeyColumns | None,
        merge: bool,
        everything: bool,
    ) -> Iterator[pa.Table]:
        """Rows of a chunk at the keys, with `merge` those of each run merged; `everything` says that all days are wanted."""
        run_of = np.zeros(rows.num_rows, np.int64)
        if merge or not everything:
            day = rows.column("_day").to_numpy()
            for number, run in enumerate(reading.runs if merge else (), 1):
                run_of[(day >= run.start) & (day < run.stop)] = number
            run_of[~np.isin(day, reading.days)] = -1
        # Rows that aren't merged always: a table of none has the columns.
        for number in sorted({0, *np.unique(run_of[run_of > 0]).tolist()}):
            mine = run_of == number
            table = rows if mine.all() else rows.filter(pa.array(mine))
            by_column = asked if isinstance(asked, KeyColumns) else None
            table = cross_features.events_at_keys(key_set, log, table, by_column)
            if reading.runs or reading.compacted:
                table = cross_features.mergeable(key_set, log, table)
            if isinstance(asked, Keys):
                table = cross_features.coded(table, asked)
            if number:
                moment = self.schema.local_days.start(reading.runs[number - 1][-1])
                table = cross_features.tile(key_set, log, table, moment, reading.settled)
            yield table

    def rows(
        self,
        use: SequenceUse,
        reading: ReadPlan,
        bucket: int,
        users: pa.Array | None = None,
        lean: bool = False,
    ) -> pa.Table:
        """Rows of one entry of a sequence; with `users`, only theirs. A history's are cut to its length day by day; `lean` leaves out ids of
        logs' rows, which files of partials have in their order where times are equal."""
        sequence = use.sequence
        entry = sequence.events[use.kind]
        columns = sequences.columns_of(sequence, entry, ids=not lean)

        def fresh(days: Collection[int], first: int) -> pa.Table:
            table = self.load(use.source, days, bucket, columns, users)
            return sequences.rows_of(self.schema, sequence, use.kind, table, np.array(sorted(days), np.int64), first)

        days = sorted(reading.days)
        if isinstance(entry, ChangePoints):
            before = [ref.day for ref in self.partials[use.source] if days and reading.follows and ref.day < days[0]]
            tables = [fresh([*before[-1:], *days], days[0] if days else 0)]
        elif sequence.scope == "realtime":
            tables = [fresh(days, 0)]
        else:
            tables = [fresh((), 0)]
            for day in days:
                tables.append(sequences.newest(fresh((day,), 0), sequence.max_length, reading.settled))
        return pa.concat_tables([*self._histories(reading.compacted, bucket, users), *tables])

    # ------------------------------------------------------------------ what is compacted

    def _tiles(
        self, use: TileUse, refs: Iterable[PartialRef], bucket: int, asked: Keys | KeyColumns | None
    ) -> list[pa.Table]:
        """A bucket's share of tiles: of its users' keys those in its users' files, all `asked` among them; of other keys, which any bucket
        may deal with, every so many-th file."""
        own = Bucket(bucket, self.buckets)
        tables = []
        for ref in refs:
            if use.key_set.with_user(self.schema):
                assert asked is not None or own.whole(ref.buckets), "a tile says no more whose its rows are"
                numbers = own.files(ref.buckets)
            else:
                numbers = range(bucket, ref.buckets, self.buckets)
            for table in read_files(ref, numbers):
                assert not isinstance(asked, KeyColumns), "a tile has its keys' hash alone"
                tables.append(table if asked is None else cross_features.coded(table, asked))
        return tables

    def _histories(self, refs: Iterable[PartialRef], bucket: int, users: pa.Array | None) -> list[pa.Table]:
        """A bucket's rows of histories; with `users`, only theirs."""
        own = Bucket(bucket, self.buckets)
        tables = []
        for ref in refs:
            for table in read_files(ref, own.files(ref.buckets)):
                if users is not None:
                    table = table.filter(pc.is_in(table.column("u"), value_set=users))
                elif not own.whole(ref.buckets):
                    table = table.filter(pa.array(own.holds(int64s(table, "u"))))
                tables.append(table)
        return tables


def read_files(ref: PartialRef, numbers: Iterable[int]) -> Iterator[pa.Table]:
    """Those of the files that are there."""
    for number in numbers:
        if number in ref.files:
            # At once and in this thread: the files are small and many.
            with reading_file(f"{ref.folder}/{ref.files[number]}", f"remove {ref.folder} and build again"):
                yield pa.ipc.open_file(pa.py_buffer(ref.read(number)), options=_UNTHREADED).read_all()

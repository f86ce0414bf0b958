"""Past days compacted: what a build reads in place of the partials of a whole look-back, so that a day hardly costs more for all that lies behind it.

Two kinds of blocks, both `OUT/blocks/<use>/dt=<last day>/<key>/bucket-NNNNN.arrow` and their `block.json`:

- **Tiles** of a log at the keys of a set of cross features (`cross_features.tile`): one day, or 4 or 16 aligned days merged
  from four parts, so that a window of any length is a handful of blocks.
- **Snapshots** of one entry of a history: the newest rows of each user as of the start of every `PERIOD`th day
  (`sequences.newest`), made from the snapshot before it, where that still holds, and the days since.

A block says which partials it covers, by their keys, and serves a build only if it agrees with the build's plan on every day the
build depends on: a late row changes the partial's key, so a block is never stale. It holds nothing that its partials don't, and no
day needs it: without one the partials are read. Blocks are made by the second of two builds that follow each other day by day, so
that a single day built once doesn't pay for what nobody will read again.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from genrank.pipelines import cross_features, sequences
from genrank.pipelines.columns import needed
from genrank.pipelines.cross_features import KeySet, key_sets
from genrank.pipelines.days import day_number, dt_of, start_of, whole_days
from genrank.pipelines.engine import Engine, Piece
from genrank.pipelines.events import partial_schema
from genrank.pipelines.partials import PartialRef, install, load
from genrank.pipelines.sources import digest
from genrank.schemas import ChangePoints, EventLog, EventSequence, Schema
from genrank.schemas.files import sync, write_atomically

BLOCK = "block.json"
LARGEST = 16
"""Days of the largest tile, a power of 4: with twos there would be fewer files to read, and twice as many to make and keep."""
SHORTEST = 3
"""Shorter runs of days are read from their partials: fewer rows, but not fewer files."""
PERIOD = 8
"""Days from one snapshot of a history to the next."""
_UNTHREADED = pa.ipc.IpcReadOptions(use_threads=False)
CHUNK = 1 << 20
"""Rows of partials that a task holds before it merges what may be merged."""
USES = "uses.json"
"""Names the uses of the schema built last, with their sources; blocks of others are leftovers."""
WRITTEN = "blocks"
MADE = pa.schema(
    {
        "use": pa.int64(),
        "first": pa.int64(),
        "last": pa.int64(),
        "bucket": pa.int64(),
        "path": pa.string(),
        "rows": pa.int64(),
    }
)


class Block(BaseModel):
    """What a block holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    use: str
    first: str
    last: str
    """Days it stands for, both included."""
    covers: dict[str, str]
    """Day -> key of the partial it was made from; days without one aren't named."""
    files: dict[int, str]
    """Bucket -> file name."""
    rows: int


@dataclass(frozen=True)
class Reading:
    """What a build reads for one use: blocks, and days whose partials are read."""

    blocks: tuple[PartialRef, ...] = ()
    days: tuple[int, ...] = ()
    follows: bool = False
    """Whether days before `days` are dealt with: what changed on the first of them is told by the one before it."""
    runs: tuple[range, ...] = ()
    """Runs of days of which rows available before `settled` may be merged."""
    settled: int = 0
    """Start of the first day built, epoch ms."""


@dataclass(frozen=True)
class Recipe:
    """How a block of days `first` .. `last` is made."""

    first: int
    last: int
    stored: PartialRef | None = None
    """A tile: it is there already. A snapshot: the one to go on from."""
    parts: tuple[Recipe, ...] = ()
    """A tile of several days: the tiles it is made of."""
    days: tuple[int, ...] = ()
    """The days whose partials are read."""


@dataclass(frozen=True)
class Use:
    """What past days are read for: a log at the keys of a key set, or an entry of a sequence (a realtime one needs no blocks)."""

    source: str
    key_set: KeySet | None = None
    sequence: EventSequence | None = None
    kind: int = 0

    def name(self, schema: Schema) -> str:
        """Folder of its blocks: equal names, equal contents (given the partials)."""
        source = schema.source(self.source)
        meaning: list[object] = [schema.utc_offset, source.delay if isinstance(source, EventLog) else None]
        if self.key_set:
            assert isinstance(source, EventLog)
            columns = [column.name for column in cross_features.event_columns(self.key_set, source)]
            newest = sorted(cross_features.newest_ops(self.key_set, source))
            meaning += [self.key_set.keys, self.key_set.distinct, columns, newest, source.arrival is not None]
            return f"{self.source}-by-{'-'.join(self.key_set.keys) or 'all'}-{digest(meaning)[:8]}"
        assert self.sequence
        features = [
            feature.model_dump(mode="json", include={"name", "column", "expression", "max_values"}) | {"stored": stored}
            for feature, stored in sequences.sequence_features(self.sequence)
        ]
        entry = self.sequence.events[self.kind].model_dump(mode="json")
        meaning += [features, entry, self.sequence.max_length]
        return f"{self.source}-{self.sequence.name}-{digest(meaning)[:8]}"


def uses(schema: Schema) -> list[Use]:
    """All of them, in a fixed order."""
    tiles = [Use(log, key_set=key_set) for key_set in key_sets(schema) for log in key_set.windows(schema)]
    entries = [
        Use(entry.source, sequence=sequence, kind=kind)
        for sequence in schema.sequences
        for kind, entry in enumerate(sequence.events)
    ]
    return tiles + entries


def blocks_over(days: range) -> Iterator[range]:
    """The largest aligned runs of 1, 4 ... `LARGEST` days that make up `days`, in order."""
    at = days.start
    while at < days.stop:
        size = LARGEST
        while at % size or at + size > days.stop:
            size //= 4
        yield range(at, at + size)
        at += size


def leftovers(root: Path, used: Collection[tuple[str, str, str]]) -> list[Path]:
    """Blocks that `genrank clean` may remove: of uses that the schema built last doesn't have, of partials not `used` (source, day,
    key), half-made ones, and snapshots of histories but the newest two."""
    known = json.loads((root / USES).read_text()) if (root / USES).is_file() else {}
    found = []
    for use in sorted(root.glob("*/")):
        if use.name not in known:
            found.append(use)
            continue
        kept = []
        for folder in sorted(use.glob("dt=*/*")):
            path = folder / BLOCK
            block = Block.model_validate_json(path.read_bytes()) if path.is_file() else None
            if block and all((known[use.name]["source"], dt, key) in used for dt, key in block.covers.items()):
                kept.append(folder)
            else:
                found.append(folder)
        if known[use.name]["snapshots"]:
            found += kept[:-2]
    return found


class Shelf:
    """The blocks under one output folder, and what a build of `first` .. `last` takes from it.

    Args:
        partials: source -> the partials of every day that matters to the build.
        keys: source -> day -> key of its partial.
        make: whether blocks that are missing are worth making.
    """

    def __init__(
        self,
        schema: Schema,
        out: Path,
        first: int,
        last: int,
        partials: Mapping[str, tuple[PartialRef, ...]],
        keys: Mapping[str, Mapping[int, str]],
        make: bool,
    ) -> None:
        self.schema, self.root, self.first, self.last = schema, out / "blocks", first, last
        self.partials = {name: {ref.day: ref for ref in refs} for name, refs in partials.items()}
        self.keys, self.make = keys, make
        self._start = start_of(first, schema.offset_ms)
        self.missing: dict[Use, list[Recipe]] = {}
        self.readings = {use: self._reading(use) for use in uses(schema)}

    # ------------------------------------------------------------------ what a build reads

    def _reading(self, use: Use) -> Reading:
        return self._tiles(use) if use.key_set else self._snapshot(use)

    def _tiles(self, use: Use) -> Reading:
        assert use.key_set
        log = self.schema.event_log(use.source)
        present = self.partials[use.source]
        back = whole_days(use.key_set.windows(self.schema)[use.source])
        days = {day for day in range(self.first - back, self.last + 1) if day in present}
        runs = cross_features.ranges_of_tiles(use.key_set, self.schema, log, self.first, self.last)
        blocks = []
        for run in runs:
            if len(days.intersection(run)) < SHORTEST:
                continue
            for of in blocks_over(run):
                if not days.intersection(of):
                    continue
                ref = self._find(use, of, of)
                if ref is None and self.make:
                    recipe = self._recipe(use, of)
                    assert recipe
                    self.missing.setdefault(use, []).append(recipe)
                if ref or self.make:
                    days.difference_update(of)
                if ref:
                    blocks.append(ref)
        return Reading(tuple(blocks), tuple(sorted(days)), runs=tuple(runs), settled=self._start)

    def _recipe(self, use: Use, days: range) -> Recipe | None:
        """From the largest blocks that are stored."""
        if not any(day in self.partials[use.source] for day in days):
            return None
        if ref := self._find(use, days, days):
            return Recipe(days[0], days[-1], stored=ref)
        if len(days) == 1:
            return Recipe(days[0], days[0], days=(days[0],))
        quarter = len(days) // 4
        quarters = [days[at : at + quarter] for at in range(0, len(days), quarter)]
        return Recipe(days[0], days[-1], parts=tuple(part for of in quarters if (part := self._recipe(use, of))))

    def _snapshot(self, use: Use) -> Reading:
        assert use.sequence
        source = self.schema.source(use.source)
        present = self.partials[use.source]
        since = self.first - sequences.days_back(self.schema, use.sequence, source)
        if not isinstance(source, EventLog):
            # The snapshot before the first one in reach tells whether that one changed anything.
            since = max((day for day in present if day < since), default=since)
        days = tuple(day for day in sorted(present) if since <= day <= self.last)
        if use.sequence.scope == "realtime":
            return Reading((), days)
        # Nothing of the last day was available before it.
        days = tuple(day for day in days if day < self.last)
        due = self.first - self.first % PERIOD
        stored = self._newest(use, since, due)
        if self.make and sum(day < due for day in days) >= PERIOD and (stored is None or stored.day != due - 1):
            fresh = tuple(day for day in days if day < due and (stored is None or day > stored.day))
            self.missing[use] = [Recipe(since, due - 1, stored=stored, days=fresh)]
            return Reading((), tuple(day for day in days if day >= due), follows=True, settled=self._start)
        if stored is None:
            return Reading((), days, settled=self._start)
        return Reading((stored,), tuple(day for day in days if day > stored.day), follows=True, settled=self._start)

    # ------------------------------------------------------------------ what is there

    def _find(self, use: Use, days: range, matters: range) -> PartialRef | None:
        """A stored block of just these days that agrees with the plan on `matters`."""
        keys = self.keys[use.source]
        present = self.partials[use.source]
        wanted = {dt_of(day): keys[day] for day in matters if day in present}
        for folder in self.root.joinpath(use.name(self.schema), f"dt={dt_of(days[-1])}").glob("[!.]*"):
            block = Block.model_validate_json((folder / BLOCK).read_bytes())
            known = {dt: key for dt, key in block.covers.items() if dt >= dt_of(matters[0])}
            if known == wanted and (use.sequence or block.first == dt_of(days[0])):
                return PartialRef(days[-1], str(folder), block.files)
        return None

    def _newest(self, use: Use, since: int, due: int) -> PartialRef | None:
        """The newest snapshot of a history, as of day `due` or before, that agrees on every day from `since`."""
        folders = self.root.joinpath(use.name(self.schema)).glob("dt=*")
        lasts = sorted((day_number(folder.name.removeprefix("dt=")) for folder in folders), reverse=True)
        for last in lasts:
            if since <= last < due and (ref := self._find(use, range(last, last + 1), range(since, last + 1))):
                return ref
        return None

    # ------------------------------------------------------------------ making what is missing

    def fill(self, engine: Engine[Any], reader: Reader, buckets: int, staging: Path) -> None:
        """Make the missing blocks, in the engine's tasks."""
        if not self.missing:
            return
        known = {use.name(self.schema): {"source": use.source, "snapshots": not use.key_set} for use in self.readings}
        write_atomically(self.root / USES, json.dumps(known))
        maker = Maker(reader, self.missing, str(staging / "blocks"))
        days = sorted({recipe.last for recipes in self.missing.values() for recipe in recipes})
        title = f"blocks up to {dt_of(days[-1])}"
        written = engine.collect(engine.map(title, range(buckets), maker.make))
        rows = written[WRITTEN].to_pylist()
        for number, (use, recipes) in enumerate(self.missing.items()):
            for recipe in recipes:
                own = [
                    row
                    for row in rows
                    if (row["use"], row["first"], row["last"]) == (number, recipe.first, recipe.last)
                ]
                ref = self._commit(use, recipe, own)
                reading = self.readings[use]
                self.readings[use] = replace(reading, blocks=(*reading.blocks, ref))
        self.missing = {}

    def _commit(self, use: Use, recipe: Recipe, rows: list[dict[str, Any]]) -> PartialRef:
        keys, present = self.keys[use.source], self.partials[use.source]
        covers = {dt_of(d): keys[d] for d in range(recipe.first, recipe.last + 1) if d in present}
        rows = [row for row in rows if row["path"]]
        files = {row["bucket"]: f"bucket-{row['bucket']:05d}.arrow" for row in rows}
        block = Block(
            use=use.name(self.schema),
            first=dt_of(recipe.first),
            last=dt_of(recipe.last),
            covers=covers,
            files=dict(sorted(files.items())),
            rows=sum(row["rows"] for row in rows),
        )
        folder = self.root / block.use / f"dt={block.last}" / digest([block.first, covers])
        staged = {files[row["bucket"]]: Path(row["path"]) for row in rows}
        install(folder, staged, BLOCK, block.model_dump_json(indent=1))
        return PartialRef(recipe.last, str(folder), block.files)


@dataclass(frozen=True)
class Reader:
    """Reads what readings name; travels to tasks by pickle."""

    schema: Schema
    partials: Mapping[str, tuple[PartialRef, ...]]
    """Source -> partials of every day that matters, ascending."""

    @cached_property
    def schemas(self) -> dict[str, pa.Schema]:
        """Source -> the columns of its partials."""
        columns = needed(self.schema)
        return {s.name: partial_schema(self.schema, s, columns[s.name]) for s in self.schema.sources}

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
        return load(refs, bucket, names, self.schemas[source], users)

    def events(
        self,
        wanted: Mapping[Use, Reading],
        bucket: int,
        users: pa.Array | None = None,
        asked: Mapping[KeySet, pa.Array] | None = None,
    ) -> dict[Use, pa.Table]:
        """Events and tiles of logs at the keys of key sets; with `users` and the keys `asked`, only those.

        A partial is read once, for all key sets. Where there is much to read, what may be merged is merged on the way, so that a
        task holds a few days in full, however many it reads.
        """
        found: dict[Use, list[pa.Table]] = {
            use: _blocks(reading.blocks, bucket, "key", asked and asked[use.key_set]) for use, reading in wanted.items()
        }
        for source in dict.fromkeys(use.source for use in wanted):
            log = self.schema.event_log(source)
            own = {use: reading for use, reading in wanted.items() if use.source == source}
            columns = [name for use in own for name in cross_features.partial_columns(use.key_set, log)]
            days = sorted({day for reading in own.values() for day in reading.days})
            for rows, much in self._chunks(source, days, bucket, list(dict.fromkeys(columns)), users):
                for use, reading in own.items():
                    keys = asked and asked[use.key_set]
                    everything = len(reading.days) == len(days)
                    found[use] += self._at_keys(use.key_set, log, reading, rows, keys, much, everything)
        return {use: pa.concat_tables(tables) for use, tables in found.items()}

    def _chunks(
        self, source: str, days: list[int], bucket: int, columns: list[str], users: pa.Array | None
    ) -> Iterator[tuple[pa.Table, bool]]:
        """Whole days, about CHUNK rows at a time, and whether there is more than one chunk's worth; one chunk at least."""
        pending, much = [self.load(source, (), bucket, columns, users)], False
        for day in days:
            pending.append(self.load(source, (day,), bucket, columns, users))
            if sum(table.num_rows for table in pending) >= CHUNK:
                much = True
                yield pa.concat_tables(pending).combine_chunks(), much
                pending = []
        if pending:
            yield pa.concat_tables(pending).combine_chunks(), much

    def _at_keys(
        self,
        key_set: KeySet,
        log: EventLog,
        reading: Reading,
        rows: pa.Table,
        asked: pa.Array | None,
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
        # Rows that aren't merged always: a table of none tells the columns.
        for number in sorted({0, *np.unique(run_of[run_of > 0]).tolist()}):
            mine = run_of == number
            table = rows if mine.all() else rows.filter(pa.array(mine))
            table = cross_features.events_at_keys(key_set, log, table)
            if asked is not None:
                table = table.filter(pc.is_in(table.column("key"), value_set=asked))
            if reading.runs or reading.blocks:
                table = table.append_column("merged", pa.array(np.zeros(table.num_rows, np.int64)))
            if number:
                moment = start_of(reading.runs[number - 1][-1], self.schema.offset_ms)
                table = cross_features.tile(key_set, log, table, moment, reading.settled)
            yield table

    def rows(self, use: Use, reading: Reading, bucket: int, users: pa.Array | None = None) -> pa.Table:
        """Rows of one entry of a sequence; with `users`, only theirs. A history's are cut to its length day by day."""
        sequence = use.sequence
        assert sequence
        entry = sequence.events[use.kind]
        columns = sequences.columns_of(sequence, entry)

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
        return pa.concat_tables([*_blocks(reading.blocks, bucket, "u", users), *tables])


def _blocks(refs: Iterable[PartialRef], bucket: int, column: str, among: pa.Array | None) -> list[pa.Table]:
    """The bucket's rows of blocks; with `among`, those whose `column` is among its values."""
    tables = []
    for path in [Path(ref.folder, ref.files[bucket]) for ref in refs if bucket in ref.files]:
        # At once and in this thread: the files are small and many.
        table = pa.ipc.open_file(pa.py_buffer(path.read_bytes()), options=_UNTHREADED).read_all()
        tables.append(table if among is None else table.filter(pc.is_in(table.column(column), value_set=among)))
    return tables


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Many small files: opening a Parquet file takes longer than reading one of these.
    with pa.ipc.new_file(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table.combine_chunks())
    sync(path)


@dataclass(frozen=True)
class Maker:
    """Everything a task needs to make blocks of a bucket; travels to tasks by pickle."""

    reader: Reader
    missing: Mapping[Use, list[Recipe]]
    staging: str

    def make(self, bucket: int) -> Iterator[Piece]:
        """Map step: the bucket's file of every missing block."""
        for number, (use, recipes) in enumerate(self.missing.items()):
            for recipe in recipes:
                table = self._tile(use, recipe, bucket) if use.key_set else self._snapshot(use, recipe, bucket)
                path = Path(self.staging) / f"{number}-{recipe.last}-{bucket:05d}-{uuid.uuid4().hex[:12]}.arrow"
                if table.num_rows:
                    _write(table, path)
                row = (number, recipe.first, recipe.last, bucket, str(path) if table.num_rows else "", table.num_rows)
                columns = {name: [value] for name, value in zip(MADE.names, row, strict=True)}
                yield Piece(0, WRITTEN, pa.table(columns, schema=MADE))

    def _tile(self, use: Use, recipe: Recipe, bucket: int) -> pa.Table:
        assert use.key_set
        log = self.reader.schema.event_log(use.source)
        if recipe.stored:
            return self.reader.events({use: Reading((recipe.stored,))}, bucket)[use]
        if recipe.parts:
            rows = pa.concat_tables([self._tile(use, part, bucket) for part in recipe.parts])
        else:
            rows = self.reader.events({use: Reading((), recipe.days)}, bucket)[use]
        offset = self.reader.schema.offset_ms
        settled = start_of(recipe.last + 1 + cross_features.settling_days(log), offset)
        return cross_features.tile(use.key_set, log, rows, start_of(recipe.last, offset), settled)

    def _snapshot(self, use: Use, recipe: Recipe, bucket: int) -> pa.Table:
        """A period of days at a time, so that a task never holds the whole look-back."""
        assert use.sequence
        offset = self.reader.schema.offset_ms
        oldest, settled = start_of(recipe.first, offset), start_of(recipe.last + 1, offset)
        blocks = () if recipe.stored is None else (recipe.stored,)
        state = self.reader.rows(use, Reading(blocks), bucket)
        for at in range(0, len(recipe.days), PERIOD):
            days = recipe.days[at : at + PERIOD]
            # Only the first days of all have nothing before them.
            reading = Reading((), days, follows=bool(at or blocks), settled=settled)
            state = pa.concat_tables([state, self.reader.rows(use, reading, bucket)])
            state = sequences.newest(state, use.sequence.max_length, settled)
        return state.filter(pc.greater_equal(state.column("available"), oldest))

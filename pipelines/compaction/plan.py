"""What a build reads of past days, and what is worth making of them first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from genrank.pipelines import cross_features, sequences
from genrank.pipelines.compaction import sizes
from genrank.pipelines.compaction.records import FOLDER, Compacted
from genrank.pipelines.compaction.uses import SequenceUse, TileUse, Use, sequence_uses, tile_uses
from genrank.pipelines.days import day_number, dt_of
from genrank.pipelines.partials import Bucket, PartialRef
from genrank.schemas import EventLog, Schema


@dataclass(frozen=True)
class ReadPlan:
    """What a build reads for one use: compacted days, and days whose partials are read."""

    compacted: tuple[PartialRef, ...] = ()
    days: tuple[int, ...] = ()
    follows: bool = False
    """Whether days before `days` are dealt with: the one before it says what changed on the first of them."""
    runs: tuple[range, ...] = ()
    """Runs of days of which rows available before `settled` may be merged."""
    settled: int = 0
    """Start of the first day built, epoch ms."""


@dataclass(frozen=True)
class TileRecipe:
    """How a tile, or a history, of days `first` .. `last` is made."""

    first: int
    last: int
    stored: PartialRef | None = None
    """A tile: it is there already. A history: the one to go on from."""
    parts: tuple[TileRecipe, ...] = ()
    """A tile of several days: the tiles it is made of."""
    days: tuple[int, ...] = ()
    """The days whose partials are read."""


def aligned_runs(days: range) -> Iterator[range]:
    """The largest aligned runs of 1, 4 ... `LARGEST` days that make up `days`, in order."""
    at = days.start
    while at < days.stop:
        size = sizes.LARGEST
        while at % size or at + size > days.stop:
            size //= 4
        yield range(at, at + size)
        at += size


class CompactionPlan:
    """What a build of days `first` .. `last` takes from what is compacted under its output folder.

    Args:
        partials: source -> the partials of every day that matters to the build.
        keys: source -> day -> key of its partial.
        buckets: of the build.
        begun: buckets that the output folder was begun with, of what an earlier release compacted.
        make: whether what is missing is worth making.
    """

    def __init__(
        self,
        schema: Schema,
        out: Path,
        first: int,
        last: int,
        partials: Mapping[str, tuple[PartialRef, ...]],
        keys: Mapping[str, Mapping[int, str]],
        buckets: int,
        begun: int | None,
        make: bool,
    ) -> None:
        self.schema, self.root, self.first, self.last = schema, out / FOLDER, first, last
        self.partials = {name: {ref.day: ref for ref in refs} for name, refs in partials.items()}
        self.keys, self.buckets, self.begun, self.make = keys, buckets, begun, make
        self._start = schema.local_days.start(first)
        self.missing: dict[Use, list[TileRecipe]] = {}
        self.tiles = {use: self._tiles(use) for use in tile_uses(schema)}
        """What is read for cross features."""
        self.sequences = {use: self._sequence(use) for use in sequence_uses(schema)}
        """What is read for sequences."""

    def add(self, use: Use, made: list[PartialRef]) -> None:
        """Read what was made for a use."""
        if isinstance(use, TileUse):
            self.tiles[use] = replace(self.tiles[use], compacted=(*self.tiles[use].compacted, *made))
        else:
            self.sequences[use] = replace(self.sequences[use], compacted=(*self.sequences[use].compacted, *made))

    # ------------------------------------------------------------------ what a build reads

    def _tiles(self, use: TileUse) -> ReadPlan:
        log = self.schema.event_log(use.source)
        present = self.partials[use.source]
        back = self.schema.local_days.covering(use.key_set.windows(self.schema)[use.source])
        days = {day for day in range(self.first - back, self.last + 1) if day in present}
        runs = cross_features.ranges_of_tiles(use.key_set, self.schema, log, self.first, self.last)
        compacted = []
        for run in runs:
            if len(days.intersection(run)) < sizes.SHORTEST:
                continue
            for of in aligned_runs(run):
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
                    compacted.append(ref)
        return ReadPlan(tuple(compacted), tuple(sorted(days)), runs=tuple(runs), settled=self._start)

    def _recipe(self, use: TileUse, days: range) -> TileRecipe | None:
        """From the largest tiles that are stored."""
        if not any(day in self.partials[use.source] for day in days):
            return None
        ref = self._find(use, days, days)
        # Which of the users a merged row is of can't be learned from it any more.
        if ref and (not use.key_set.with_user(self.schema) or Bucket(0, self.buckets).whole(ref.buckets)):
            return TileRecipe(days[0], days[-1], stored=ref)
        if len(days) == 1:
            return TileRecipe(days[0], days[0], days=(days[0],))
        quarter = len(days) // 4
        quarters = [days[at : at + quarter] for at in range(0, len(days), quarter)]
        return TileRecipe(days[0], days[-1], parts=tuple(part for of in quarters if (part := self._recipe(use, of))))

    def _sequence(self, use: SequenceUse) -> ReadPlan:
        source = self.schema.source(use.source)
        present = self.partials[use.source]
        since = self.first - sequences.days_back(self.schema, use.sequence, source)
        if not isinstance(source, EventLog):
            # The snapshot before the first one in reach says whether that one changed anything.
            since = max((day for day in present if day < since), default=since)
        days = tuple(day for day in sorted(present) if since <= day <= self.last)
        if use.sequence.scope == "realtime":
            return ReadPlan((), days)
        # Nothing of the last day was available before it.
        days = tuple(day for day in days if day < self.last)
        due = self.first - self.first % sizes.PERIOD
        stored = self._newest(use, since, due)
        if self.make and sum(day < due for day in days) >= sizes.PERIOD and (stored is None or stored.day != due - 1):
            fresh = tuple(day for day in days if day < due and (stored is None or day > stored.day))
            self.missing[use] = [TileRecipe(since, due - 1, stored=stored, days=fresh)]
            return ReadPlan((), tuple(day for day in days if day >= due), follows=True, settled=self._start)
        if stored is None:
            return ReadPlan((), days, settled=self._start)
        return ReadPlan((stored,), tuple(day for day in days if day > stored.day), follows=True, settled=self._start)

    # ------------------------------------------------------------------ what is there

    def _find(self, use: Use, days: range, matters: range) -> PartialRef | None:
        """What is stored of just these days and agrees with the plan on `matters`."""
        keys = self.keys[use.source]
        present = self.partials[use.source]
        wanted = {dt_of(day): keys[day] for day in matters if day in present}
        for folder in self.root.joinpath(use.name(self.schema), f"dt={dt_of(days[-1])}").glob("[!.]*"):
            found = Compacted.read(folder)
            if found is None or (buckets := found.buckets or self.begun) is None:
                continue
            known = {dt: key for dt, key in found.covers.items() if dt >= dt_of(matters[0])}
            if known == wanted and (isinstance(use, SequenceUse) or found.first == dt_of(days[0])):
                return PartialRef(days[-1], str(folder), found.files, buckets, found.sha256)
        return None

    def _newest(self, use: SequenceUse, since: int, due: int) -> PartialRef | None:
        """The newest compacted history, as of day `due` or before, that agrees on every day from `since`."""
        folders = self.root.joinpath(use.name(self.schema)).glob("dt=*")
        lasts = sorted((day_number(folder.name.removeprefix("dt=")) for folder in folders), reverse=True)
        for last in lasts:
            if since <= last < due and (ref := self._find(use, range(last, last + 1), range(since, last + 1))):
                return ref
        return None

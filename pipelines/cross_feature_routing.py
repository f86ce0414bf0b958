"""Cross features of a bucket's exposures: where the user is among the keys, its bucket has all it takes; otherwise exposures and
events travel to a slot of their key's hash, are answered there, and the answers travel back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import pyarrow as pa

from genrank.pipelines import cross_features
from genrank.pipelines.arrays import int64s, taken
from genrank.pipelines.compaction.plan import ReadPlan
from genrank.pipelines.compaction.reader import PastReader
from genrank.pipelines.compaction.uses import TileUse
from genrank.pipelines.cross_features import KeySet, key_sets
from genrank.pipelines.engine import Piece
from genrank.pipelines.hot_keys import HotKeys, counted_of, frequent_keys
from genrank.pipelines.key_columns import KeyColumns
from genrank.pipelines.merge_scan import Int, Keys, mix, slot_of
from genrank.pipelines.messages import BucketMessage, KeyAnswers, KeyCount, KeyQueries, events_tag
from genrank.schemas import Schema


@dataclass(frozen=True)
class CrossFeatureRouter:
    """Everything a task needs to answer cross features at exposures of some days; travels to tasks by pickle.

    Slots below `buckets` are buckets of users; the next `key_slots` slots are those of keys.
    """

    schema: Schema
    buckets: int
    days: tuple[int, ...]
    reader: PastReader
    tiles: Mapping[TileUse, ReadPlan]
    """What is read of past days."""
    hot: HotKeys
    key_slots: int

    @cached_property
    def key_sets(self) -> list[KeySet]:
        """All cross features, by their keys."""
        return key_sets(self.schema)

    def count(self, bucket: int) -> Iterator[Piece]:
        """Map step: how many of a bucket's exposures the most frequent keys have, about."""
        own = self.schema.candidates.source
        for key_set in self.key_sets:
            # Queries at the day's start lie in no slice.
            if key_set.with_user(self.schema) or any(feature.as_of != "exposure" for feature in key_set.features):
                continue
            columns = cross_features.key_columns(key_set) or ["ts"]  # Without keys all exposures have one.
            shown = self.reader.load(own, self.days, bucket, columns)
            few = taken(shown, np.arange(0, shown.num_rows, counted_of(self.buckets)))
            keys, _ = cross_features.hashed_keys(key_set, cross_features.at_keys(key_set, few))
            yield KeyCount.pieces(frequent_keys(key_set.tag, keys, self.buckets))

    def route(self, bucket: int) -> Iterator[Piece]:
        """Map step: a bucket's exposures and events, to the slots of their keys."""
        with self.reader.several_times(bucket):
            yield from self._route(bucket)

    def _route(self, bucket: int) -> Iterator[Piece]:
        yield BucketMessage(bucket).piece()
        for key_set, queries in self._queries(bucket):
            for key, bounds in self._slices(key_set):
                at = np.flatnonzero(queries.key == key)
                queries.key[at] = mix(queries.key[at], np.searchsorted(bounds, queries.ts[at], "right") - 1)
            yield self._to_keys(queries.table(), KeyQueries.tag(key_set.tag))
        for use, events in self.reader.events(self._tiles(with_user=False), bucket, lean=True).items():
            events = self._sliced(use, events)
            if "merged" not in events.column_names and cross_features.seen_at_once(self.schema.event_log(use.source)):
                events = events.drop_columns(["available"])
            yield self._to_keys(events, events_tag(use.source, use.key_set.tag))

    def answer_queries(self, slot: int, tables: dict[str, pa.Table]) -> Iterator[Piece]:
        """Exchange step: answers travel back to the exposures' bucket; a bucket's own message passes through."""
        if slot < self.buckets:
            yield BucketMessage(slot).piece()
            return
        for key_set in self.key_sets:
            sent = tables.get(KeyQueries.tag(key_set.tag))
            if sent is None:
                continue
            queries = KeyQueries.of(sent)
            events = {}
            for log in key_set.windows(self.schema):
                use = TileUse(log, key_set)
                found = tables.get(events_tag(log, key_set.tag))
                events[log] = found if found is not None else self.reader.events({use: ReadPlan()}, 0, lean=True)[use]
            keys, start = Keys(queries.key), self._starts(queries.day.astype(np.int64))
            answered = cross_features.answer(key_set, self.schema, keys, queries.ts, start, events)
            answers = KeyAnswers(pa.array(queries.position), dict(answered))
            yield Piece(queries.bucket, answers.tag(key_set.tag), answers.table())

    def features(
        self, exposures: pa.Table, bucket: int, tables: Mapping[str, pa.Table], users: Int
    ) -> dict[str, pa.Array]:
        """Cross feature -> its value per exposure of a bucket, in the exposures' order.

        Args:
            tables: the answers that came back to the bucket.
            users: ids of the exposures' users.
        """
        of_user = [key_set for key_set in self.key_sets if key_set.with_user(self.schema)]
        timed = exposures.append_column("_start", pa.array(self._starts(int64s(exposures, "_day"))))
        shown = {
            key_set: cross_features.at_keys(
                key_set, timed.select(["ts", "_start", *cross_features.key_columns(key_set)])
            )
            for key_set in of_user
        }
        numbered: dict[str, Keys] = {}
        asked = {key_set: self._asked(key_set, rows, numbered) for key_set, rows in shown.items()}
        events = self.reader.events(self._tiles(with_user=True), bucket, pa.array(users), asked, lean=True)
        values: dict[str, pa.Array] = {}
        for key_set in self.key_sets:
            if key_set in asked:
                own = {use.source: rows for use, rows in events.items() if use.key_set == key_set}
                ts, start = (int64s(shown[key_set], name) for name in ("ts", "_start"))
                answers = dict(cross_features.answer(key_set, self.schema, asked[key_set], ts, start, own))
            else:
                answers = KeyAnswers.of(tables[KeyAnswers.tag(key_set.tag)]).in_order()
            values |= cross_features.of_exposures(key_set, answers, exposures)
        return values

    # ------------------------------------------------------------------ a bucket's exposures and events at keys

    def _queries(self, bucket: int) -> Iterator[tuple[KeySet, KeyQueries]]:
        own = self.schema.candidates.source
        for key_set in self.key_sets:
            if key_set.with_user(self.schema):
                continue
            shown = self.reader.load(own, self.days, bucket, ["ts", *cross_features.key_columns(key_set)])
            if not shown.num_rows:
                continue
            shown = cross_features.at_keys(key_set, shown)
            keys, _ = cross_features.hashed_keys(key_set, shown)
            yield (
                key_set,
                KeyQueries(
                    key=keys.copy(),
                    ts=int64s(shown, "ts"),
                    day=shown.column("_day").to_numpy(),
                    position=np.arange(shown.num_rows, dtype=np.int32),
                    bucket=np.full(shown.num_rows, bucket, np.int32),
                ),
            )

    def _asked(self, key_set: KeySet, shown: pa.Table, numbered: dict[str, Keys]) -> Keys | KeyColumns:
        """Keys of exposures in the way that the events they meet have theirs: a tile's have a hash alone.

        Args:
            numbered: columns of the exposures that were numbered for another key set; added to.
        """
        if any(plan.compacted for use, plan in self.tiles.items() if use.key_set == key_set):
            return Keys(cross_features.hashed_keys(key_set, shown)[0])
        columns, _ = cross_features.keys_of(key_set, shown)
        if key_set.listed:  # Rows are keys there.
            parts = [Keys(column) for column in columns]
        else:
            names = cross_features.key_columns(key_set)
            numbered |= {n: Keys(column) for n, column in zip(names, columns, strict=True) if n not in numbered}
            parts = [numbered[name] for name in names]
        return KeyColumns(parts, cross_features.most_codes(key_set, self.schema, len(self.days)))

    def _tiles(self, with_user: bool) -> dict[TileUse, ReadPlan]:
        """What is read for key sets with the user among their keys, or for the others."""
        return {use: plan for use, plan in self.tiles.items() if use.key_set.with_user(self.schema) == with_user}

    def _slices(self, key_set: KeySet) -> Iterator[tuple[int, Int]]:
        """Each hot key and the bounds of its slices: a slice is a key of its own, in a slot of its own."""
        local_days = self.schema.local_days
        first, last = local_days.start(self.days[0]), local_days.start(self.days[-1] + 1)
        for key, number in self.hot.get(key_set.tag, {}).items():
            yield key, cross_features.slices(first, last, number)

    def _sliced(self, use: TileUse, events: pa.Table) -> pa.Table:
        """Events with those of hot keys dealt out to the keys' slices."""
        if use.key_set.tag not in self.hot:
            return events
        log = self.schema.event_log(use.source)
        events = cross_features.mergeable(use.key_set, log, events)
        keys = int64s(events, "key")
        hot = np.isin(keys, list(self.hot[use.key_set.tag]))
        parts = [events.filter(pa.array(~hot))]
        for key, bounds in self._slices(use.key_set):
            own = events.filter(pa.array(keys == key))
            for number, (begin, end) in enumerate(pairwise(bounds.tolist())):
                part = cross_features.slice_of_events(use.key_set, self.schema, log, own, begin, end)
                name = mix(np.full(part.num_rows, key), np.full(part.num_rows, number))
                parts.append(part.set_column(part.column_names.index("key"), "key", pa.array(name)))
        return pa.concat_tables(parts)

    def _to_keys(self, rows: pa.Table, tag: str) -> Piece:
        return Piece(slot_of(int64s(rows, "key"), self.key_slots) + np.int32(self.buckets), tag, rows)

    def _starts(self, days: Int) -> Int:
        """Epoch ms of each day's start."""
        return self.schema.local_days.starts(days)

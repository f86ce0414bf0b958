"""Dynamic vocabularies: ids get rows as training meets them, and lose them to others when the table is full.

An open-addressing map (kernels/idmap.py) takes every id that was ever seen to an entry: how often, when last, and its row if it
has one. All operations are vectorised; a batch costs O(batch), evictions are amortised. What happens depends on which ids were
seen when, and on nothing else: not on the device, on the order inside a batch, or on how ids collide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from genrank.kernels.idmap import TOMBSTONE, IdMap, unique_inverse_counts
from genrank.schemas.base import parse_duration
from genrank.schemas.ids import MISSING_ID, MISSING_ROW, SPECIAL_ROWS, UNKNOWN_ROW
from genrank.schemas.table import LogicalTable
from genrank.schemas.vocabularies import Dynamic
from genrank.tokenization.replicas import Replicas

EVICTED_SHARE = 64
"""A full table evicts at least 1/64 of its rows at once: choosing victims then costs O(1) per new id."""
_STEP_BITS = 40
_COUNT_LIMIT = (1 << (62 - _STEP_BITS)) - 1


@dataclass
class Entries:
    """What is known of each id, in no order: what a checkpoint keeps."""

    ids: Tensor
    """[E] int64."""
    rows: Tensor
    """[E] int64: logical row, -1 while it has none."""
    counts: Tensor
    """[E] int64: sightings."""
    steps: Tensor
    """[E] int64: the last training step that saw it."""
    times: Tensor
    """[E] int64 epoch ms: the time of that step's batch."""

    @classmethod
    def empty(cls, size: int, device: torch.device | str) -> Entries:
        """Entries that say nothing."""
        return cls(*(torch.full((size,), value, dtype=torch.int64, device=device) for value in (0, -1, 0, 0, 0)))

    def take(self, index: Tensor) -> Entries:
        """Some of them."""
        return Entries(*(getattr(self, field.name)[index] for field in fields(self)))


class AnyVocabulary(Protocol):
    """`DynamicVocabulary`, or on a GPU `tokenization.device_vocabulary.DeviceVocabulary`: the same rows and statistics from the same ids."""

    @property
    def device(self) -> torch.device:
        """Where ids and rows lie."""

    @property
    def step(self) -> int:
        """Training steps so far."""

    @property
    def next_row(self) -> int:
        """Rows from here on have never been given."""

    def __len__(self) -> int:
        """Ids that have a row."""

    def rows_of(self, ids: Tensor) -> Tensor:
        """[N] int64 ids -> [N] int64 logical rows, changing nothing: evaluation."""

    def answer(
        self, asked: Sequence[Asked], now: Tensor | None, replicas: Replicas | None
    ) -> list[tuple[Tensor, Tensor]]:
        """See `answers`, of vocabularies of this class."""

    def state(self) -> tuple[int, Entries]:
        """The training step and every entry, ascending by id: equal for equal histories."""

    def load(self, step: int, entries: Entries) -> None:
        """Goes on from a `state`, also of a table with less capacity.

        Raises:
            ValueError: an entry's row is beyond this table's capacity.
        """


class Asked(NamedTuple):
    """The ids of a batch for one vocabulary."""

    vocabulary: AnyVocabulary
    ids: Tensor
    """[N] int64; what they hold afterwards is undefined."""
    start: int
    """First physical row of the table."""


def answers(
    asked: Sequence[Asked], now: Tensor | None, replicas: Replicas | None = None
) -> list[tuple[Tensor, Tensor]]:
    """A batch's ids to [N] int64 physical rows; and [K] int64 physical rows that got a new owner, whose weights and optimizer state must be reset
    before they're read; on a GPU those are followed by -1.

    Args:
        asked: of one kind of vocabulary.
        now: [] int64 epoch ms of the batch: ids are counted, admitted and evicted on the way; None: evaluation, which changes nothing.
        replicas: ranks that keep them, too; None: there are no others.
    """
    return asked[0].vocabulary.answer(asked, now, replicas) if asked else []


class DeclaredVocabulary:
    """What either kind knows of its table, and how many training steps there were."""

    def __init__(self, table: LogicalTable, device: torch.device | str) -> None:
        assert isinstance(table.vocabulary, Dynamic)
        self.name = table.name
        self.vocabulary = table.vocabulary
        self.max_age = parse_duration(self.vocabulary.max_age) if self.vocabulary.max_age else None
        self.device = torch.device(device)
        self.step = 0


class DynamicVocabulary(DeclaredVocabulary):
    """id -> row of one dynamic logical table, which grows as ids appear, up to its capacity.

    An id gets a row at its `admit_after`-th sighting; until then, and when there is no row to be had, it reads the unknown row.
    When the table is full, rows seen longest ago (`evict="age"`) or least often (`evict="frequency"`) are evicted, never those of
    the current batch. An evicted id is forgotten. Ids without a row are remembered up to the table's capacity, newest first.
    """

    def __init__(self, table: LogicalTable, device: torch.device | str = "cpu") -> None:
        super().__init__(table, device)
        self.map = IdMap(1024, self.device)
        self.entries = Entries.empty(0, self.device)
        self.owner = torch.full((SPECIAL_ROWS,), -1, dtype=torch.int64, device=self.device)
        """Entry of each logical row, -1 if it's free; it doubles as rows are given out."""
        self.next_row = SPECIAL_ROWS
        """Rows from here on have never been given."""
        self.free = torch.empty(0, dtype=torch.int64, device=self.device)
        """Rows below that are without an owner, ascending; the lowest is given first."""

    def __len__(self) -> int:
        """Ids that have a row."""
        return self.next_row - SPECIAL_ROWS - len(self.free)

    # ------------------------------------------------------------------ the two questions a lookup asks

    def rows_of(self, ids: Tensor) -> Tensor:
        """[N] int64 ids -> [N] int64 logical rows, changing nothing: evaluation."""
        entries = self.map.lookup(_allowed(ids))
        rows = torch.full_like(ids, UNKNOWN_ROW)
        seen = entries >= 0
        rows[seen] = self.entries.rows[entries[seen]]
        rows[rows < 0] = UNKNOWN_ROW
        return rows.masked_fill_(ids == MISSING_ID, MISSING_ROW)

    def answer(
        self, asked: Sequence[Asked], now: Tensor | None, replicas: Replicas | None
    ) -> list[tuple[Tensor, Tensor]]:
        """As `answers`."""
        found = []
        for vocabulary, ids, start in asked:
            assert isinstance(vocabulary, DynamicVocabulary)
            if now is None:
                found.append((vocabulary.rows_of(ids) + start, ids[:0]))
            else:
                rows, given = vocabulary.observe(ids, int(now) if len(ids) else 0, replicas)
                found.append((rows + start, given + start))
        return found

    def observe(self, ids: Tensor, now: int, replicas: Replicas | None = None) -> tuple[Tensor, Tensor]:
        """Counts one sighting of every id, admits and evicts: training.

        Args:
            ids: [N] int64; every occurrence counts, missing ones don't.
            now: epoch ms of the batch, what `max_age` is measured by.
            replicas: ranks that keep replicas of this vocabulary; each sees the sightings of all.

        Returns:
            [N] int64 logical rows; and [K] int64 logical rows that got a new owner, whose weights and optimizer state must be
            reset before they're read.
        """
        distinct, counts = distinct_sightings(ids)
        if replicas is not None:
            distinct, counts, now = all_sightings(distinct, counts, now, replicas.group)
        given = self.update(distinct, counts, now)
        return self.rows_of(ids), given

    def update(self, ids: Tensor, counts: Tensor, now: int) -> Tensor:
        """Counts `counts[k]` sightings of distinct, ascending ids; returns the logical rows that got a new owner, ascending."""
        self.step += 1
        self._expire(now)
        at, created = self.map.insert(ids) if len(ids) else (ids, ids)
        self._make_entries(self.map.next_row)
        known = self.entries
        known.ids[at] = ids
        known.rows[created], known.counts[created] = -1, 0
        known.counts[at] += counts
        known.steps[at], known.times[at] = self.step, now
        waiting = at[(known.rows[at] < 0) & (known.counts[at] >= self.vocabulary.admit_after)]
        free = self.vocabulary.capacity - len(self)
        if len(waiting) > free:
            self._evict(len(waiting) - free)
        given = self._give(len(waiting))
        known.rows[waiting[: len(given)]] = given
        self.owner[given] = waiting[: len(given)]
        self._forget_pending()
        return given

    def _give(self, wanted: int) -> Tensor:
        """At most so many rows, ascending."""
        again, self.free = self.free[:wanted], self.free[wanted:]
        end = min(self.next_row + wanted - len(again), self.vocabulary.capacity + SPECIAL_ROWS)
        fresh = torch.arange(self.next_row, end, device=self.device)
        self._use_rows(end)
        return torch.cat([again, fresh])

    def _use_rows(self, end: int) -> None:
        have = len(self.owner)
        if end > have:
            self.owner = torch.cat([self.owner, self.owner.new_full((max(end, 2 * have) - have,), -1)])
        self.next_row = end

    # ------------------------------------------------------------------ eviction

    def _evict(self, needed: int) -> None:
        rows = (self.owner >= 0).nonzero().squeeze(1)
        at = self.owner[rows]
        old = self.entries.steps[at] < self.step
        rows, at = rows[old], at[old]
        wanted = max(needed, self.vocabulary.capacity // EVICTED_SHARE)
        if wanted < len(rows):
            step, count = self.entries.steps[at], self.entries.counts[at].clamp(max=_COUNT_LIMIT)
            by_age = self.vocabulary.evict == "age"
            score = step * (_COUNT_LIMIT + 1) + count if by_age else (count << _STEP_BITS) + step
            rows = rows[_lowest(score, wanted)]
        self._release(rows)

    def _expire(self, now: int) -> None:
        if self.max_age is not None:
            rows = (self.owner >= 0).nonzero().squeeze(1)
            self._release(rows[self.entries.times[self.owner[rows]] < now - self.max_age])

    def _release(self, rows: Tensor) -> None:
        if len(rows):
            self.map.evict(self.entries.ids[self.owner[rows]])
            self.owner[rows] = -1
            self.free = torch.cat([self.free, rows]).sort().values

    def _forget_pending(self) -> None:
        pending = len(self.map) - len(self)
        if pending > self.vocabulary.capacity:
            ids, at = self.map.items()
            waiting = self.entries.rows[at] < 0
            ids, at = ids[waiting], at[waiting]
            score = self.entries.steps[at] * (_COUNT_LIMIT + 1) + self.entries.counts[at].clamp(max=_COUNT_LIMIT)
            by_id = ids.argsort()
            self.map.evict(ids[by_id][_lowest(score[by_id], pending - self.vocabulary.capacity // 2)])

    def _make_entries(self, size: int) -> None:
        have = len(self.entries.ids)
        if size > have:
            more = Entries.empty(max(size, 2 * have) - have, self.device)
            joined = (torch.cat([getattr(e, field.name) for e in (self.entries, more)]) for field in fields(Entries))
            self.entries = Entries(*joined)

    # ------------------------------------------------------------------ state

    def state(self) -> tuple[int, Entries]:
        """The training step and every entry, ascending by id: equal for equal histories."""
        ids, at = self.map.items()
        return self.step, self.entries.take(at[ids.argsort()])

    def load(self, step: int, entries: Entries) -> None:
        """Goes on from a `state`, also of a table with less capacity.

        Raises:
            ValueError: an entry's row is beyond this table's capacity.
        """
        if len(entries.rows) and int(entries.rows.max()) >= self.vocabulary.capacity + SPECIAL_ROWS:
            raise ValueError(f"dynamic table {self.name} holds row {int(entries.rows.max())}, beyond its capacity")
        self.step = step
        entries = Entries(*(getattr(entries, field.name).to(self.device) for field in fields(Entries)))
        self.map = IdMap(max(len(entries.ids), 1024), self.device)
        at = self.map.insert(entries.ids).rows
        self.entries = entries.take(at.argsort())
        owned = (self.entries.rows >= 0).nonzero().squeeze(1)
        self.owner.fill_(-1)
        self._use_rows(int(self.entries.rows.max()) + 1 if len(owned) else SPECIAL_ROWS)
        self.owner[self.entries.rows[owned]] = owned
        self.free = SPECIAL_ROWS + (self.owner[SPECIAL_ROWS : self.next_row] < 0).nonzero().squeeze(1)


def distinct_sightings(ids: Tensor) -> tuple[Tensor, Tensor]:
    """[N] int64 ids -> distinct ones, ascending, without missing ones, and how often each occurs."""
    distinct, _, counts = unique_inverse_counts(_allowed(ids[ids != MISSING_ID]))
    return distinct, counts


def all_sightings(ids: Tensor, counts: Tensor, now: int, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, int]:
    """What all ranks saw: distinct ascending ids with summed counts, and the newest time."""
    world = dist.get_world_size(group)
    size = torch.tensor([len(ids), now], device=ids.device)
    sizes = [torch.empty_like(size) for _ in range(world)]
    dist.all_gather(sizes, size, group=group)
    longest = max(int(each[0]) for each in sizes)
    own = torch.zeros((2, longest), dtype=torch.int64, device=ids.device)
    own[0, : len(ids)], own[1, : len(ids)] = ids, counts
    seen = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(seen, own, group=group)
    every = torch.cat([each[:, : int(n[0])] for each, n in zip(seen, sizes, strict=True)], 1)
    distinct, inverse = torch.unique(every[0], return_inverse=True)
    return distinct, torch.zeros_like(distinct).index_add_(0, inverse, every[1]), max(int(each[1]) for each in sizes)


def _lowest(score: Tensor, k: int) -> Tensor:
    """Positions of the k lowest scores, ties by position; ascending positions."""
    limit = score.kthvalue(k).values
    below, equal = (score < limit).nonzero().squeeze(1), (score == limit).nonzero().squeeze(1)
    return torch.cat([below, equal[: k - len(below)]]).sort().values


def _allowed(ids: Tensor) -> Tensor:
    """The two smallest int64 mean something to the map; as ids they're read as the third."""
    return ids.clamp(min=TOMBSTONE + 1)

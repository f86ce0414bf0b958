"""Dynamic vocabularies: an open-addressing map from ids to rows, in front of a plain table.

Every operation is vectorised and O(batch), evictions are amortised. Results don't depend on the device, on how keys collide or
on how a batch is ordered: rows are handed out in order of (logical table, id).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from schemas.base import parse_duration
from schemas.vocabulary import MISSING_ID, MISSING_ROW, SPECIAL_ROWS, UNKNOWN_ROW, Dynamic
from tokenization.features import mix
from tokenization.plan import MergedTable

EMPTY = -1
TOMBSTONE = -2
EVICTED_SHARE = 64
"""A full table evicts at least 1/64 of its rows at once, so that choosing victims costs O(1) per new id."""


@dataclass
class IdMapState:
    """What one logical table remembers, in no order: what a checkpoint keeps."""

    ids: Tensor
    """[K] int64."""
    rows: Tensor
    """[K] int64 logical row, -1 while not admitted."""
    counts: Tensor
    """[K] int64 sightings."""
    last_step: Tensor
    """[K] int64 training step of the last sighting."""
    last_time: Tensor
    """[K] int64 epoch ms of the last sighting."""


class IdMap:
    """(logical table, id) -> physical row of one dynamic merged table.

    An id gets a row at its `admit_after`-th sighting and reads the unknown row until then. When a table is full, rows seen
    longest ago (`evict="age"`) or least often (`"frequency"`, then longest ago) make room; ids of the current batch never do.
    The replica of every rank is the same if every rank sees the same ids.
    """

    def __init__(self, table: MergedTable, device: torch.device | str = "cpu") -> None:
        self.table = table
        self.device = torch.device(device)
        self.vocabularies = [m.vocabulary for m in table.members if isinstance(m.vocabulary, Dynamic)]
        self.starts = torch.tensor(table.starts, device=self.device)
        self.max_ages = [parse_duration(v.max_age) if v.max_age else None for v in self.vocabularies]
        self.admit_after = torch.tensor([v.admit_after for v in self.vocabularies], device=self.device)
        self.step = 0
        capacity = sum(v.capacity for v in self.vocabularies)
        pending = sum(v.capacity for v in self.vocabularies if v.admit_after > 1)
        slots = 1 << (2 * (capacity + pending) - 1).bit_length()
        self._allocate(max(slots, 64))
        self.row_slot = torch.full((table.rows,), EMPTY, device=self.device)
        """Slot of the key that owns a physical row; EMPTY if free."""
        self.free = [
            torch.arange(start + m.rows - 1, start + SPECIAL_ROWS - 1, -1, device=self.device)
            for start, m in zip(table.starts, table.members, strict=True)
        ]
        """Free physical rows per logical table; the next one is the last."""
        self.pending = [0] * len(table.members)
        """Keys without a row, per logical table."""

    def _allocate(self, slots: int) -> None:
        def full(value: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.full((slots,), value, dtype=dtype, device=self.device)

        self.slot_table = full(EMPTY, torch.int32)
        self.slot_id = full(0)
        self.slot_row = full(EMPTY)
        self.slot_count = full(0)
        self.slot_step = full(0)
        self.slot_time = full(0)
        self.tombstones = 0

    # ------------------------------------------------------------------ the two questions a lookup asks

    def rows_of(self, tables: Tensor, ids: Tensor) -> Tensor:
        """[N] int64 physical rows, changing nothing: evaluation. `tables` [N] are positions of logical tables, `ids` [N] int64."""
        slots = find(self.slot_table, self.slot_id, tables, ids)
        rows = torch.where(slots >= 0, self.slot_row[slots.clamp(min=0)], EMPTY)
        return self._or_special(rows, tables, ids)

    def observe(self, tables: Tensor, ids: Tensor, now: int) -> tuple[Tensor, Tensor]:
        """Counts one sighting of every id, admits and evicts: training.

        Args:
            tables, ids: [N] int64 as in `rows_of`; every occurrence counts.
            now: epoch ms of the batch, what `max_age` is measured by.

        Returns:
            [N] int64 physical rows, and [E] int64 physical rows that changed hands: their weights and optimizer state must be
            reset before they are read.
        """
        keys = _unique(tables, ids, len(self.free))
        freed = self.update(keys.tables, keys.ids, keys.counts, now)
        return self._or_special(self._rows(keys)[keys.inverse], tables, ids), freed

    def update(self, tables: Tensor, ids: Tensor, counts: Tensor, now: int) -> Tensor:
        """Counts `counts[k]` sightings of unique keys sorted by (table, id), none missing; returns the rows that changed hands."""
        self.step += 1
        expired = self._expire(now)
        self._make_slots(len(ids))
        slots = find(self.slot_table, self.slot_id, tables, ids)
        absent = slots < 0
        if bool(absent.any()):
            slots[absent] = self._insert(tables[absent], ids[absent])
        self.slot_count[slots] += counts
        self.slot_step[slots] = self.step
        self.slot_time[slots] = now
        waiting = (self.slot_row[slots] < 0) & (self.slot_count[slots] >= self.admit_after[tables])
        given = [self._admit(position, slots[waiting & (tables == position)]) for position in range(len(self.free))]
        return torch.cat([expired, *given]).unique()

    # ------------------------------------------------------------------ rows

    def _rows(self, keys: _Keys) -> Tensor:
        slots = find(self.slot_table, self.slot_id, keys.tables, keys.ids)
        return torch.where(slots >= 0, self.slot_row[slots.clamp(min=0)], EMPTY)

    def _or_special(self, rows: Tensor, tables: Tensor, ids: Tensor) -> Tensor:
        starts = self.starts[tables]
        rows = torch.where(rows >= 0, rows, starts + UNKNOWN_ROW)
        return torch.where(ids == MISSING_ID, starts + MISSING_ROW, rows)

    def _admit(self, position: int, slots: Tensor) -> Tensor:
        """Gives rows to keys in order, evicting if it must; keys beyond the capacity go on waiting. Returns the rows given."""
        if len(slots) == 0:
            return slots
        if len(slots) > len(self.free[position]):
            self._evict(position, len(slots) - len(self.free[position]))
        free = self.free[position]
        given = min(len(slots), len(free))
        if given == 0:
            return slots[:0]
        rows = free[len(free) - given :].flip(0)
        self.free[position] = free[: len(free) - given]
        self.slot_row[slots[:given]] = rows
        self.row_slot[rows] = slots[:given]
        self.pending[position] -= given
        return rows

    def _evict(self, position: int, needed: int) -> None:
        vocabulary = self.vocabularies[position]
        rows = self._occupied(position)
        slots = self.row_slot[rows]
        old = self.slot_step[slots] < self.step
        rows, slots = rows[old], slots[old]
        wanted = min(len(rows), max(needed, vocabulary.capacity // EVICTED_SHARE))
        # Least often or longest ago first, ties by the other and then by row: a total order.
        order = torch.argsort(self.slot_step[slots] if vocabulary.evict == "frequency" else self.slot_count[slots], stable=True)
        first = self.slot_count[slots] if vocabulary.evict == "frequency" else self.slot_step[slots]
        order = order[torch.argsort(first[order], stable=True)]
        self._release(position, rows[order[:wanted]])

    def _expire(self, now: int) -> Tensor:
        """Evicts rows unseen for longer than their table's `max_age`; returns none: a row is reset when it's given again."""
        for position, max_age in enumerate(self.max_ages):
            if max_age is not None:
                rows = self._occupied(position)
                self._release(position, rows[self.slot_time[self.row_slot[rows]] < now - max_age])
        return torch.empty(0, dtype=torch.int64, device=self.device)

    def _release(self, position: int, rows: Tensor) -> None:
        slots = self.row_slot[rows]
        self._remove(slots)
        self.row_slot[rows] = EMPTY
        self.free[position] = torch.cat([self.free[position], rows.flip(0)])

    def _occupied(self, position: int) -> Tensor:
        start, end = self.table.range_of(self.table.members[position].name)
        return start + (self.row_slot[start:end] >= 0).nonzero().squeeze(1)

    # ------------------------------------------------------------------ slots

    def _insert(self, tables: Tensor, ids: Tensor) -> Tensor:
        slots = insert(self.slot_table, self.slot_id, tables, ids)
        self.slot_row[slots] = EMPTY
        self.slot_count[slots] = 0
        for position, new in enumerate(torch.bincount(tables, minlength=len(self.free)).tolist()):
            self.pending[position] += new
        return slots

    def _remove(self, slots: Tensor) -> None:
        self.slot_table[slots] = TOMBSTONE
        self.tombstones += len(slots)

"""Dynamic vocabularies on a GPU: the contract of `tokenization.dynamic`, and none of its steps waits for the device.

Everything lies on the device in arrays that are as large as the vocabulary may become; shapes depend on the capacity and on how many ids a
batch has, never on which. Rows, statistics and checkpoints are those of `DynamicVocabulary`, to the last bit. The host asks when it needs to know:
for a checkpoint, or how many ids there are for the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from genrank.kernels.launch import to_device
from genrank.kernels.vocabulary import gpu
from genrank.kernels.vocabulary.layout import EMPTY, TOMBSTONE, Counter, VocabularyPlace
from genrank.schemas.ids import MISSING_ID, SPECIAL_ROWS
from genrank.schemas.table import LogicalTable
from genrank.tokenization.dynamic import (
    EVICTED_SHARE,
    Asked,
    DeclaredVocabulary,
    Entries,
)
from genrank.tokenization.replicas import Replicas

MAX_LOAD = 0.75
"""Slots in use (tombstones included) before all are filled anew."""
FIRST_ROOM = 256


class DeviceVocabulary(DeclaredVocabulary):
    """id -> row of one dynamic logical table, as `tokenization.dynamic.DynamicVocabulary`, whose arrays a step changes by kernels."""

    def __init__(self, table: LogicalTable, device: torch.device | str) -> None:
        super().__init__(table, device)
        self._clear(FIRST_ROOM)

    def _clear(self, room: int) -> None:
        capacity = self.vocabulary.capacity
        self.room = room
        """Ids that a step may bring; with `capacity` ids without a row, which stay, so many entries lie beyond the rows."""
        self.excess = 0
        """Ids without a row beyond `capacity`, until the next step forgets them."""
        self.counters = torch.zeros(len(Counter), dtype=torch.int64, device=self.device)
        self.counters[Counter.FREE : Counter.FREE + 1].fill_(capacity + room)
        entries = 2 * capacity + room
        self.ids = torch.full((entries,), EMPTY, dtype=torch.int64, device=self.device)
        self.counts, self.steps, self.times = (torch.zeros_like(self.ids) for _ in range(3))
        self.stack = torch.arange(capacity, entries, dtype=torch.int32, device=self.device)
        self._make_slots()
        self.keys.fill_(EMPTY)

    def _make_slots(self) -> None:
        """At least three for two entries: half as many are free when they have been filled anew."""
        slots = 1 << (3 * len(self.ids) // 2 - 1).bit_length()
        self.keys = torch.empty(slots, dtype=torch.int64, device=self.device)
        self.places = torch.zeros(slots, dtype=torch.int32, device=self.device)

    def __len__(self) -> int:
        """Ids that have a row. Waits for the device."""
        return int(self.counters[Counter.ROWS])

    @property
    def next_row(self) -> int:
        """Rows from here on have never been given. Waits for the device."""
        return int(self.counters[Counter.HIGH]) + SPECIAL_ROWS

    # ------------------------------------------------------------------ the two questions a lookup asks

    def rows_of(self, ids: Tensor) -> Tensor:
        """[N] int64 ids -> [N] int64 logical rows, changing nothing: evaluation."""
        asked = Asked(self, ids.clone(memory_format=torch.contiguous_format), 0)
        return self.answer([asked], None, None)[0][0]

    def observe(self, ids: Tensor, now: int, replicas: Replicas | None = None) -> tuple[Tensor, Tensor]:
        """As `DynamicVocabulary.observe`; the rows that got a new owner are followed by -1, as many as there might have been more."""
        asked = Asked(self, ids.clone(memory_format=torch.contiguous_format), 0)
        rows, given = self.answer([asked], to_device([now], self.device)[0], replicas)[0]
        return rows, given

    def answer(
        self, asked: Sequence[Asked], now: Tensor | None, replicas: Replicas | None
    ) -> list[tuple[Tensor, Tensor]]:
        """As `tokenization.dynamic.answers`; rows take the place of ids. What several ranks saw goes from device to device."""
        asked = [each._replace(ids=each.ids.contiguous()) for each in asked]
        if now is None:
            places = [_ours(each).place(each) for each in asked]
            gpu.look_up(places, gpu.send(places, self.device))
            return [(each.ids, each.ids[:0]) for each in asked]
        if replicas is None:
            return _observe(asked, [each.ids.sort().values for each in asked], [now] * len(asked))
        ids, times = replicas.join([each.ids for each in asked], now, MISSING_ID)
        return _observe(asked, [each.sort().values for each in ids], times, everywhere=True)

    def place(
        self, asked: Asked, first: int = 0, count: int = 0, now: int = 0, expires: bool = False
    ) -> VocabularyPlace:
        """For the kernels, in a step of `count` ordered ids from `first` on, or in a lookup alone. now: where its time lies."""
        arrays = (self.keys, self.places, self.ids, self.counts, self.steps, self.times, self.stack, self.counters)
        choices = (self.vocabulary.admit_after, int(self.vocabulary.evict == "age"))
        address = asked.ids.data_ptr()
        return VocabularyPlace._make(
            (
                *(array.data_ptr() for array in arrays),
                *(
                    len(self.keys) - 1,
                    int(MAX_LOAD * len(self.keys)),
                    self.vocabulary.capacity,
                    len(self.ids),
                    *choices,
                ),
                *(-1 if self.max_age is None or not expires else self.max_age, self.step),
                *(first, count, now, address, address, len(asked.ids), asked.start),
            )
        )

    def begin(self, ids: int) -> None:
        """A step of at most so many ids: arrays that hold them."""
        self.step += 1
        more = ids + self.excess - self.room
        self.excess = 0
        if more <= 0:
            return
        more = (1 << (self.room + more - 1).bit_length()) - self.room
        self.room += more
        first = len(self.ids)
        self.ids = torch.cat([self.ids, self.ids.new_full((more,), EMPTY)])
        self.counts, self.steps, self.times = (
            torch.cat([each, each.new_zeros(more)]) for each in (self.counts, self.steps, self.times)
        )
        # Below those that are free already, which lie at the beginning.
        added = torch.arange(first, first + more, dtype=torch.int32, device=self.device)
        self.stack = torch.cat([added, self.stack])
        self.counters[Counter.FREE : Counter.FREE + 1].add_(more)
        if MAX_LOAD * len(self.keys) < len(self.ids):
            self._make_slots()
            self.counters[Counter.USED : Counter.USED + 1].fill_(len(self.keys))

    # ------------------------------------------------------------------ state

    def state(self) -> tuple[int, Entries]:
        """As `DynamicVocabulary.state`. Waits for the device."""
        at = (self.ids > TOMBSTONE).nonzero().squeeze(1)
        at = at[self.ids[at].argsort()]
        rows = torch.where(at < self.vocabulary.capacity, at + SPECIAL_ROWS, -1)
        return self.step, Entries(self.ids[at], rows, self.counts[at], self.steps[at], self.times[at])

    def load(self, step: int, entries: Entries) -> None:
        """As `DynamicVocabulary.load`.

        Raises:
            ValueError: an entry's row is beyond this table's capacity.
        """
        capacity = self.vocabulary.capacity
        if len(entries.rows) and int(entries.rows.max()) >= capacity + SPECIAL_ROWS:
            raise ValueError(f"dynamic table {self.name} holds row {int(entries.rows.max())}, beyond its capacity")
        entries = Entries(*(getattr(entries, field.name).to(self.device) for field in fields(Entries)))
        self.step = step
        owned = entries.rows >= 0
        pending = int((~owned).sum())
        excess = max(0, pending - capacity)
        self._clear(max(FIRST_ROOM, excess))
        self.excess = excess
        at = torch.where(owned, entries.rows - SPECIAL_ROWS, capacity + (~owned).cumsum(0) - 1)
        self.ids[at] = entries.ids
        self.counts[at], self.steps[at], self.times[at] = entries.counts, entries.steps, entries.times
        self.stack = torch.arange(len(self.ids) - 1, capacity - 1, -1, dtype=torch.int32, device=self.device)
        counters = [0] * len(Counter)
        counters[Counter.FREE] = len(self.stack) - pending
        counters[Counter.ROWS] = len(entries.ids) - pending
        counters[Counter.HIGH] = int(entries.rows.max()) - SPECIAL_ROWS + 1 if len(entries.ids) > pending else 0
        counters[Counter.REBUILD] = 1
        self.counters.copy_(torch.tensor(counters))
        places = [self.place(Asked(self, self.ids[:0], 0))]
        gpu.fill_slots(places, gpu.send(places, self.device))


def _observe(
    asked: Sequence[Asked], ordered: Sequence[Tensor], times: Sequence[Tensor], *, everywhere: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """A step of each vocabulary.

    Args:
        ordered: of each, ascending ids, an occurrence each; missing ones count for nothing.
        times: of each, [] int64 epoch ms.
        everywhere: whether the ids are all ranks'.
    """
    places, first = [], 0
    for each, ids, now in zip(asked, ordered, times, strict=True):
        vocabulary = _ours(each)
        vocabulary.begin(len(ids))
        places.append(vocabulary.place(each, first, len(ids), now.data_ptr(), everywhere or bool(len(each.ids))))
        first += len(ids)
    joined = torch.cat(list(ordered)) if len(ordered) > 1 else ordered[0]
    sent = gpu.send(places, joined.device)
    given = gpu.observe(places, sent, joined, EVICTED_SHARE)
    gpu.look_up(places, sent)
    return [
        (each.ids, own)
        for each, own in zip(asked, torch.split(given, [place.brought for place in places]), strict=True)
    ]


def _ours(asked: Asked) -> DeviceVocabulary:
    assert isinstance(asked.vocabulary, DeviceVocabulary)
    return asked.vocabulary

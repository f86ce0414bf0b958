"""Users whose keys and values are kept between requests: least recently used first out, in bounded memory, on the device and on its host.

An entry is of one user, window and checkpoint: every layer's keys and values of the user's and history's tokens, which nothing later
reaches, and of the realtime events so far, in the order in which they became available. Where histories append (`serving.history_append`)
one entry serves a user in every window. `serving.engine` fills and reads it, and uses what an entry was made of as far as a request holds it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from genrank.schemas.errors import UserError
from genrank.serving.history_append import UserRows
from genrank.serving.stored_keys import Storage, StoredKeys


class Key(NamedTuple):
    """Whose state, by what."""

    checkpoint: str
    """Of `LoadedModel.checkpoint`: weights, and the schema they were trained with."""
    user: int
    window_start: int | None
    """None where histories append: the next window goes on with the entry."""


class Layers(NamedTuple):
    """Rows of every layer."""

    keys: Sequence[StoredKeys]
    values: Sequence[StoredKeys]
    seconds: Tensor
    """[S] int64: epoch seconds of each row."""

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(each.bytes for each in (*self.keys, *self.values)) + self.seconds.nbytes

    def first(self, rows: int) -> Layers:
        """The first rows."""
        return Layers([k.first(rows) for k in self.keys], [v.first(rows) for v in self.values], self.seconds[:rows])

    def then(self, later: Layers) -> Layers:
        """These rows, then the later ones."""
        if not len(later.seconds):
            return self
        keys = [one.then(other) for one, other in zip(self.keys, later.keys, strict=True)]
        values = [one.then(other) for one, other in zip(self.values, later.values, strict=True)]
        return Layers(keys, values, torch.cat([self.seconds, later.seconds]))

    def to(self, device: torch.device | str) -> Layers:
        """The same on another device."""
        keys, values = [k.to(device) for k in self.keys], [v.to(device) for v in self.values]
        return Layers(keys, values, self.seconds.to(device))


@dataclass(frozen=True)
class Entry:
    """A user's state; replaced as a whole, never changed."""

    rows: UserRows
    """What it was made of; on the host."""
    known: Layers
    """Of the user's and history's tokens."""
    later: Layers
    """Of the realtime events' tokens."""

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return self.rows.bytes + self.known.bytes + self.later.bytes

    def to(self, device: torch.device | str) -> Entry:
        """The same on another device."""
        return Entry(self.rows, self.known.to(device), self.later.to(device))


@dataclass
class Counts:
    """What became of look-ups so far."""

    hits: int = 0
    """Nothing of user and histories was computed."""
    extended: int = 0
    """Of a history, the events behind those that an entry had were computed."""
    misses: int = 0
    """All of it was: no entry, or one of another history."""
    rebuilt: int = 0
    """Of the misses, those with an entry of another history: its oldest event has dropped out, or it or the user's features were changed."""
    appended: int = 0
    """Tokens that were added to entries: realtime ones, and those of extended histories."""
    spilled: int = 0
    """Entries that went from the device to the host."""
    evicted: int = 0
    """Entries that were dropped."""


class UserCache:
    """Entries of several checkpoints, of which any number of threads may ask.

    Args:
        device_bytes: memory of the device that entries take at most.
        host_bytes: memory of the host for entries that the device can't hold; 0: none.
        storage: how keys and values are kept.

    Raises:
        UserError: no memory at all.
    """

    def __init__(self, device_bytes: int, host_bytes: int = 0, *, storage: Storage = "bf16") -> None:
        if device_bytes < 0 or host_bytes < 0 or not device_bytes + host_bytes:
            raise UserError(
                f"a user cache of {device_bytes} bytes on the device and {host_bytes} on the host; give one of them at least 1"
            )
        self.storage: Storage = storage
        self.limits = (device_bytes, host_bytes)
        self._tiers: tuple[OrderedDict[Key, Entry], OrderedDict[Key, Entry]] = (OrderedDict(), OrderedDict())
        self._used = [0, 0]
        self._lock = threading.Lock()
        self.counts = Counts()

    def __len__(self) -> int:
        return sum(map(len, self._tiers))

    @property
    def bytes(self) -> tuple[int, int]:
        """Memory that entries take on the device and on the host."""
        return self._used[0], self._used[1]

    def get(self, key: Key, device: torch.device) -> Entry | None:
        """The entry, on the device."""
        with self._lock:
            if (entry := self._take(key)) is None:
                return None
            entry = entry.to(device)
            self._keep(key, entry)
            return entry

    def put(self, key: Key, entry: Entry) -> None:
        """Keep an entry that lies on the device, in the place of the one of its key; the least recently used ones make room."""
        with self._lock:
            self._take(key)
            self._keep(key, entry)

    def add(self, **counts: int) -> None:
        """Count what became of look-ups."""
        with self._lock:
            for each in fields(Counts):
                setattr(self.counts, each.name, getattr(self.counts, each.name) + counts.get(each.name, 0))

    def drop(self, checkpoint: str) -> None:
        """Forget what a checkpoint made that is no longer served."""
        with self._lock:
            for tier in self._tiers:
                for key in [key for key in tier if key.checkpoint == checkpoint]:
                    self._take(key)

    def _take(self, key: Key) -> Entry | None:
        for at, tier in enumerate(self._tiers):
            if (entry := tier.pop(key, None)) is not None:
                self._used[at] -= entry.bytes
                return entry
        return None

    def _keep(self, key: Key, entry: Entry) -> None:
        device, host = self._tiers
        device[key] = entry
        self._used[0] += entry.bytes
        while self._used[0] > self.limits[0]:
            oldest, entry = device.popitem(last=False)
            self._used[0] -= entry.bytes
            if self.limits[1] < entry.bytes:
                self.counts.evicted += 1
                continue
            self.counts.spilled += 1
            host[oldest] = entry.to("cpu")
            self._used[1] += entry.bytes
        while self._used[1] > self.limits[1]:
            self._used[1] -= host.popitem(last=False)[1].bytes
            self.counts.evicted += 1

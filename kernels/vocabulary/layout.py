"""What the kernels of dynamic vocabularies read: an int64 record a vocabulary and step, and its counters on the device.

A vocabulary has `entries` places for ids. Those below `capacity` are the table's rows (entry r is row r + 2), the rest hold ids
without a row. An open-addressing table of slots leads from an id to its entry; which slot and, without a row, which entry an id has depends on
the order in which threads ran, and nothing that is visible depends on them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

EMPTY = -(2**63)
"""As a slot's key: never used, a probe ends here. As an entry's id: free."""
TOMBSTONE = EMPTY + 1
"""As a slot's key: the id is gone, a probe goes on. As an entry's id: its id is about to move to a row."""
COUNT_BITS = 22
"""Sightings beyond 2^22 - 1 count as so many where rows are compared."""


class Counter(IntEnum):
    """Places in a vocabulary's int64 counters."""

    USED = 0
    """Slots that aren't EMPTY."""
    FREE = 1
    """Free entries beyond the rows: those on the stack."""
    ROWS = 2
    """Rows in use."""
    HIGH = 3
    """One past the highest entry that was ever a row."""
    REBUILD = 4
    """1: the slots are too full for the step, and are filled anew."""
    WAITING = 5
    """Of this step: ids that are due a row."""
    SEEN = 6
    """Of this step: ids that had a row."""
    EVICTED = 7
    """Of this step: rows to take."""
    GIVEN = 8
    """Of this step: rows to give."""
    FORGOTTEN = 9
    """Of this step: ids without a row to forget."""


class VocabularyPlace(NamedTuple):
    """A vocabulary in a step or a lookup."""

    keys: int
    """Address of [slots] int64."""
    places: int
    """Address of [slots] int32: the entry of each key."""
    ids: int
    counts: int
    steps: int
    times: int
    """Addresses of [entries] int64."""
    stack: int
    """Address of [entries - capacity] int32: free entries, the first `FREE` of them."""
    counters: int
    """Address of int64, as `Counter`."""
    mask: int
    """Slots - 1."""
    limit: int
    """Slots that may be used."""
    capacity: int
    entries: int
    admit_after: int
    by_age: int
    """1: evicted by age; 0: by frequency."""
    max_age: int
    """ms; -1: none, or nothing expires now."""
    step: int
    first: int
    """First place among the step's ordered ids."""
    brought: int
    """How many these are."""
    now: int
    """Address of int64: epoch ms of the step."""
    asked: int
    """Address of int64 ids that are looked up."""
    found: int
    """Address of int64: their rows are written there."""
    asked_count: int
    start: int
    """First physical row of its table."""

"""Embedding rows for raw ids, without a dictionary: an open-addressing id map, and unique."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EMPTY = -(2**63)
"""Slot never used: a probe ends here."""
TOMBSTONE = EMPTY + 1
"""Slot whose id was evicted: a probe goes on."""
MAX_LOAD = 0.5
"""Slots in use (tombstones included) before the map is rebuilt: probes stay short, 2 slots on average."""


class Inserted(NamedTuple):
    """What `IdMap.insert` gives."""

    rows: Tensor
    """int64 [N]: the row of each id."""
    created: Tensor
    """int64 [M]: rows that were given out by this call, in ascending order of their ids; their embeddings want
    initialising.
    """


class IdMap:
    """A map from int64 ids to rows 0, 1, 2, ... of an embedding table, on any device.

    Linear probing over a power of two of slots, hashed by splitmix64's finaliser. Rows are given out in ascending
    order of the new
    ids of each call, and evicted rows are given out again, lowest first: the same calls give the same rows on every
    device. The ids -2^63 and -2^63 + 1 are reserved.
    """

    def __init__(self, capacity: int = 1024, device: torch.device | str = "cpu") -> None:
        """capacity: ids expected; the map grows beyond it by itself."""
        slots = 1 << max(4, (int(capacity / MAX_LOAD) - 1).bit_length())
        self.keys = torch.full((slots,), EMPTY, dtype=torch.int64, device=device)
        self.rows = torch.full((slots,), -1, dtype=torch.int64, device=device)
        self.free = torch.empty(0, dtype=torch.int64, device=device)
        """Evicted rows, ascending."""
        self.next_row = 0
        self.used = 0
        """Slots that are not EMPTY."""

    def __len__(self) -> int:
        """Ids in the map."""
        return self.next_row - len(self.free)

    def lookup(self, ids: Tensor) -> Tensor:
        """int64 [N] -> int64 [N]: the row of each id, -1 where the map has none."""
        slots = find_slots(self.keys, ids)
        return torch.where(slots >= 0, self.rows[slots.clamp(min=0)], -1)

    def insert(self, ids: Tensor) -> Inserted:
        """The rows of ids int64 [N], giving rows to those that have none."""
        check_ids(ids)
        distinct, inverse = torch.unique(ids, return_inverse=True)
        rows = self.lookup(distinct)
        missing = rows < 0
        new_ids = distinct[missing]
        created = self.give_rows(len(new_ids))
        if self.used + len(new_ids) > MAX_LOAD * len(self.keys):
            self.rebuild(len(self) + len(new_ids))
        self.used += place(self.keys, self.rows, new_ids, created)
        rows[missing] = created
        return Inserted(rows[inverse], created)

    def evict(self, ids: Tensor) -> Tensor:
        """Forget ids int64 [N] (unknown ones are ignored); their rows, ascending, are free for the next insert."""
        slots = find_slots(self.keys, torch.unique(ids))
        slots = slots[slots >= 0]
        rows = self.rows[slots]
        self.keys[slots] = TOMBSTONE
        self.rows[slots] = -1
        self.free = torch.cat([self.free, rows]).sort().values
        return rows.sort().values

    def items(self) -> tuple[Tensor, Tensor]:
        """(ids, rows), both int64 [len(self)], by ascending row: what a checkpoint stores."""
        live = self.rows >= 0
        order = self.rows[live].argsort()
        return self.keys[live][order], self.rows[live][order]

    def load(self, ids: Tensor, rows: Tensor) -> None:
        """Replace the content by `items()` of another map."""
        check_ids(ids)
        if ids.shape != rows.shape or len(torch.unique(ids)) != len(ids) or len(torch.unique(rows)) != len(rows):
            raise ValueError("ids and rows must be of one length, without repeats")
        device = self.keys.device
        ids, rows = ids.to(device), rows.to(device)
        self.next_row = int(rows.max()) + 1 if len(rows) else 0
        taken = torch.zeros(self.next_row, dtype=torch.bool, device=device)
        taken[rows] = True
        self.free = torch.nonzero(~taken).flatten()
        self.reset_slots(len(ids))
        self.used = place(self.keys, self.rows, ids, rows)

    def give_rows(self, count: int) -> Tensor:
        """The next `count` rows: evicted ones first, ascending, then fresh ones."""
        again, self.free = self.free[:count], self.free[count:]
        fresh = count - len(again)
        rows = torch.arange(self.next_row, self.next_row + fresh, device=self.keys.device)
        self.next_row += fresh
        return torch.cat([again, rows])

    def rebuild(self, expected: int) -> None:
        """Move to twice the slots that `expected` ids want; tombstones go."""
        ids, rows = self.items()
        self.reset_slots(2 * expected)
        self.used = place(self.keys, self.rows, ids, rows)

    def reset_slots(self, expected: int) -> None:
        """Empty slots for `expected` ids."""
        slots = 1 << max(4, (int(expected / MAX_LOAD)).bit_length())
        self.keys = torch.full((slots,), EMPTY, dtype=torch.int64, device=self.keys.device)
        self.rows = torch.full((slots,), -1, dtype=torch.int64, device=self.keys.device)


def check_ids(ids: Tensor) -> None:
    """Raises TypeError unless ids are int64 [N], ValueError if one is reserved."""
    if ids.dtype != torch.int64 or ids.dim() != 1:
        raise TypeError(f"ids must be int64 [N], got {ids.dtype} {list(ids.shape)}")
    if len(ids) and int(ids.min()) <= TOMBSTONE:
        raise ValueError(f"ids {EMPTY} and {TOMBSTONE} are reserved by the id map")


def hash_ids(ids: Tensor) -> Tensor:
    """splitmix64's finaliser (Steele, Lea and Flood 2014), as int64: neighbouring ids land far apart."""
    x = (ids ^ logical_shift(ids, 30)) * -4658895280553007687
    x = (x ^ logical_shift(x, 27)) * -7723592293110705685
    return x ^ logical_shift(x, 31)


def logical_shift(x: Tensor, by: int) -> Tensor:
    """x >> by without the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def find_slots(keys: Tensor, ids: Tensor) -> Tensor:
    """int64 [N]: the slot of each id, -1 where there is none. All ids probe at once, one slot further each round."""
    found = torch.full(ids.shape, -1, dtype=torch.int64, device=ids.device)
    pending = torch.arange(len(ids), device=ids.device)
    slot = hash_ids(ids) & (len(keys) - 1)
    wanted = ids
    while len(pending):
        key = keys[slot]
        hit = key == wanted
        found[pending[hit]] = slot[hit]
        on = ~hit & (key != EMPTY)
        pending, wanted, slot = pending[on], wanted[on], (slot[on] + 1) & (len(keys) - 1)
    return found


def place(keys: Tensor, rows: Tensor, ids: Tensor, new_rows: Tensor) -> int:
    """Store distinct ids that the map does not hold; the number of EMPTY slots that this took."""
    taken = 0
    slot = hash_ids(ids) & (len(keys) - 1)
    claims = torch.empty_like(keys)
    while len(ids):
        index = torch.arange(len(ids), device=ids.device)
        vacant = keys[slot] <= TOMBSTONE
        claims[slot] = len(ids)
        claims.scatter_reduce_(0, slot[vacant], index[vacant], "amin")
        won = vacant & (claims[slot] == index)
        taken += int((keys[slot[won]] == EMPTY).sum())
        keys[slot[won]], rows[slot[won]] = ids[won], new_rows[won]
        ids, new_rows, slot = ids[~won], new_rows[~won], (slot[~won] + 1) & (len(keys) - 1)
    return taken


def unique_inverse_counts(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """int64 [N] -> (distinct ids ascending [U], index of each id among them [N], how often each occurs [U]), all
    int64.
    """
    distinct, inverse, counts = torch.unique(ids, return_inverse=True, return_counts=True)
    return distinct, inverse, counts

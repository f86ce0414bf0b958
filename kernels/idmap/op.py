"""Embedding rows for raw ids, without a dictionary: an open-addressing id map, unique, and sparse row-wise
optimisers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from genrank.kernels.dispatch import backend_for

EMPTY = -(2**63)
"""Slot never used: a probe ends here."""
TOMBSTONE = EMPTY + 1
"""Slot whose id was evicted: a probe goes on."""
MAX_LOAD = 0.5
"""Slots in use (tombstones included) before the map is rebuilt: probes stay short, 2 slots on average."""


class Inserted(NamedTuple):
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
        again, self.free = self.free[:count], self.free[count:]
        fresh = count - len(again)
        rows = torch.arange(self.next_row, self.next_row + fresh, device=self.keys.device)
        self.next_row += fresh
        return torch.cat([again, rows])

    def rebuild(self, expected: int) -> None:
        ids, rows = self.items()
        self.reset_slots(2 * expected)
        self.used = place(self.keys, self.rows, ids, rows)

    def reset_slots(self, expected: int) -> None:
        slots = 1 << max(4, (int(expected / MAX_LOAD)).bit_length())
        self.keys = torch.full((slots,), EMPTY, dtype=torch.int64, device=self.keys.device)
        self.rows = torch.full((slots,), -1, dtype=torch.int64, device=self.keys.device)


def check_ids(ids: Tensor) -> None:
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
    return (x >> by) & ((1 << (64 - by)) - 1)


def find_slots(keys: Tensor, ids: Tensor) -> Tensor:
    """int64 [N]: the slot of each id, -1 where there is none. All ids probe at once, one slot further each round."""
    if backend_for(keys) == "triton":
        from genrank.kernels.idmap import gpu

        return gpu.find_slots(keys, ids)
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
    if backend_for(keys) == "triton":
        from genrank.kernels.idmap import gpu

        return gpu.place(keys, rows, ids, new_rows)
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


def rowwise_adagrad_(
    table: Tensor, state: Tensor, rows: Tensor, grads: Tensor, *, lr: float, eps: float = 1e-8
) -> None:
    """Row-wise Adagrad (Duchi et al. 2011; one accumulator a row as in FBGEMM) on the touched rows, in place.

    G_r = sum of grads of row r;  state_r += mean(G_r^2);  table_r -= lr * G_r / (sqrt(state_r) + eps)

    Args: table: [R, D]; state: float32 [R]; rows: int64 [N], repeats allowed; grads: [N, D].
    """
    if backend_for(table) == "triton":
        from genrank.kernels.idmap import gpu

        none = {"betas": (0.0, 0.0), "step": 1, "weight_decay": 0.0}
        return gpu.rowwise(table, None, state, rows, grads, lr=lr, eps=eps, **none)
    distinct, total = sum_rows(rows, grads)
    # index_select and index_copy_ take a third of the time of indexing on a CPU.
    squares = state.index_select(0, distinct) + total.square().mean(1)
    state.index_copy_(0, distinct, squares)
    step = (lr * total / (squares.sqrt() + eps).unsqueeze(1)).to(table.dtype)
    table.index_copy_(0, distinct, table.index_select(0, distinct) - step)


def rowwise_adam_(
    table: Tensor,
    mean: Tensor,
    state: Tensor,
    rows: Tensor,
    grads: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """Adam with one second moment a row (FBGEMM's partial row-wise Adam) on the touched rows, in place.

    m_r = b1 m_r + (1-b1) G_r;  v_r = b2 v_r + (1-b2) mean(G_r^2);
    table_r -= lr * (m_r / (1-b1^step) / (sqrt(v_r / (1-b2^step)) + eps) + weight_decay * table_r)

    Args: table: [R, D]; mean: float32 [R, D]; state: float32 [R]; rows: int64 [N], repeats allowed; grads: [N, D];
        step: 1 for the first call.
    """
    if backend_for(table) == "triton":
        from genrank.kernels.idmap import gpu

        decay = weight_decay
        return gpu.rowwise(table, mean, state, rows, grads, lr=lr, eps=eps, betas=betas, step=step, weight_decay=decay)
    distinct, total = sum_rows(rows, grads)
    mean[distinct] = betas[0] * mean[distinct] + (1 - betas[0]) * total
    state[distinct] = betas[1] * state[distinct] + (1 - betas[1]) * total.square().mean(1)
    scale = (state[distinct] / (1 - betas[1] ** step)).sqrt() + eps
    update = mean[distinct] / (1 - betas[0] ** step) / scale.unsqueeze(1)
    table[distinct] -= (lr * (update + weight_decay * table[distinct].float())).to(table.dtype)


def sum_rows(rows: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows [U], and the float32 sum [U, D] of their gradients."""
    distinct, inverse = torch.unique(rows, return_inverse=True)
    total = torch.zeros(len(distinct), grads.shape[1], dtype=torch.float32, device=grads.device)
    return distinct, total.index_add_(0, inverse, grads.float())

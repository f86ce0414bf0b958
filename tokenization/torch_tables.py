"""Merged tables in plain PyTorch: fused lookups that update their rows in backward, as fbgemm's kernels do."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from genrank.kernels.dispatch import backend_for
from genrank.kernels.rowwise import ADAM_BETAS, RowUpdate, rowwise_updates_, sum_rows
from genrank.schemas.ids import SPECIAL_ROWS
from genrank.tokenization import buffer_pool
from genrank.tokenization.initial_rows import INIT_CHUNK, DeviceReset, initial_rows
from genrank.tokenization.plan import MergedTable, Plan
from genrank.tokenization.table_backend import EPS, Shard, StatePlace


class TorchTables:
    """The merged tables of a plan on one device.

    Args:
        lr: sparse learning rate; each table multiplies it by its `lr_scale`.
        seed: of the initial rows.
        state: where the optimizer's state is kept: with the rows, or in host memory (pinned beside a GPU), from where what a step
            touches travels to the device and back. Adam's takes as much as the rows.
    """

    def __init__(self, plan: Plan, device: torch.device, lr: float, seed: int, state: StatePlace = "device") -> None:
        self.lr = lr
        self.seed = seed
        self.held = False
        self.tables = {table.name: TorchTable(table, device, seed, state) for table in plan.tables}
        # Autograd calls backward only for functions with an input that needs a gradient: this one stands in for the table.
        self.anchor = torch.zeros((), device=device, requires_grad=True)

    def lookup(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Merged table -> [K] int64 physical rows, to [K, dim] float32; under autograd, backward updates the rows."""
        return {name: self._lookup(self.tables[name], at) for name, at in rows.items()}

    def dispatch(self, rows: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        """Nothing travels here: the whole `lookup` when called."""
        return lambda: self.lookup(rows)

    def _lookup(self, table: TorchTable, rows: Tensor) -> Tensor:
        vectors: Tensor = _Lookup.apply(self.anchor, rows, table, self)  # type: ignore[no-untyped-call]
        return vectors

    def learn(self, gradients: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """A step of each merged table's optimizer, by [K] int64 rows and their gradients [K, dim]; while held they are gathered."""
        steps = []
        for merged, given in gradients.items():
            table = self.tables[merged]
            table.gathered.append(given)
            if self.held:
                continue
            rows, grad = given if len(table.gathered) == 1 else map(torch.cat, zip(*table.gathered, strict=True))
            table.gathered.clear()
            if table.apart:
                table.update_apart(rows, grad, self.lr)
            else:
                steps.append(table.step(rows, grad, self.lr))
        rowwise_updates_(steps)

    def hold(self, held: bool) -> None:
        """While held, backward gathers gradients without applying them; the next backward after it applies all at once."""
        self.held = held

    def reset(self, merged: str, rows: Tensor) -> None:
        """Initial weights, and no optimizer state, for [K] int64 physical rows; on a GPU those below 0, which come last, are none."""
        self.tables[merged].reset(rows, self.seed)

    def shards(self, merged: str) -> list[Shard]:
        """The rows of a merged table that this process holds: all."""
        table = self.tables[merged]
        state = {"second": table.second} | ({"first": table.first} if len(table.first) else {})
        return [Shard(0, table.weight, state)]

    def updates(self, merged: str) -> int:
        """Optimizer steps of a merged table so far."""
        return self.tables[merged].steps

    def set_updates(self, merged: str, count: int) -> None:
        """Go on after so many steps."""
        self.tables[merged].steps = count


class TorchTable:
    """One merged table: float32 weights [rows, dim] and the optimizer's state.

    A dynamic table's rows are initialised when an id gets them; on a CPU they take no memory before.
    """

    def __init__(self, table: MergedTable, device: torch.device, seed: int, state: StatePlace = "device") -> None:
        self.table = table
        self.apart = state == "host"
        place, pinned = (torch.device("cpu"), device.type == "cuda") if self.apart else (device, False)
        self.weight = _zeros((table.rows, table.dim), device)
        for start, member in zip(table.starts, table.members, strict=True):
            stop = start + (SPECIAL_ROWS if table.dynamic else member.rows)
            for first in range(start, stop, INIT_CHUNK):
                last = min(first + INIT_CHUNK, stop)
                self.weight[first:last] = initial_rows(table, torch.arange(first, last, device=device), seed)
        self.steps = 0
        self.second = _zeros((table.rows,), place, pinned)
        """[rows]: sum (Adagrad) or running mean (Adam) of each row's mean squared gradient."""
        adam = table.optimizer.kind == "rowwise_adam"
        self.first = _zeros((table.rows, table.dim) if adam else (0, table.dim), place, pinned)
        """[rows, dim]: Adam's first moment."""
        self.gathered: list[tuple[Tensor, Tensor]] = []
        self.on_device = DeviceReset(table, device) if table.dynamic and backend_for(self.weight) == "triton" else None

    def reset(self, rows: Tensor, seed: int) -> None:
        """As `Tables.reset`."""
        if self.on_device is not None:
            self._reset_on_device(self.on_device, rows, seed)
            return
        self.weight[rows] = initial_rows(self.table, rows, seed)
        # Gradients held for a row's last owner are not the next one's.
        kept = [(at, grad, ~torch.isin(at, rows)) for at, grad in self.gathered]
        self.gathered = [(at[keep], grad[keep]) for at, grad, keep in kept]
        rows = rows.to(self.second.device)
        self.second[rows] = 0
        if len(self.first):
            self.first[rows] = 0

    def _reset_on_device(self, reset: DeviceReset, rows: Tensor, seed: int) -> None:
        """Without learning how many there are, unless the optimizer's state is the host's."""
        first, second = (self.first if len(self.first) else None), self.second
        reset(self.weight, None if self.apart else first, None if self.apart else second, rows, seed)
        if self.gathered:
            renewed = torch.zeros(len(self.weight) + 1, dtype=torch.bool, device=rows.device)
            renewed.index_fill_(0, rows % len(renewed), True)
            # The next owner is read, so has a gradient: that one of 0 is summed with it changes nothing.
            self.gathered = [(at, grad.masked_fill(renewed[at][:, None], 0)) for at, grad in self.gathered]
        if self.apart:
            at = rows[rows >= 0].to("cpu")
            second[at] = 0
            if first is not None:
                first[at] = 0

    def step(self, rows: Tensor, grads: Tensor, lr: float) -> RowUpdate:
        """The next step of the table's optimizer, on [K] rows, which may repeat, with [K, dim] gradients."""
        self.steps += 1
        return self._update(self.weight, self.first, self.second, rows, grads, lr)

    def update_apart(self, rows: Tensor, grads: Tensor, lr: float) -> None:
        """Take the next step where the optimizer's state is in host memory."""
        self.steps += 1
        rows, grads = sum_rows(rows, grads)
        at = rows.to("cpu")
        weight, second = self.weight[rows], self.second[at].to(rows.device)
        first = self.first[at].to(rows.device) if len(self.first) else self.first
        places = torch.arange(len(rows), device=rows.device)
        rowwise_updates_([self._update(weight, first, second, places, grads, lr)])
        self.weight[rows] = weight
        self.second[at] = second.to("cpu")
        if len(self.first):
            self.first[at] = first.to("cpu")

    def _update(
        self, weight: Tensor, first: Tensor, second: Tensor, rows: Tensor, grads: Tensor, lr: float
    ) -> RowUpdate:
        optimizer = self.table.optimizer
        lr, decay = lr * optimizer.lr_scale, optimizer.weight_decay
        if optimizer.kind == "rowwise_adam":
            return RowUpdate(weight, first, second, rows, grads, lr, EPS, ADAM_BETAS, self.steps, decay)
        return RowUpdate(weight, None, second, rows, grads, lr, EPS, weight_decay=decay)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, anchor: Tensor, rows: Tensor, table: TorchTable, tables: TorchTables) -> Tensor:
        ctx.rows, ctx.table, ctx.tables = rows, table, tables  # type: ignore[attr-defined]
        if rows.device.type != "cpu":
            return table.weight.index_select(0, rows)
        vectors = buffer_pool.empty(len(rows) * table.table.dim, torch.float32).view(len(rows), table.table.dim)
        return torch.index_select(table.weight, 0, rows, out=vectors)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[None, None, None, None]:
        ctx.tables.learn({ctx.table.table.name: (ctx.rows, grad)})  # type: ignore[attr-defined]
        return None, None, None, None


def _zeros(shape: tuple[int, ...], device: torch.device, pinned: bool = False) -> Tensor:
    """float32; on a CPU numpy's, which take memory page by page as they're written to, where torch writes them all at once."""
    if device.type != "cpu" or pinned:
        return torch.zeros(shape, device=device, pin_memory=pinned)
    return torch.from_numpy(np.zeros(shape, np.float32))

"""Row-wise Adagrad and Adam on GPU: passes of one kernel over sorted rows, then over what they left open (`triton_rowwise.py`)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from genrank.kernels.launch import Tuned
from genrank.kernels.rowwise.triton_rowwise import rowwise_kernel
from genrank.kernels.rowwise.update import RowUpdate

CHUNK = 128
"""Gradients that one program sums at most."""
# Writes to its own inputs: tuning would apply each update many times, so it has one configuration.
rowwise_tuned = Tuned(rowwise_kernel, [triton.Config({"CHUNK": CHUNK, "PIECE": 16}, num_warps=4, num_stages=1)], [])


def rowwise(updates: Sequence[RowUpdate]) -> None:
    """Steps of several tables: one sort serves them all."""
    updates = [update for update in updates if len(update.rows)]
    for table, mean, state, rows, grads, *_ in updates:
        if not all(t.is_contiguous() for t in (table, state, mean) if t is not None):
            raise ValueError("table and the optimizer's state must be contiguous: they are updated in place")
        if grads.shape != (len(rows), table.shape[1]):
            raise ValueError(f"grads must be [{len(rows)}, {table.shape[1]}], got {list(grads.shape)}")
    if not updates:
        return
    sizes = [len(update.rows) for update in updates]
    *row_bases, rows_in_all = itertools.accumulate((len(update.table) for update in updates), initial=0)
    keys = torch.cat([update.rows for update in updates]) if len(updates) > 1 else updates[0].rows
    if rows_in_all <= torch.iinfo(torch.int32).max:
        keys = keys.int()  # half as many bytes to sort
    if len(updates) > 1:
        torch._foreach_add_(torch.split(keys, sizes), row_bases)
    ordered, order = torch.sort(keys, stable=True)
    entry_bases = itertools.accumulate(sizes, initial=0)
    parts = zip(torch.split(ordered, sizes), torch.split(order, sizes), row_bases, entry_bases, strict=False)
    for update, (entries, places, row_base, entry_base) in zip(updates, parts, strict=True):
        _passes(update, entries, places, row_base, entry_base)


def _passes(update: RowUpdate, ordered: Tensor, order: Tensor, row_base: int, entry_base: int) -> None:
    """Of sorted rows, which count from `row_base`, and their gradients' places, which count from `entry_base`."""
    table, mean, state, _, grads, lr, eps, betas, step, weight_decay = update
    corrections = (1 - betas[0] ** step, 1 - betas[1] ** step) if mean is not None else (1.0, 1.0)
    moments = (state if mean is None else mean, state)
    numbers = (float(lr), float(eps), *map(float, (*betas, *corrections, weight_decay)))
    entries, values, dim = ordered, grads.contiguous(), table.shape[1]
    while True:
        count = len(entries)
        shares = ordered.new_empty(2 * triton.cdiv(count, CHUNK))
        sums = torch.empty(len(shares), dim, dtype=torch.float32, device=table.device)
        rowwise_tuned(
            lambda chosen, programs=count: (programs,),  # type: ignore[misc]
            [
                *(table, *moments, entries, order, values, shares, sums, count, dim, row_base, entry_base),
                *numbers,
            ],
            {"ADAM": mean is not None, "WIDTH": max(16, triton.next_power_of_2(dim)), "FIRST": entries is ordered},
        )
        if count <= CHUNK:
            return
        entries, values = shares, sums

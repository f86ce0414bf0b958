"""Row-wise Adagrad and Adam on GPU: passes of one kernel over sorted rows, then over what they left open (`triton_rowwise.py`)."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from genrank.kernels.launch import Tuned
from genrank.kernels.rowwise.triton_rowwise import rowwise_kernel

CHUNK = 128
"""Gradients that one program sums at most."""
# Writes to its own inputs: tuning would apply each update many times, so it has one configuration.
rowwise_tuned = Tuned(rowwise_kernel, [triton.Config({"CHUNK": CHUNK, "PIECE": 16}, num_warps=4, num_stages=1)], [])


def rowwise(
    table: Tensor,
    mean: Tensor | None,
    state: Tensor,
    rows: Tensor,
    grads: Tensor,
    *,
    lr: float,
    eps: float,
    betas: tuple[float, float],
    step: int,
    weight_decay: float,
) -> None:
    """Adam where `mean` is given, Adagrad where not."""
    if not len(rows):
        return
    if not all(t.is_contiguous() for t in (table, state, mean) if t is not None):
        raise ValueError("table and the optimizer's state must be contiguous: they are updated in place")
    if grads.shape != (len(rows), table.shape[1]):
        raise ValueError(f"grads must be [{len(rows)}, {table.shape[1]}], got {list(grads.shape)}")
    if len(table) <= torch.iinfo(torch.int32).max:
        rows = rows.int()  # half as many bytes to sort
    ordered, order = torch.sort(rows, stable=True)
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
            [table, *moments, entries, order, values, shares, sums, count, dim, *numbers],
            {"ADAM": mean is not None, "WIDTH": max(16, triton.next_power_of_2(dim)), "FIRST": entries is ordered},
        )
        if count <= CHUNK:
            return
        entries, values = shares, sums

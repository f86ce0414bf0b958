"""Row-wise Adagrad and Adam on GPU: a program for each touched row (kernel: `triton_rowwise.py`)."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from genrank.kernels.launch import Tuned
from genrank.kernels.rowwise.triton_rowwise import rowwise_kernel

# Writes to its own inputs: tuning would apply each update many times, so it has one configuration.
rowwise_tuned = Tuned(rowwise_kernel, [triton.Config({"PIECE": 16}, num_warps=4, num_stages=1)], [])


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
    ordered, order = torch.sort(rows, stable=True)
    corrections = (1 - betas[0] ** step, 1 - betas[1] ** step) if mean is not None else (1.0, 1.0)
    rowwise_tuned(
        lambda chosen: (len(rows),),
        [
            *(table, state if mean is None else mean, state, ordered, order, grads.contiguous(), len(rows)),
            *(table.shape[1], float(lr), float(eps), *map(float, (*betas, *corrections, weight_decay))),
        ],
        {"ADAM": mean is not None, "WIDTH": max(16, triton.next_power_of_2(table.shape[1]))},
    )

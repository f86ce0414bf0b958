"""Sparse row-wise optimisers: only the rows that a batch touched are read and written."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genrank.kernels.dispatch import backend_for
from genrank.kernels.rowwise.update import RowUpdate

ADAM_BETAS = (0.9, 0.999)


def rowwise_adagrad_(
    table: Tensor,
    state: Tensor,
    rows: Tensor,
    grads: Tensor,
    *,
    lr: float,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """Row-wise Adagrad (Duchi et al. 2011; one accumulator a row as in FBGEMM) on the touched rows, in place.

    G_r = sum of grads of row r + weight_decay * table_r;  state_r += mean(G_r^2);  table_r -= lr * G_r / (sqrt(state_r) + eps)

    Args: table: [R, D]; state: float32 [R]; rows: int64 [N], repeats allowed; grads: [N, D].
    """
    rowwise_updates_([RowUpdate(table, None, state, rows, grads, lr, eps, weight_decay=weight_decay)])


def rowwise_adam_(
    table: Tensor,
    mean: Tensor,
    state: Tensor,
    rows: Tensor,
    grads: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = ADAM_BETAS,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """Adam with one second moment a row (FBGEMM's partial row-wise Adam) on the touched rows, in place.

    m_r = b1 m_r + (1-b1) G_r;  v_r = b2 v_r + (1-b2) mean(G_r^2);
    table_r -= lr * (m_r / (1-b1^step) / (sqrt(v_r / (1-b2^step)) + eps) + weight_decay * table_r)

    Args: table: [R, D]; mean: float32 [R, D]; state: float32 [R]; rows: int64 [N], repeats allowed; grads: [N, D];
        step: 1 for the first call.
    """
    rowwise_updates_([RowUpdate(table, mean, state, rows, grads, lr, eps, betas, step, weight_decay)])


def rowwise_updates_(updates: Sequence[RowUpdate]) -> None:
    """Steps of several tables on one device, each as its optimiser defines it; on a GPU one sort serves them all."""
    if updates and backend_for(updates[0].table) == "triton":
        from genrank.kernels.rowwise import gpu

        gpu.rowwise(updates)
        return
    for update in updates:
        if update.mean is None:
            _adagrad(update)
        else:
            _adam(update, update.mean)


def _adagrad(update: RowUpdate) -> None:
    table, _, state, rows, grads, lr, eps, _, _, weight_decay = update
    distinct, total = sum_rows(rows, grads)
    if weight_decay:
        total += weight_decay * table.index_select(0, distinct)
    # index_select and index_copy_ take a third of the time of indexing on a CPU.
    squares = state.index_select(0, distinct) + total.square().mean(1)
    state.index_copy_(0, distinct, squares)
    step = (lr * total / (squares.sqrt() + eps).unsqueeze(1)).to(table.dtype)
    table.index_copy_(0, distinct, table.index_select(0, distinct) - step)


def _adam(update: RowUpdate, mean: Tensor) -> None:
    table, _, state, rows, grads, lr, eps, betas, step, weight_decay = update
    distinct, total = sum_rows(rows, grads)
    mean[distinct] = betas[0] * mean[distinct] + (1 - betas[0]) * total
    state[distinct] = betas[1] * state[distinct] + (1 - betas[1]) * total.square().mean(1)
    scale = (state[distinct] / (1 - betas[1] ** step)).sqrt() + eps
    change = mean[distinct] / (1 - betas[0] ** step) / scale.unsqueeze(1)
    table[distinct] -= (lr * (change + weight_decay * table[distinct].float())).to(table.dtype)


def sum_rows(rows: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows [U], and the float32 sum [U, D] of their gradients."""
    distinct, inverse = torch.unique(rows, return_inverse=True)
    total = torch.zeros(len(distinct), grads.shape[1], dtype=torch.float32, device=grads.device)
    return distinct, total.index_add_(0, inverse, grads.float())

"""Shared rows on GPU (kernels: `triton_shared.py`); nothing waits for the device."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from genrank.kernels.launch import Tuned
from genrank.kernels.shared_rows.triton_shared import shared_backward_kernel, shared_forward_kernel

CONFIGS = [
    triton.Config({"ROWS": r, "COLUMNS": c}, num_warps=4, num_stages=1) for r, c in ((16, 64), (32, 32), (8, 128))
]
forward_tuned = Tuned(shared_forward_kernel, CONFIGS, ["dim"])
backward_tuned = Tuned(shared_backward_kernel, CONFIGS, ["dim"])


def add(rows: Tensor, shared: Tensor, offsets: Tensor) -> Tensor:
    """[T, D] of contiguous rows [T, D], shared [B, D] and offsets [B+1]."""
    out = torch.empty_like(rows)
    (count, dim), batch = rows.shape, len(shared)
    if count and dim:

        def grid(chosen: dict[str, Any]) -> tuple[int, int]:
            return triton.cdiv(count, chosen["ROWS"]), triton.cdiv(dim, chosen["COLUMNS"])

        forward_tuned(grid, [rows, shared, offsets, out, count, dim, batch, (batch + 1).bit_length()], {})
    return out


def gradients(grad: Tensor, out: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """[T, D] of the rows and [B, D] of the shared ones, from contiguous [T, D]."""
    dim, batch = out.shape[1], len(offsets) - 1
    of_rows, of_shared = torch.empty_like(out), out.new_empty(batch, dim)
    if batch and dim:
        backward_tuned(
            lambda chosen: (batch, triton.cdiv(dim, chosen["COLUMNS"])),
            [grad, out, offsets, of_rows, of_shared, dim],
            {},
        )
    return of_rows, of_shared

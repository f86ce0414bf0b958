"""Merging on GPU: one pass over what is written, forward and backward; nothing waits for the device."""

from __future__ import annotations

from typing import Any

import triton
from torch import Tensor

from genrank.kernels.launch import Tuned
from genrank.kernels.merge.triton_merge import merge_kernel

merge_tuned = Tuned(
    merge_kernel,
    [triton.Config({"ROWS": r, "COLUMNS": c}, num_warps=4, num_stages=1) for r, c in ((16, 128), (8, 256), (32, 64))],
    ["dim"],
)


def merge(x: Tensor, offsets: Tensor, starts: Tensor, k: int, groups: int) -> Tensor:
    """[T, D] -> [groups, k, D]."""
    x = x if x.stride(1) == 1 else x.contiguous()
    merged = x.new_empty(groups, k, x.shape[1])
    move(x, merged, offsets, starts, k, groups * k, back=False)
    return merged


def unmerge(grad: Tensor, offsets: Tensor, starts: Tensor, k: int, rows: int) -> Tensor:
    """[groups, k, D] -> [rows, D]."""
    apart = grad.new_empty(rows, grad.shape[2])
    move(apart, grad.contiguous(), offsets, starts, k, rows, back=True)
    return apart


def move(rows: Tensor, groups: Tensor, offsets: Tensor, starts: Tensor, k: int, count: int, *, back: bool) -> None:
    """Write `count` places of groups, or (back) rows."""
    dim, batch = rows.shape[1], len(offsets) - 1
    if not count or not dim:
        return
    if batch < 1:
        (rows if back else groups).zero_()
        return

    def grid(chosen: dict[str, Any]) -> tuple[int, int]:
        return triton.cdiv(count, chosen["ROWS"]), triton.cdiv(dim, chosen["COLUMNS"])

    merge_tuned(
        grid,
        [rows, groups, offsets, starts, count, dim, batch, batch.bit_length(), k, rows.stride(0)],
        {"BACK": back},
    )

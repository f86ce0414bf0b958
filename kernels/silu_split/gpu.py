"""Backward of the split projection on GPU (kernel: `triton_pack.py`)."""

from __future__ import annotations

import itertools

import torch
import triton
from torch import Tensor

from genrank.kernels.launch import Tuned
from genrank.kernels.silu_split.triton_pack import pack_kernel

STRIP = 128
"""Rows that one program packs and sums, in order; the strips' sums are added in order, too."""


def config(columns: int, rows: int, warps: int) -> triton.Config:
    """`rows` rows of `columns` columns a step."""
    return triton.Config({"COLUMNS": columns, "ROWS": rows}, num_warps=warps, num_stages=1)


pack_tuned = Tuned(
    pack_kernel, [config(256, 8, 4), config(256, 4, 4), config(128, 16, 4), config(512, 4, 8)], ["width"]
)


def pack_gradients(grads: list[Tensor], z: Tensor, active: int) -> tuple[Tensor, Tensor]:
    """The gradient of z [T, E], and float32 [E] its sum over rows.

    Args:
        grads: [T, size] of each part, in order, at most 4.
        z: [T, E], of which the first `active` columns went through SiLU.
    """
    ends = [*itertools.accumulate(grad.shape[1] for grad in grads)]
    parts = [grad if grad.stride(1) == 1 else grad.contiguous() for grad in grads]
    tokens, width = z.shape
    out = torch.empty_like(z, memory_format=torch.contiguous_format)
    strips = triton.cdiv(tokens, STRIP)
    sums = torch.empty(strips, width, dtype=torch.float32, device=z.device)
    # Parts that there aren't are empty: they begin where all columns end.
    parts += parts[:1] * (4 - len(parts))
    ends += [width] * (4 - len(ends))
    if tokens:
        pack_tuned(
            lambda chosen: (strips, triton.cdiv(width, chosen["COLUMNS"])),
            [
                *(*parts, z, out, sums, tokens, width, active, *ends[:3]),
                *(z.stride(0), *(part.stride(0) for part in parts), STRIP),
            ],
            {},
        )
    return out, sums.sum(0)

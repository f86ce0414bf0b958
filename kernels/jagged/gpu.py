"""Jagged concatenation, and the split that is its gradient, for GPU.

Nothing here waits for the device: row counts come from shapes, samples are found by binary search inside the kernels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from genrank.kernels.jagged.triton_move import move_rows_kernel
from genrank.kernels.launch import Tuned

move_tuned = Tuned(
    move_rows_kernel,
    [triton.Config({"ROWS": r, "COLUMNS": c}, num_warps=4, num_stages=1) for r, c in ((16, 128), (8, 256), (32, 64))],
    ["dim"],
)


def move(parts: list[Tensor], whole: Tensor, offsets: list[Tensor], split: bool) -> None:
    """Rows beyond a part's last offset, if any, count as one more sample: they never land on another's place."""
    offsets = [torch.cat([o, o.new_full((1,), len(part))]) for o, part in zip(offsets, parts, strict=True)]
    lengths = torch.stack([o.diff() for o in offsets])
    before = lengths.cumsum(0) - lengths
    whole_offsets = torch.stack(offsets).sum(0)
    batch = len(offsets[0]) - 1
    for part, own, ahead in zip(parts, offsets, before, strict=True):
        tokens, dim = part.shape
        if not tokens or not dim:
            continue

        def grid(chosen: dict[str, Any], tokens: int = tokens, dim: int = dim) -> tuple[int, int]:
            return triton.cdiv(tokens, chosen["ROWS"]), triton.cdiv(dim, chosen["COLUMNS"])

        move_tuned(
            grid,
            [
                *(part, whole, own, whole_offsets, ahead.contiguous(), tokens, dim, batch, batch.bit_length()),
                *(part.stride(0), whole.stride(0)),
            ],
            {"SPLIT": split},
        )


@torch.library.custom_op("genrank::jagged_concat", mutates_args=())
def concat_op(parts: list[Tensor], offsets: list[Tensor]) -> Tensor:
    """Parts [T_i, D] and their offsets [B+1] -> [sum T_i, D], sample by sample."""
    parts = [unit_stride(part) for part in parts]
    whole = parts[0].new_empty(sum(len(part) for part in parts), parts[0].shape[1])
    move(parts, whole, offsets, split=False)
    return whole


@torch.library.custom_op("genrank::jagged_split", mutates_args=())
def split_op(whole: Tensor, offsets: list[Tensor], tokens: list[int]) -> list[Tensor]:
    """tokens: rows of each part."""
    parts = [whole.new_empty(n, whole.shape[1]) for n in tokens]
    move(parts, unit_stride(whole), offsets, split=True)
    return parts


@concat_op.register_fake
def _(parts: list[Tensor], offsets: list[Tensor]) -> Tensor:
    return parts[0].new_empty(sum(part.shape[0] for part in parts), parts[0].shape[1])


@split_op.register_fake
def _(whole: Tensor, offsets: list[Tensor], tokens: list[int]) -> list[Tensor]:
    return [whole.new_empty(n, whole.shape[1]) for n in tokens]


def _save_concat(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.tokens = [len(part) for part in inputs[0]]
    ctx.save_for_backward(*inputs[1])


def _differentiate_concat(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    parts = torch.ops.genrank.jagged_split(grad, list(ctx.saved_tensors), ctx.tokens)
    return parts, [None] * len(ctx.tokens)


concat_op.register_autograd(_differentiate_concat, setup_context=_save_concat)


def unit_stride(x: Tensor) -> Tensor:
    """x [tokens, dim] with adjacent columns, copied only if they are not."""
    return x if x.stride(1) == 1 else x.contiguous()

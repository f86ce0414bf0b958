"""Merging of K neighbours (LONGER, arXiv 2505.04421, section 3.3): a sample's rows, cut into groups of K from its newest row backwards.

    n rows -> ceil(n / K) groups; the newest group is whole, the oldest is padded with zeros before its first row

Aligned to the newest row, a group keeps its members when older rows are cut off, and the padding lies where it matters least.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genrank.kernels.dispatch import backend_for
from genrank.kernels.merge.reference import reference_merge_rows


def merge_rows(x: Tensor, offsets: Tensor, k: int, groups: int | None = None) -> Tensor:
    """[T, D] -> [G, k, D]: the groups of each sample, oldest first; `group_offsets` has each sample's place among them.

    Args:
        x: [T, D] of any floating dtype, T rows of B samples, one sample after the other, oldest first.
        offsets: int32 or int64 [B+1]; sample b owns rows `offsets[b]:offsets[b+1]`.
        k: rows of a group.
        groups: G, if the host knows it; otherwise it waits for the device.

    Returns: [G, k, D], of x's dtype. Differentiable in x.

    Raises: TypeError or ValueError for wrong shapes, dtypes, or k.
    """
    if x.dim() != 2 or offsets.dim() != 1 or offsets.dtype not in (torch.int32, torch.int64):
        raise TypeError(
            f"x must be [T, D] and offsets int [B+1], got {list(x.shape)}, {offsets.dtype} {list(offsets.shape)}"
        )
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if backend_for(x) == "reference":
        return reference_merge_rows(x, offsets, k)
    starts = group_offsets(offsets, k)
    groups = int(starts[-1]) if groups is None else groups
    merged: Tensor = torch.ops.genrank.merge_rows(x, offsets, starts, k, groups)
    return merged


def group_offsets(offsets: Tensor, k: int) -> Tensor:
    """[B+1] of rows -> [B+1] of their groups, in the same dtype."""
    counts = (offsets.diff() + k - 1) // k
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(offsets.dtype)


# --- the ops, as PyTorch sees them ------------------------------------------------------------------------------------


@torch.library.custom_op("genrank::merge_rows", mutates_args=())
def _merge(x: Tensor, offsets: Tensor, starts: Tensor, k: int, groups: int) -> Tensor:
    """starts: `group_offsets`; groups: the last of them."""
    if backend_for(x) == "triton":
        from genrank.kernels.merge import gpu

        return gpu.merge(x, offsets, starts, k, groups)
    place = places(offsets, starts, k, len(x))
    merged = x.new_zeros(groups * k, x.shape[1])
    merged[place] = x[: len(place)]
    return merged.view(groups, k, x.shape[1])


@torch.library.custom_op("genrank::merge_rows_backward", mutates_args=())
def _unmerge(grad: Tensor, offsets: Tensor, starts: Tensor, k: int, rows: int) -> Tensor:
    """[G, k, D] -> [rows, D]: each row's own place in its group."""
    if backend_for(grad) == "triton":
        from genrank.kernels.merge import gpu

        return gpu.unmerge(grad, offsets, starts, k, rows)
    place = places(offsets, starts, k, rows)
    apart = grad.new_zeros(rows, grad.shape[2])
    apart[: len(place)] = grad.reshape(-1, grad.shape[2])[place]
    return apart


def places(offsets: Tensor, starts: Tensor, k: int, rows: int) -> Tensor:
    """int64 [<= rows]: where each row of a sample lies among the groups' k places; rows beyond the last offset have none."""
    lengths = offsets.diff().long()
    index = torch.arange(min(rows, int(offsets[-1])) if len(offsets) else 0)
    sample = torch.repeat_interleave(lengths)[: len(index)]
    return starts[1:].long()[sample] * k - offsets[1:].long()[sample] + index


@_merge.register_fake
def _(x: Tensor, offsets: Tensor, starts: Tensor, k: int, groups: int) -> Tensor:
    return x.new_empty(groups, k, x.shape[1])


@_unmerge.register_fake
def _(grad: Tensor, offsets: Tensor, starts: Tensor, k: int, rows: int) -> Tensor:
    return grad.new_empty(rows, grad.shape[2])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, offsets, starts, ctx.k, _ = inputs
    ctx.rows = x.shape[0]
    ctx.save_for_backward(offsets, starts)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    apart = torch.ops.genrank.merge_rows_backward(grad, *ctx.saved_tensors, ctx.k, ctx.rows)
    return apart, None, None, None, None


_merge.register_autograd(_differentiate, setup_context=_save)

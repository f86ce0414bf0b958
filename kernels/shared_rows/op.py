"""relu(row + its sample's row): on a GPU the sums over samples in backward are segmented, where an indexed addition sorts, or adds in any order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from genrank.kernels.dispatch import backend_for
from genrank.kernels.shared_rows.reference import reference_add_shared_relu


def add_shared_relu(rows: Tensor, shared: Tensor, offsets: Tensor) -> Tensor:
    """[T, D]: relu(rows[t] + shared[sample of t]).

    Args:
        rows: [T, D] of any floating dtype, T rows of B samples, one sample after the other.
        shared: [B, D] of the same.
        offsets: int32 or int64 [B+1]; sample b owns rows offsets[b]:offsets[b+1], and all rows have an owner.

    Returns: [T, D] of rows' dtype. Differentiable in rows and shared.

    Raises: TypeError or ValueError for wrong shapes or dtypes.
    """
    if offsets.dim() != 1 or offsets.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"offsets must be int32 or int64 [B+1], got {offsets.dtype} {list(offsets.shape)}")
    if rows.dim() != 2 or shared.shape != (len(offsets) - 1, rows.shape[1]) or rows.dtype != shared.dtype:
        raise ValueError(
            f"rows must be [T, D] and shared [{len(offsets) - 1}, D] of one dtype, got {rows.dtype} {list(rows.shape)} and"
            f" {shared.dtype} {list(shared.shape)}"
        )
    # A compiler fuses the passes by itself.
    if backend_for(rows) != "triton" or torch.compiler.is_compiling():
        return reference_add_shared_relu(rows, shared, offsets)
    added: Tensor = _AddSharedRelu.apply(rows, shared, offsets)  # type: ignore[no-untyped-call]
    return added


class _AddSharedRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, shared: Tensor, offsets: Tensor) -> Tensor:
        from genrank.kernels.shared_rows import gpu

        out = gpu.add(rows.contiguous(), shared.contiguous(), offsets)
        ctx.save_for_backward(out, offsets)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        from genrank.kernels.shared_rows import gpu

        out, offsets = ctx.saved_tensors  # type: ignore[attr-defined]
        return *gpu.gradients(grad.contiguous(), out, offsets), None

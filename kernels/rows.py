"""Some rows of a tensor, each at most once, out of it and back into its shape."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def pick_rows(rows: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """[R, ...] of each of [T, ...]: its rows ([R] int64, each at most once). Differentiable."""
    return tuple(_Rows.apply(value, rows) for value in values)  # type: ignore[no-untyped-call]


def lay_rows(rows: Tensor, values: Tensor, count: int) -> Tensor:
    """[count, ...]: values [R, ...] at these rows ([R] int64, each at most once), and zeros. Differentiable."""
    return values.new_zeros(count, *values.shape[1:]).index_copy_(0, rows, values)


class _Rows(torch.autograd.Function):
    """Backward copies, where that of `index_select` adds up, in an order of its own."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.count = len(values)  # type: ignore[attr-defined]
        return values.index_select(0, rows)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return lay_rows(rows, grad, ctx.count), None  # type: ignore[attr-defined]

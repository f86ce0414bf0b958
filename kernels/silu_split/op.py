"""silu(x W^T + b), split into parts: hidden from autograd are the concatenation of the parts' gradients, SiLU's slope and the bias's sums."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from genrank.kernels.dispatch import backend_for
from genrank.kernels.silu_split.reference import reference_split


def silu_split(x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sequence[int], active: int) -> tuple[Tensor, ...]:
    """Parts of z = x W^T + b (under autocast in its dtype), the first `active` columns of which go through SiLU.

    On a GPU backward writes the parts' gradients times SiLU's slope side by side, as the products of x and W read them, and sums the bias's
    gradient on the way: one pass over them instead of three.

    Args:
        x: [T, D]; weight: [sum of sizes, D]; bias: [sum of sizes].
        sizes: the parts' columns; at most 4.
        active: 0, the first part's columns, or all.
    Returns: [T, size] of each part, of adjacent columns. Differentiable in x, weight and bias.
    Raises: ValueError for sizes that disagree.
    """
    if sum(sizes) != weight.shape[0] or not 1 <= len(sizes) <= 4 or active not in (0, sizes[0], sum(sizes)):
        raise ValueError(
            f"sizes {list(sizes)} with {active} active don't split a weight of {weight.shape[0]} rows: give at most 4, and SiLU to none, the"
            " first, or all"
        )
    # A compiler fuses backward's passes by itself; inference has none.
    if backend_for(x) != "triton" or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return reference_split(x, weight, bias, sizes, active)
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    parts: tuple[Tensor, ...] = _SiluSplit.apply(x, weight, bias, tuple(sizes), active)  # type: ignore[no-untyped-call]
    return parts


class _SiluSplit(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, sizes: tuple[int, ...], active: int
    ) -> tuple[Tensor, ...]:
        z = F.linear(x, weight, bias)
        ctx.save_for_backward(x, weight, z)
        ctx.sizes, ctx.active, ctx.bias = sizes, active, bias is not None  # type: ignore[attr-defined]
        if active == sum(sizes):
            return torch.split(F.silu(z), list(sizes), 1)
        first, *rest = torch.split(z, list(sizes), 1)
        return (F.silu(first) if active else first, *rest)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from genrank.kernels.silu_split import gpu

        x, weight, z = ctx.saved_tensors  # type: ignore[attr-defined]
        dz, sums = gpu.pack_gradients(list(grads), z, ctx.active)  # type: ignore[attr-defined]
        of_bias = sums.to(z.dtype) if ctx.bias else None  # type: ignore[attr-defined]
        return F.linear(dz, weight.t(), None), F.linear(dz.t(), x.t(), None), of_bias, None, None

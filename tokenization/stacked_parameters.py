"""Parameters of equal shape that several modules keep, side by side: modules are saved one by one and computed together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def stack_parameters(kinds: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Each kind's n tensors of one shape, to [n, *shape]. One launch for all kinds, none in backward.

    Args:
        kinds: at least one tensor each, all of one dtype and device.
    """
    stacked = _Stacked.apply([len(kind) for kind in kinds], *(each for kind in kinds for each in kind))  # type: ignore[no-untyped-call]
    return list(stacked)


class _Stacked(torch.autograd.Function):
    """Backward hands out parts of the gradients, where that of `torch.stack` is launches a kind."""

    @staticmethod
    def forward(ctx: FunctionCtx, counts: Sequence[int], *tensors: Tensor) -> tuple[Tensor, ...]:
        flat = torch.cat([each.reshape(-1) for each in tensors])
        firsts = [sum(counts[:i]) for i in range(len(counts))]
        shapes = [(n, *tensors[first].shape) for n, first in zip(counts, firsts, strict=True)]
        parts = torch.split(flat, [n * tensors[first].numel() for n, first in zip(counts, firsts, strict=True)])
        return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(each for grad in grads for each in grad.unbind(0))


def gather_parameters(
    places: Tensor, inverse: Tensor, zero: Tensor, sizes: Sequence[int], parameters: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Parameters of several shapes, padded with zeros: values picked from all of them, one after another.

    Args:
        places: [P] int64: which value each is, of the parameters' n in a row; n for a zero. Each below n once.
        inverse: [n] int64: where each of them went.
        zero: [1], of the parameters' dtype.
        sizes: how many of the P each result has.

    Returns:
        [size] each.
    """
    found: tuple[Tensor, ...] = _Gathered.apply(places, inverse, zero, sizes, *parameters)  # type: ignore[no-untyped-call]
    return found


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, places: Tensor, inverse: Tensor, zero: Tensor, sizes: Sequence[int], *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.inverse, ctx.shapes = inverse, [each.shape for each in parameters]  # type: ignore[attr-defined]
        flat = torch.cat([*(each.reshape(-1) for each in parameters), zero])
        return torch.split(flat.index_select(0, places), list(sizes))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        shapes = ctx.shapes  # type: ignore[attr-defined]
        flat = torch.cat([grad.flatten() for grad in grads]).index_select(0, ctx.inverse)  # type: ignore[attr-defined]
        parts = torch.split(flat, [shape.numel() for shape in shapes])
        return *[None] * 4, *(part.view(shape) for part, shape in zip(parts, shapes, strict=True))

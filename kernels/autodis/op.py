"""AutoDis as one op: in PyTorch it is ten operations and more in backward, each a kernel, on numbers that fit one program's registers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from genrank.kernels.autodis.layout import LARGEST, Number
from genrank.kernels.autodis.reference import reference_autodis
from genrank.kernels.dispatch import backend_for


def autodis(values: Tensor, numbers: Sequence[Number], parameters: Sequence[Tensor], places: Tensor) -> Tensor:
    """Numbers to vectors: softmax of (h M + skip h) / temperature over a number's buckets, times its meta-embeddings; h = LeakyReLU(value * lift).

    A missing value has a vector of its own. On a GPU it is one kernel, and in backward two, whose sums have a fixed order; always in float32.

    Args:
        values: [R, N] float32, NaN where missing.
        numbers: F of them.
        parameters: of each number, in `Number.shapes`: float32 lift [h], M [h, h], skip [1], meta-embeddings [h, dim], missing [dim].
        places: int32 [F, 6]: `table(numbers)`, on the values' device.
    Returns: [N, sum of dims], the numbers' columns in order. Differentiable in the parameters, not in the values.
    Raises: ValueError for parameters of other shapes, and on a GPU for more than `LARGEST` buckets.
    """
    wanted = [shape for number in numbers for shape in number.shapes]
    if values.dim() != 2 or not numbers or [tuple(each.shape) for each in parameters] != wanted:
        raise ValueError(
            f"values must be [R, N] and parameters {wanted}, got {list(values.shape)} and {[tuple(each.shape) for each in parameters]}"
        )
    if backend_for(values) != "triton":
        return reference_autodis(values, numbers, parameters)
    if max(number.buckets for number in numbers) > LARGEST:
        raise ValueError(f"the kernels take at most {LARGEST} buckets, got {max(number.buckets for number in numbers)}")
    vectors: Tensor = _AutoDis.apply(values, list(numbers), places, *parameters)  # type: ignore[no-untyped-call]
    return vectors


class _AutoDis(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, numbers: list[Number], places: Tensor, *parameters: Tensor) -> Tensor:
        from genrank.kernels.autodis import gpu

        flat = torch.cat([each.reshape(-1) for each in parameters])
        ctx.save_for_backward(values, places, flat)
        ctx.numbers = numbers  # type: ignore[attr-defined]
        return gpu.forward(values, numbers, places, flat)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        from genrank.kernels.autodis import gpu

        values, places, flat = ctx.saved_tensors  # type: ignore[attr-defined]
        numbers: list[Number] = ctx.numbers  # type: ignore[attr-defined]
        shapes = [shape for number in numbers for shape in number.shapes]
        grads = torch.split(gpu.backward(grad, values, numbers, places, flat), [math.prod(shape) for shape in shapes])
        return None, None, None, *(part.view(shape) for part, shape in zip(grads, shapes, strict=True))

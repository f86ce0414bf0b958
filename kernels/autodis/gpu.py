"""AutoDis on GPU (kernels: `triton_autodis.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from genrank.kernels.autodis.layout import Number
from genrank.kernels.autodis.triton_autodis import autodis_backward_kernel, autodis_kernel, autodis_parameters_kernel
from genrank.kernels.launch import Tuned

COLUMNS = 8
"""Of a vector that one program computes."""
SOURCES = 16
"""Rows of a mixing matrix that it reads at a time."""
PRODUCTS = 2048
"""Values times buckets times columns that one program holds at a time, 16 for each thread."""
SIZES = (32, 16, 8, 4, 2, 1, 64)
"""Values that a program takes at a time. The last is the interpreter's, which takes as long for a block of any size."""
SHORTEST, MOST = 64, 256
"""Values of a strip at least, strips at most: a program takes a strip, and backward adds the strips' sums in order."""


def fits(config: triton.Config, named: dict[str, Any], arch: int) -> bool:
    """As many values at a time as there are registers for, or half of them."""
    size = config.kwargs["NUMBERS"] * named["H"] * COLUMNS
    return bool(size <= PRODUCTS and (4 * size > PRODUCTS or config.kwargs["NUMBERS"] == max(SIZES)))


BLOCKS = [triton.Config({"NUMBERS": n}, num_warps=4, num_stages=1) for n in SIZES]
forward_tuned = Tuned(autodis_kernel, BLOCKS, ["H"], fits)
backward_tuned = Tuned(autodis_backward_kernel, BLOCKS, ["H"], fits)
parameters_tuned = Tuned(autodis_parameters_kernel, [triton.Config({}, num_warps=4, num_stages=1)], ["H"])


def forward(values: Tensor, numbers: Sequence[Number], places: Tensor, parameters: Tensor) -> Tensor:
    """[R, N] -> float32 [N, sum of dims]; parameters: those of all numbers in a row."""
    values, count = values.contiguous(), values.shape[1]
    width = sum(number.dim for number in numbers)
    out = torch.empty(count, width, dtype=torch.float32, device=values.device)
    strip, strips = strips_of(count)
    if count:
        same, groups = constants(numbers)
        grid = strips, len(numbers), groups
        forward_tuned(lambda _: grid, [values, parameters, places, out, count, width, strip], same)
    return out


def backward(grad: Tensor, values: Tensor, numbers: Sequence[Number], places: Tensor, parameters: Tensor) -> Tensor:
    """The gradient of the parameters in a row, of that of `forward`'s result."""
    grad = grad if grad.stride(1) == 1 else grad.contiguous()
    values, count = values.contiguous(), values.shape[1]
    same, groups = constants(numbers)
    strip, strips = strips_of(count)
    width = 2 * same["H"] + (same["H"] + 1) * COLUMNS
    sums = torch.empty(len(numbers), groups, strips, width, dtype=torch.float32, device=values.device)
    if count:
        grid = strips, len(numbers), groups
        backward_tuned(lambda _: grid, [grad, values, parameters, places, sums, count, grad.stride(0), strip], same)
    grads = torch.empty_like(parameters)
    rows = min(16, 4 * PRODUCTS // (same["H"] * COLUMNS))
    parameters_tuned(
        lambda _: (len(numbers), 1 + groups), [sums, parameters, places, grads, strips, groups], {**same, "ROWS": rows}
    )
    return grads


def strips_of(count: int) -> tuple[int, int]:
    """The values of a strip, a multiple of `SHORTEST`, and how many strips `count` values are."""
    strip = SHORTEST * max(1, triton.cdiv(count, SHORTEST * MOST))
    return strip, int(triton.cdiv(count, strip))


def constants(numbers: Sequence[Number]) -> tuple[dict[str, int], int]:
    """The most buckets, to the next power of two, the columns of a program, and rows of a mixing matrix that are read at a time; and how many
    programs the widest vector takes."""
    h = int(triton.next_power_of_2(max(number.buckets for number in numbers)))
    same = {"H": h, "COLUMNS": COLUMNS, "SOURCES": SOURCES}
    return same, int(triton.cdiv(max(number.dim for number in numbers), COLUMNS))

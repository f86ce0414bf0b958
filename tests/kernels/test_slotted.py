"""Slotted ops equal their definition, and so do their gradients."""

from __future__ import annotations

import pytest
import torch

from genrank.kernels.slotted import slotted_ffn, slotted_linear
from genrank.kernels.slotted.reference import reference_ffn, reference_linear

SHAPES = [(5, 3, 4, 6), (1, 1, 2, 2), (0, 2, 3, 4), (7, 4, 1, 5)]


def draw(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=g, dtype=torch.float64, requires_grad=True) for shape in shapes]


def same(got: torch.Tensor, wanted: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    torch.testing.assert_close(got, wanted)
    seed = torch.randn(got.shape, dtype=got.dtype, generator=torch.Generator().manual_seed(1))
    for a, b in zip(torch.autograd.grad(got, inputs, seed), torch.autograd.grad(wanted, inputs, seed), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("c", "t", "d", "e"), SHAPES)
def test_linear(c: int, t: int, d: int, e: int) -> None:
    x, weight, bias = draw((c, t, d), (t, d, e), (t, e))
    same(slotted_linear(x, weight, bias), reference_linear(x, weight, bias), [x, weight, bias])
    same(slotted_linear(x, weight), reference_linear(x, weight, None), [x, weight])


@pytest.mark.parametrize("activation", ["gelu", "relu", "swiglu"])
@pytest.mark.parametrize(("c", "t", "d", "e"), SHAPES)
def test_ffn(c: int, t: int, d: int, e: int, activation) -> None:
    wide = 2 * e if activation == "swiglu" else e
    inputs = draw((c, t, d), (t, d, wide), (t, wide), (t, e, d), (t, d))
    same(slotted_ffn(*inputs, activation), reference_ffn(*inputs, activation), inputs)


def test_shapes_that_disagree() -> None:
    x, weight, bias = draw((5, 3, 4), (2, 4, 6), (3, 5))
    with pytest.raises(ValueError, match=r"x \[5, 3, 4\] and weight \[2, 4, 6\]"):
        slotted_linear(x, weight)
    with pytest.raises(ValueError, match=r"bias \[3, 5\] must be \[3, 6\]"):
        slotted_linear(x, weight.new_zeros(3, 4, 6), bias)

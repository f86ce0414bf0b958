"""AutoDis: the kernels (interpreted) against the definition in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from genrank.kernels.autodis import LARGEST, Number, autodis, gpu, reference_autodis, table
from genrank.kernels.launch import recording


def drawn(sizes: list[tuple[int, int]], count: int, seed: int) -> tuple[Tensor, list[Number], list[Tensor]]:
    """Values with a third missing, the last row for the first number and a row that none reads; the numbers; their parameters."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(sizes) + 1, count, generator=generator) * 3
    values[torch.rand(values.shape, generator=generator) < 0.3] = math.nan
    values[:, : count // 4] = 0.0
    numbers = [Number(len(sizes) - i, *size, (1.0, 0.3)[i % 2]) for i, size in enumerate(sizes)]
    shapes = [shape for number in numbers for shape in number.shapes]
    return values, numbers, [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ([(16, 8)], 70),
        ([(16, 8), (9, 8)], 5),
        ([(2, 1), (3, 2), (4, 2)], 1),
        ([(5, 11), (8, 3)], 64),
        ([(20, 5)], 9),
        ([(4, 2)], 0),
    ],
)
def test_equals_the_definition(sizes: list[tuple[int, int]], count: int) -> None:
    """Buckets and width of each number: of one block of columns or several, of more buckets than a program reads rows of at a time."""
    values, numbers, parameters = drawn(sizes, count, 0)
    width = sum(dim for _, dim in sizes)
    upstream = torch.linspace(-1, 1, count * width).view(count, width)
    results: list[list[Tensor]] = []
    for dtype in (torch.float32, torch.float64):
        leaves = [each.to(dtype).requires_grad_() for each in parameters]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GENRANK_KERNELS", "triton" if dtype == torch.float32 else "")
            out = autodis(values.to(dtype), numbers, leaves, table(numbers))
            grads = torch.autograd.grad(out, leaves, upstream.to(dtype))
        results.append([out.detach(), *grads])
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=1e-4)


def test_strips_are_summed_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks each, the last beyond the values' end; a gradient whose columns aren't adjacent, or whose rows aren't."""
    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    monkeypatch.setattr(gpu, "SHORTEST", 8)
    monkeypatch.setattr(gpu, "MOST", 2)
    assert gpu.strips_of(150) == (80, 2) and gpu.strips_of(5) == (8, 1) and gpu.strips_of(0) == (8, 0)
    values, numbers, parameters = drawn([(4, 3)], 150, 1)
    leaves = [each.requires_grad_() for each in parameters]
    out = autodis(values, numbers, leaves, table(numbers))
    wanted = reference_autodis(values, numbers, leaves)
    for upstream in (torch.randn(3, 150).t(), torch.ones(150, 1).expand(150, 3), torch.randn(150, 9)[:, 2:5]):
        got = torch.autograd.grad(out, leaves, upstream, retain_graph=True)
        for ours, exact in zip(got, torch.autograd.grad(wanted, leaves, upstream, retain_graph=True), strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4)


def test_what_overflowed_is_the_largest_number(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = [Number(0, 2, 1, 1.0)]
    parameters = [
        torch.tensor([0.1, -0.2]),
        torch.zeros(2, 2),
        torch.ones(1),
        torch.tensor([[3.0], [5.0]]),
        torch.ones(1),
    ]
    for backend in ("reference", "triton"):
        monkeypatch.setenv("GENRANK_KERNELS", backend)
        found = autodis(torch.tensor([[math.inf, -math.inf, math.nan]]), numbers, parameters, table(numbers))
        assert found.flatten().tolist() == [3.0, 5.0, 1.0]


def test_one_kernel_forward_and_two_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device runs what a GPU would; inference the same kernel."""
    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    values, numbers, parameters = (each for each in drawn([(16, 8), (8, 3)], 300, 0))
    leaves = [each.to("meta").requires_grad_() for each in parameters]
    with recording() as launches:
        out = autodis(values.to("meta"), numbers, leaves, table(numbers).to("meta"))
        assert out.shape == (300, 11) and len(launches) == 1
        out.sum().backward()
        with torch.no_grad():
            autodis(values.to("meta"), numbers, leaves, table(numbers).to("meta"))
    names = [launch.kernel.__name__ for launch in launches]
    assert names == ["autodis_kernel", "autodis_backward_kernel", "autodis_parameters_kernel", "autodis_kernel"]
    assert all(leaf.grad is not None and leaf.grad.shape == leaf.shape for leaf in leaves)
    for launch in launches[:2]:
        assert [config.kwargs["NUMBERS"] for config in launch.configs(90)] == [16, 8]


def test_bad_input_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    values, numbers, parameters = drawn([(4, 2)], 3, 0)
    with pytest.raises(
        ValueError, match=r"parameters \[\(4,\), \(4, 4\), \(1,\), \(4, 2\), \(2,\)\], got \[2, 3\] and"
    ):
        autodis(values, numbers, parameters[:4], table(numbers))
    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    values, numbers, parameters = drawn([(LARGEST + 1, 1)], 3, 0)
    with pytest.raises(ValueError, match="take at most 128 buckets, got 129"):
        autodis(values, numbers, parameters, table(numbers))

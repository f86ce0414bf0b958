"""The split projection: the kernel's backward (interpreted) against the definition in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genrank.kernels.launch import recording
from genrank.kernels.silu_split import gpu, silu_split

from .cases import interpreted

SIZES = ((24, 24, 16, 16), (8, 40), (40, 8, 300), (5,))


@interpreted(8)
@given(st.integers(1, 300), st.sampled_from(SIZES), st.sampled_from(["none", "first", "all"]), st.booleans())
def test_backward_equals_the_definition(tokens: int, sizes: tuple[int, ...], which: str, biased: bool) -> None:
    active = {"none": 0, "first": sizes[0], "all": sum(sizes)}[which]
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(tokens, 6), (sum(sizes), 6), (sum(sizes),)][: 3 if biased else 2]
    given = [torch.randn(shape, generator=generator) for shape in shapes]
    results: list[list[Tensor]] = []
    for backend, dtype in (("triton", torch.float32), ("", torch.float64)):
        leaves = [value.to(dtype).requires_grad_() for value in given]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GENRANK_KERNELS", backend)
            parts = silu_split(leaves[0], leaves[1], leaves[2] if biased else None, sizes, active)
            upstream = [torch.linspace(-1, 1, part.numel()).view(part.shape).to(dtype) for part in parts]
            results.append([*(p.detach() for p in parts), *torch.autograd.grad(parts, leaves, upstream)])
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=1e-4)


def test_one_pass_in_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a part that nothing reads has a gradient of zeros."""
    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    x, weight = (torch.ones(3, 6, device="meta", requires_grad=True), torch.ones(10, 6, device="meta"))
    with recording() as launches:
        used, _ = silu_split(x, weight, None, (4, 6), 4)
        used.sum().backward()
    assert [launch.kernel.__name__ for launch in launches] == ["pack_kernel"] and x.grad is not None
    z = torch.tensor([[0.0, 1.0, 2.0]])
    dz, sums = gpu.pack_gradients([torch.ones(1, 2), torch.zeros(1, 1)], z, 0)
    assert dz.tolist() == [[1.0, 1.0, 0.0]] and torch.equal(sums, dz[0])


def test_sizes_must_split_the_weight() -> None:
    x, weight = torch.ones(2, 3), torch.ones(10, 3)
    for sizes, active in (((4, 5), 4), ((4, 6), 5), ((2,) * 5, 2)):
        with pytest.raises(ValueError, match="don't split a weight of 10 rows"):
            silu_split(x, weight, None, sizes, active)

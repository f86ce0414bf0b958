"""Rows plus their sample's row: the kernels (interpreted) against the definition in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genrank.kernels.launch import recording
from genrank.kernels.shared_rows import add_shared_relu, reference_add_shared_relu

from .cases import interpreted


@interpreted(4)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=3), st.sampled_from([1, 130]), st.booleans())
def test_values_and_gradients_equal_the_definition(lengths: list[int], dim: int, half: bool) -> None:
    generator = torch.Generator().manual_seed(dim)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    dtype = torch.bfloat16 if half else torch.float32
    given = [torch.randn(n, dim, generator=generator).to(dtype) for n in (sum(lengths), len(lengths))]
    mine, exact = ([each.to(to).requires_grad_() for each in given] for to in (dtype, torch.float64))
    upstream = torch.randn(sum(lengths), dim, generator=generator).to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENRANK_KERNELS", "triton")
        got = add_shared_relu(*mine, offsets)
        found = torch.autograd.grad(got, mine, upstream)
    wanted = reference_add_shared_relu(*exact, offsets)
    near = {"rtol": 1e-2, "atol": 1e-2} if half else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(got.double(), wanted, **near)
    for ours, theirs in zip(found, torch.autograd.grad(wanted, exact, upstream.double()), strict=True):
        torch.testing.assert_close(ours.double(), theirs, **near)


def test_nan_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard against a loss that is no number would miss it."""
    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    rows = torch.tensor([[float("nan"), 1.0]], requires_grad=True)
    out = add_shared_relu(rows, torch.ones(1, 2), torch.tensor([0, 1]))
    assert out.isnan().tolist() == [[True, False]]
    out.sum().backward()
    assert rows.grad.tolist() == [[1.0, 1.0]]


def test_a_launch_each_way_and_no_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    rows, shared = (torch.ones(n, 4, device="meta", requires_grad=True) for n in (5, 2))
    with recording() as launches:
        add_shared_relu(rows, shared, torch.zeros(3, dtype=torch.int64, device="meta")).sum().backward()
    assert [launch.kernel.__name__ for launch in launches] == ["shared_forward_kernel", "shared_backward_kernel"]


def test_wrong_shapes_are_refused() -> None:
    rows, offsets = torch.ones(3, 4), torch.tensor([0, 3])
    with pytest.raises(TypeError, match="offsets must be int32 or int64"):
        add_shared_relu(rows, rows[:1], offsets.float())
    for shared in (rows[:2], rows[:1, :2], rows[:1].double()):
        with pytest.raises(ValueError, match=r"shared \[1, D\] of one dtype"):
            add_shared_relu(rows, shared, offsets)

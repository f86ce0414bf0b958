"""Merging of neighbours against its definition: on CPU, and by the Triton kernel in the interpreter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrank.kernels.merge import group_offsets, merge_rows, reference_merge_rows

from .cases import interpreted


def check(lengths: list[int], k: int, dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    x = torch.randn(int(offsets[-1]), dim, dtype=dtype, requires_grad=True)
    want = reference_merge_rows(x, offsets, k)
    got = merge_rows(x, offsets, k)
    assert torch.equal(got, want)
    assert group_offsets(offsets, k).diff().tolist() == [-(-n // k) for n in lengths]
    upstream = torch.randn_like(want)
    if len(x):
        expected = torch.autograd.grad(want, x, upstream, allow_unused=True, materialize_grads=True)[0]
        assert torch.equal(torch.autograd.grad(got, x, upstream)[0], expected)


LENGTHS = st.lists(st.integers(0, 20), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 6))
def test_equals_the_definition(lengths: list[int], k: int) -> None:
    check(lengths, k, 3, torch.float64)


def test_the_kernel_equals_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENRANK_KERNELS", "triton")

    @interpreted(12)
    @given(LENGTHS, st.integers(1, 6), st.sampled_from([5, 70]), st.sampled_from([torch.float32, torch.float16]))
    def run(lengths: list[int], k: int, dim: int, dtype: torch.dtype) -> None:
        check(lengths, k, dim, dtype)

    run()


def test_the_newest_group_is_whole_and_the_oldest_padded() -> None:
    merged = merge_rows(torch.arange(1.0, 8.0)[:, None], torch.tensor([0, 5, 7]), 3)[..., 0]
    assert merged.tolist() == [[0, 1, 2], [3, 4, 5], [0, 6, 7]]


def test_the_ops_are_registered_as_pytorch_wants() -> None:
    offsets = torch.tensor([0, 5, 5, 7])
    starts, x = group_offsets(offsets, 3), torch.randn(7, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.genrank.merge_rows, (x, offsets, starts, 3, 3))
    torch.library.opcheck(torch.ops.genrank.merge_rows_backward, (torch.randn(3, 3, 4), offsets, starts, 3, 7))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="k must be at least 1"):
        merge_rows(torch.zeros(2, 2), torch.tensor([0, 2]), 0)
    with pytest.raises(TypeError, match=r"x must be \[T, D\]"):
        merge_rows(torch.zeros(2), torch.tensor([0, 2]), 1)

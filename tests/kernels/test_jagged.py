"""Jagged ops on both backends: against per-sample loops, and each kernel against the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genrank.kernels.jagged import jagged_concat, permuted

from .cases import interpreted

BACKENDS = ["", "triton"]


@interpreted(25)
@given(st.integers(1, 3), st.integers(0, 5), st.sampled_from([torch.int32, torch.int64]), st.data())
def test_concat(parts: int, samples: int, index: torch.dtype, data: st.DataObject) -> None:
    lengths = [data.draw(st.lists(st.integers(0, 5), min_size=samples, max_size=samples)) for _ in range(parts)]
    given_parts: list[tuple[Tensor, Tensor]] = []
    for of_part in lengths:
        offsets = torch.tensor([0, *of_part]).cumsum(0).to(index)
        given_parts.append((torch.randn(sum(of_part), 3, requires_grad=True), offsets))
    want = [v[o[b] : o[b + 1]] for b in range(samples) for v, o in given_parts]
    for backend in BACKENDS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GENRANK_KERNELS", backend)
            values, offsets = jagged_concat(given_parts)
            assert offsets.dtype == index
            assert torch.equal(offsets, torch.stack([o for _, o in given_parts]).sum(0).to(index))
            assert torch.equal(values, torch.cat([values[:0], *want]))
            weights = torch.randn_like(values)
            if values.numel():
                leaves = [v for v, _ in given_parts]
                grads = torch.autograd.grad(values, leaves, weights)
                wanted = torch.autograd.grad(torch.cat(want), leaves, weights)
                assert all(torch.equal(g, w) for g, w in zip(grads, wanted, strict=True))


@interpreted(15)
@given(
    st.integers(0, 40), st.integers(1, 5), st.integers(0, 2), st.sampled_from([torch.float32, torch.float16]), st.data()
)
def test_rows_of_a_table_are_added_in_an_order(
    tokens: int, size: int, added: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    """Against float64, row by row; the last row of the table stays zero."""
    torch.manual_seed(data.draw(st.integers(0, 99)))
    order = torch.randperm(tokens)
    inverse = torch.empty_like(order).index_copy_(0, order, torch.arange(tokens))
    rows = [torch.randint(0, size + 1, (tokens,)) for _ in range(added)]
    given_x, given_table = torch.randn(tokens, 5, dtype=dtype), torch.randn(size + 1, 5)
    given_table[-1] = 0
    weights = torch.randn(tokens, 5)

    x, table = (v.double().requires_grad_() for v in (given_x, given_table))
    want = torch.stack([x[i] + sum(table[r[i]] for r in rows) for i in order.tolist()]) if tokens else x[:0]
    if added:
        wanted = torch.autograd.grad(want, (x, table), weights.double(), allow_unused=True)
    for backend in BACKENDS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GENRANK_KERNELS", backend)
            x, table = given_x.clone().requires_grad_(), given_table.clone().requires_grad_()
            out = permuted(x, order, inverse, table, rows) if added else permuted(x, order, inverse)
            assert out.dtype == (torch.float32 if added else dtype)
            torch.testing.assert_close(out.double(), want, rtol=1e-6, atol=1e-6)
            if added and tokens:
                found = torch.autograd.grad(out, (x, table), weights)
                assert found[0].dtype == dtype and not found[1][-1].any()
                assert torch.equal(found[0], weights[inverse].to(dtype))
                torch.testing.assert_close(found[1][:-1].double(), wanted[1][:-1], rtol=1e-5, atol=1e-5)


def test_registered_as_pytorch_wants() -> None:
    from genrank.kernels.jagged import gpu as jagged_gpu  # noqa: F401  registers the ops

    offsets = [torch.tensor([0, 2, 3]), torch.tensor([0, 0, 4])]
    parts = [torch.randn(3, 16, requires_grad=True), torch.randn(4, 16, requires_grad=True)]
    torch.library.opcheck(torch.ops.genrank.jagged_concat, (parts, offsets))
    torch.library.opcheck(torch.ops.genrank.jagged_split, (torch.randn(7, 16), offsets, [3, 4]))


def test_bad_input_is_named() -> None:
    part = (torch.randn(3, 4), torch.tensor([0, 1, 3]))
    with pytest.raises(ValueError, match="at least one part"):
        jagged_concat([])
    with pytest.raises(ValueError, match="must be the same batch"):
        jagged_concat([part, (torch.randn(3, 4), torch.tensor([0, 3]))])
    with pytest.raises(ValueError, match=r"parts must be \[tokens, 4\]"):
        jagged_concat([part, (torch.randn(3, 5), torch.tensor([0, 1, 3]))])

"""Jagged ops on both backends: against per-sample loops, and each kernel against the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genrank.kernels.jagged import grouped_linear, jagged_concat, jagged_split, position_time_encoding

from .cases import interpreted

BACKENDS = ["", "triton"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GENRANK_KERNELS", request.param)
    return str(request.param)


@interpreted(25)
@given(st.integers(1, 3), st.integers(0, 5), st.sampled_from([torch.int32, torch.int64]), st.data())
def test_concat_and_split(parts: int, samples: int, index: torch.dtype, data: st.DataObject) -> None:
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
            back = jagged_split(values, offsets, [o for _, o in given_parts])
            split = jagged_split(values, offsets, [o for _, o in given_parts], [len(v) for v, _ in given_parts])
            assert all(torch.equal(a, b) for a, b in zip(back, split, strict=True))
            assert all(torch.equal(a, b) for a, (b, _) in zip(back, given_parts, strict=True))
            weights = [torch.randn_like(part) for part in back]
            loss = sum(((part * w).sum() for part, w in zip(back, weights, strict=True)), torch.zeros(()))
            if values.numel():
                grads = torch.autograd.grad(loss, [v for v, _ in given_parts])
                assert all(torch.equal(g, w) for g, w in zip(grads, weights, strict=True))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("tokens", "dims"), [(0, (4, 3)), (1, (16, 32)), (150, (40, 33))])
def test_grouped_linear(tokens: int, dims: tuple[int, int], with_bias: bool, backend: str) -> None:
    torch.manual_seed(0)
    groups = torch.randint(0, 3, (tokens,), dtype=torch.int32)
    groups[groups == 1] = 2
    x = torch.randn(tokens, dims[0], requires_grad=True)
    weight = torch.randn(3, *dims, requires_grad=True)
    bias = torch.randn(3, dims[1], requires_grad=True) if with_bias else None
    leaves = [t for t in (x, weight, bias) if t is not None]
    out = grouped_linear(x, groups, weight, bias)
    want = torch.einsum("ti,tio->to", x, weight[groups.long()]) + (0 if bias is None else bias[groups.long()])
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)
    if tokens:
        upstream = torch.randn_like(out)
        for a, b in zip(
            torch.autograd.grad(out, leaves, upstream), torch.autograd.grad(want, leaves, upstream), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_position_time_encoding(backend: str) -> None:
    """Against the formula, token by token: positions and ages beyond the tables use their last rows."""
    torch.manual_seed(0)
    x, position_table, time_table = (torch.randn(n, 5, requires_grad=True) for n in (6, 4, 8))
    positions = torch.tensor([0, 1, 3, 4, 100, 2], dtype=torch.int32)
    elapsed = torch.tensor([0, 1, 2, 10, 10**6, -3])
    buckets = [0, 0, 2, 7, 7, 3]
    out = position_time_encoding(x, position_table, positions, time_table, elapsed, scale=2.0)
    want = torch.stack(
        [2 * x[t] + position_table[min(int(positions[t]), 3)] + time_table[buckets[t]] for t in range(6)]
    )
    torch.testing.assert_close(out, want)
    leaves, upstream = [x, position_table, time_table], torch.randn_like(out)
    for a, b in zip(
        torch.autograd.grad(out, leaves, upstream), torch.autograd.grad(want, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_registered_as_pytorch_wants() -> None:
    from genrank.kernels import jagged_triton  # noqa: F401  registers the ops

    offsets = [torch.tensor([0, 2, 3]), torch.tensor([0, 0, 4])]
    parts = [torch.randn(3, 16, requires_grad=True), torch.randn(4, 16, requires_grad=True)]
    torch.library.opcheck(torch.ops.genrank.jagged_concat, (parts, offsets))
    torch.library.opcheck(torch.ops.genrank.jagged_split, (torch.randn(7, 16, requires_grad=True), offsets, [3, 4]))
    groups = torch.tensor([0, 1, 1], dtype=torch.int32)
    weight, bias = torch.randn(2, 16, 16, requires_grad=True), torch.randn(2, 16, requires_grad=True)
    torch.library.opcheck(torch.ops.genrank.grouped_linear, (parts[0], groups, weight, bias))
    plain = [t.detach() for t in (torch.randn(3, 16), parts[0], weight, bias)]
    backward = (plain[0], plain[1], groups, plain[2], plain[3])
    torch.library.opcheck(torch.ops.genrank.grouped_linear_backward, backward)
    encode = (
        parts[0],
        torch.randn(5, 16, requires_grad=True),
        groups,
        torch.randn(4, 16, requires_grad=True),
        groups.long(),
        2.0,
    )
    torch.library.opcheck(torch.ops.genrank.position_time_encoding, encode)


def test_bad_input_is_named() -> None:
    part = (torch.randn(3, 4), torch.tensor([0, 1, 3]))
    with pytest.raises(ValueError, match="at least one part"):
        jagged_concat([])
    with pytest.raises(ValueError, match="must be the same batch"):
        jagged_concat([part, (torch.randn(3, 4), torch.tensor([0, 3]))])
    with pytest.raises(ValueError, match=r"parts must be \[tokens, 4\]"):
        jagged_concat([part, (torch.randn(3, 5), torch.tensor([0, 1, 3]))])
    with pytest.raises(ValueError, match="1 part_offsets and 2 part_tokens"):
        jagged_split(part[0], part[1], [part[1]], [1, 2])
    with pytest.raises(ValueError, match="6 tokens together, values has 3"):
        jagged_split(part[0], part[1], [part[1], part[1]])

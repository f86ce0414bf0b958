"""Group LayerNorm and norm-gate: the reference against the formula, the kernels (interpreted) against the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genrank.kernels.norm import Order, add_norm, group_layer_norm, norm_gate
from genrank.kernels.norm import gpu as norm_gpu

from .cases import interpreted

ORDERS: list[Order] = ["norm_gate", "gate_norm"]


def draw(tokens: int, dim: int, groups: int, dtype: torch.dtype) -> list[Tensor]:
    """attn, u, weight, bias, group_ids."""
    generator = torch.Generator().manual_seed(tokens * 100 + dim)
    shapes = [(tokens, dim), (tokens, dim), (groups, dim), (groups, dim)]
    floats = [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]
    return [*floats, torch.randint(0, groups, (tokens,), generator=generator, dtype=torch.int32)]


def formula(x: Tensor, weight: Tensor, bias: Tensor, groups: Tensor) -> Tensor:
    rows = []
    for t in range(len(x)):
        centred = x[t] - x[t].mean()
        rows.append(centred / (centred.square().mean() + 1e-6).sqrt() * weight[groups[t]] + bias[groups[t]])
    return torch.stack(rows)


def test_reference_is_the_formula() -> None:
    attn, u, weight, bias, groups = draw(7, 5, 3, torch.float64)
    torch.testing.assert_close(group_layer_norm(attn, groups, weight, bias), formula(attn, weight, bias, groups))
    hstu = norm_gate(attn, u, weight, bias, order="norm_gate", group_ids=groups)
    mtgr = norm_gate(attn, u, weight, bias, order="gate_norm", group_ids=groups)
    torch.testing.assert_close(hstu, formula(attn, weight, bias, groups) * u)
    torch.testing.assert_close(mtgr, formula(attn * u, weight, bias, groups))
    plain = norm_gate(attn, u, weight[0], bias[0], order="norm_gate")
    torch.testing.assert_close(plain, norm_gate(attn, u, weight[:1], bias[:1], order="norm_gate", group_ids=groups * 0))


def kernel_and_reference(order: Order | None, inputs: list[Tensor], grouped: bool) -> tuple[list[Tensor], list[Tensor]]:
    """[out, gradients...] of the kernel at the inputs' precision, and of the reference in float64."""
    results = []
    for backend, dtype in (("triton", inputs[0].dtype), ("reference", torch.float64)):
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs[:4]]
        attn, u, weight, bias = leaves
        groups = inputs[4] if grouped else None
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GENRANK_KERNELS", backend)
            if order is None:
                leaves = [attn, weight, bias]
                out = group_layer_norm(attn, inputs[4], weight, bias)
            elif grouped:
                out = norm_gate(attn, u, weight, bias, order=order, group_ids=groups)
            else:
                out = norm_gate(attn, u, weight[0], bias[0], order=order)
            upstream = torch.linspace(-1, 1, out.numel()).view(out.shape).to(dtype)
            results.append([out.detach(), *torch.autograd.grad(out, leaves, upstream)])
    return results[0], results[1]


@interpreted(8)
@given(
    st.integers(1, 40),
    st.sampled_from([16, 24, 64]),
    st.integers(1, 4),
    st.sampled_from([torch.float32, torch.float16]),
    st.sampled_from([None, *ORDERS]),
    st.booleans(),
)
def test_kernel_equals_reference(
    tokens: int, dim: int, groups: int, dtype: torch.dtype, order: Order | None, grouped: bool
) -> None:
    got, want = kernel_and_reference(order, draw(tokens, dim, groups, dtype), grouped)
    for a, b in zip(got, want, strict=True):
        # Gradients of weight and bias are sums over the tokens, whose roundings add up as a random walk.
        bound = 8 * torch.finfo(dtype).eps * max(1.0, float(b.abs().max()), tokens**0.5)
        assert (a - b).abs().max() <= bound


def test_strips_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than one strip: partial weight gradients of several programs."""
    monkeypatch.setattr(norm_gpu, "STRIPS", 3)
    got, want = kernel_and_reference("norm_gate", draw(50, 16, 2, torch.float32), True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_dropout(order: Order, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeroes a share p, scales the rest, repeats with its seed; the gradient passes where the value did."""
    monkeypatch.setenv("GENRANK_KERNELS", backend)
    attn, u, weight, bias, groups = draw(40, 16, 2, torch.float32)
    clean = norm_gate(attn, u, weight, bias, order=order, group_ids=groups)
    once, again = (
        norm_gate(attn, u, weight, bias, order=order, group_ids=groups, dropout=0.25, seed=3) for _ in range(2)
    )
    assert torch.equal(once, again)
    kept = once != 0
    assert 0.65 < kept.float().mean() < 0.85
    torch.testing.assert_close(once[kept], clean[kept] / 0.75)
    (grad,) = torch.autograd.grad(once, bias, torch.ones_like(once))
    share = kept.float() / 0.75 * (u if order == "norm_gate" else 1.0)
    want = torch.zeros_like(bias).index_add_(0, groups.long(), share)
    torch.testing.assert_close(grad, want, rtol=1e-4, atol=1e-5)


def test_registered_as_pytorch_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    attn, u, weight, bias, groups = draw(5, 16, 2, torch.float32)
    torch.library.opcheck(torch.ops.genrank.norm_gate, (attn, u, weight, bias, groups, 1, 1e-6, 0.0, 0))
    torch.library.opcheck(torch.ops.genrank.norm_gate, (attn, None, weight, bias, groups, 0, 1e-6, 0.0, 0))
    plain = [t.detach() for t in (attn, attn, u, weight, bias)]
    torch.library.opcheck(torch.ops.genrank.norm_gate_backward, (*plain, groups, torch.ones(2, 5), 2, 0.0, 0))
    rest = (groups, torch.ones(2, 5), 1.0, torch.float32)
    shift = torch.ones(16, requires_grad=True)
    given = (attn, u, shift, weight, bias, groups, 1.0, 1e-6, torch.float32)
    torch.library.opcheck(torch.ops.genrank.add_norm, given)
    torch.library.opcheck(torch.ops.genrank.add_norm_backward, (*plain[:3], shift.detach(), *plain[3:], *rest))


@interpreted(8)
@given(
    st.integers(1, 40),
    st.sampled_from([16, 24]),
    st.lists(st.integers(0, 3), min_size=1, max_size=6),
    st.sampled_from([torch.float32, torch.float16]),
    st.sampled_from([1.0, 0.5]),
    st.booleans(),
    st.booleans(),
)
def test_the_sum_and_its_norm(
    tokens: int, dim: int, runs: list[int], half: torch.dtype, scale: float, normed_alone: bool, shifted: bool
) -> None:
    """Groups in runs, as a batch has them; the change in another dtype than the residual, and the norm too."""
    x, change, weight, bias, _ = draw(tokens, dim, 4, torch.float32)
    each = -(-tokens // len(runs))
    groups = torch.tensor(runs, dtype=torch.int32).repeat_interleave(each)[:tokens]
    results = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        low = half if backend == "triton" else torch.float64
        shift = torch.linspace(-1, 1, dim)
        leaves = [
            t.detach().to(dtype).requires_grad_() for t in (x, change, weight, bias, *([shift] if shifted else []))
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GENRANK_KERNELS", backend)
            given = (leaves[0], leaves[1].to(low), *leaves[2:4])
            own = leaves[4] if shifted else None
            whole, normed = add_norm(*given, group_ids=groups, scale=scale, dtype=low, shift=own)
            assert whole.dtype == dtype and normed.dtype == low
            upstream = torch.linspace(-1, 1, whole.numel()).view(whole.shape).to(dtype)
            loss = (normed * upstream.to(low)).to(dtype).sum()
            loss = loss if normed_alone else loss + (whole * upstream.flip(0)).sum()
            results.append([whole.detach(), normed.detach(), *torch.autograd.grad(loss, leaves)])
    for a, b in zip(*results, strict=True):
        bound = 16 * torch.finfo(half).eps * max(1.0, float(b.abs().max()), tokens**0.5)
        assert (a - b).abs().max() <= bound


def test_gradcheck() -> None:
    attn, u, weight, bias, groups = draw(4, 3, 2, torch.float64)
    for order in ORDERS:
        assert torch.autograd.gradcheck(
            lambda *t, order=order: norm_gate(*t, order=order, group_ids=groups), (attn, u, weight, bias)
        )


def test_bad_input_is_named() -> None:
    attn, u, weight, bias, groups = draw(4, 3, 2, torch.float32)
    with pytest.raises(ValueError, match="order must be"):
        norm_gate(attn, u, weight, bias, order="gate", group_ids=groups)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="group_ids must be int32"):
        group_layer_norm(attn, groups.long(), weight, bias)
    with pytest.raises(ValueError, match=r"must both be \[groups, 3\]"):
        group_layer_norm(attn, groups, weight[:, :2], bias)

"""Norm, projection and SiLU in one: the kernel (interpreted) against the reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genrank.kernels.projection import norm_linear_silu


def draw(tokens: int, dim: int, outer: int, groups: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(tokens, dim), (groups, dim), (groups, dim), (dim, outer), (outer,)]
    leaves = [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]
    return leaves, torch.randint(0, groups, (tokens,), generator=generator, dtype=torch.int32)


def outputs(leaves: list[Tensor], groups: Tensor | None, activated: int | None, backend: str) -> list[Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENRANK_KERNELS", backend)
        out = norm_linear_silu(*leaves, group_ids=groups, activated=activated)
        upstream = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
        return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def test_reference_is_the_formula() -> None:
    leaves, groups = draw(5, 6, 4, 2, torch.float64)
    x, gain, shift, weight, bias = leaves
    unit = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
    z = (unit * gain[groups.long()] + shift[groups.long()]) @ weight + bias
    torch.testing.assert_close(norm_linear_silu(*leaves, group_ids=groups), F.silu(z))
    torch.testing.assert_close(norm_linear_silu(*leaves, group_ids=groups, activated=1)[:, 1:], z[:, 1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("tokens", "dim", "outer", "groups", "activated"), [(70, 48, 80, 3, 33), (1, 24, 16, 1, None)])
def test_kernel_equals_reference(
    tokens: int, dim: int, outer: int, groups: int, activated: int | None, dtype: torch.dtype
) -> None:
    leaves, group_ids = draw(tokens, dim, outer, groups, dtype)
    given = group_ids if groups > 1 else None
    exact = outputs([t.detach().double().requires_grad_() for t in leaves], given, activated, "reference")
    rough = outputs(leaves, given, activated, "reference")
    for at, (a, b, r) in enumerate(zip(outputs(leaves, given, activated, "triton"), exact, rough, strict=True)):
        allowed = (2 if at == 0 else 3) * (r - b).abs().max() + 8 * torch.finfo(dtype).eps * b.abs().max()
        assert (a - b).abs().max() <= allowed, f"output {at}"


def test_without_tokens_or_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    leaves, _ = draw(0, 16, 16, 1, torch.float32)
    out = norm_linear_silu(*leaves[:4])
    assert out.shape == (0, 16)
    assert all((g == 0).all() for g in torch.autograd.grad(out.sum(), leaves[:4]))


def test_registered_as_pytorch_wants() -> None:
    from genrank.kernels import projection_triton  # noqa: F401  registers the ops

    leaves, groups = draw(5, 16, 32, 2, torch.float32)
    x, gain, shift, weight, bias = leaves
    given = (x, gain, shift, groups, weight, bias, 16, 1e-6, True)
    torch.library.opcheck(torch.ops.genrank.norm_linear_silu, given)
    plain = [t.detach() for t in (torch.randn(5, 32), torch.randn(5, 32), x, gain, shift)]
    given = (*plain, groups, weight.detach(), 16, 1e-6)
    torch.library.opcheck(torch.ops.genrank.norm_linear_silu_backward, given)


def test_gradcheck() -> None:
    leaves, groups = draw(4, 3, 5, 2, torch.float64)
    assert torch.autograd.gradcheck(lambda *t: norm_linear_silu(*t, group_ids=groups, activated=2), leaves)


def test_bad_input_is_named() -> None:
    leaves, groups = draw(4, 3, 5, 2, torch.float32)
    with pytest.raises(ValueError, match=r"must be \[3, E\] and \[E\]"):
        norm_linear_silu(*leaves[:3], leaves[3].t(), group_ids=groups)
    with pytest.raises(ValueError, match=r"activated must be in 0\.\.5"):
        norm_linear_silu(*leaves, group_ids=groups, activated=6)

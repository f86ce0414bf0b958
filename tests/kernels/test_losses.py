"""All tasks' losses: the kernel (interpreted) against the definition in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genrank.kernels.launch import recording
from genrank.kernels.losses import TaskRow, loss_sums, reference_loss_sums
from genrank.kernels.losses.gpu import STRIP

from .cases import interpreted

CLICK, CART, BUY, SEEN = TaskRow(None, 1.0), TaskRow(0, 2.0), TaskRow(1, 3.0), TaskRow(0, 0.5)
TASKS = (([CLICK], 1), ([CLICK, CART], 2), ([CLICK, CART, BUY, SEEN, CLICK], 7), ([], 2))
"""The binary tasks, and how many there are with the values."""


@interpreted(8)
@given(
    st.sampled_from([1, 60, STRIP, 2 * STRIP + 7]), st.sampled_from(TASKS), st.integers(1, 2), st.sampled_from([1, 12])
)
def test_sums_and_gradients_equal_the_definition(
    count: int, tasks: tuple[list[TaskRow], int], sets: int, spread: int
) -> None:
    binary, width = tasks
    generator = torch.Generator().manual_seed(count)
    logits = spread * torch.randn(sets, width, count, generator=generator)
    weights = torch.randint(0, 3, (width, count), generator=generator) / 2
    targets = torch.randn(width, count, generator=generator)
    targets[: len(binary)] = (targets[: len(binary)] > 0).float()
    targets[weights == 0] = torch.nan  # Nothing of an immature label is read.
    upstream = torch.arange(1.0, width + 1)
    exact = logits.double().requires_grad_()
    wanted = reference_loss_sums(exact, targets.double(), weights.double(), binary)
    wanted.backward(upstream.double())
    # Rows of one matrix that don't begin at a multiple of 16 bytes, and are not adjacent values.
    leaf = logits.transpose(1, 2).contiguous().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENRANK_KERNELS", "triton")
        got = loss_sums([each.unbind(1) for each in leaf], targets.unbind(), weights.unbind(), binary)
        got.backward(upstream)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(leaf.grad.transpose(1, 2).double(), exact.grad, rtol=2e-6, atol=5e-6)


def test_small_losses_lose_no_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each candidate's alone, relative to itself: at a logit of 16 a loss is 1e-7."""
    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    for target in (torch.zeros(1), torch.ones(1)):
        for x in torch.linspace(-30, 30, 25).split(1):
            got = loss_sums([[x]], [target], [target + 1], [CLICK])
            exact = (1 + target.double()) * torch.nn.functional.softplus((1 - 2 * target.double()) * x.double())
            torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=0)


def test_a_launch_forward_and_one_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a batch without candidates, none."""
    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    for count in (5, 0):
        y = [torch.ones(count, device="meta")] * 2
        x = [torch.ones(count, device="meta", requires_grad=True) for _ in range(4)]
        with recording() as launches:
            loss_sums([x[:2], x[2:]], y, y, [CLICK, CART]).sum().backward()
        assert [launch.kernel.__name__ for launch in launches] == ["losses_kernel"] * (2 if count else 0)
        assert all(each.grad is not None and each.grad.shape == (count,) for each in x)


def test_each_task_needs_its_own() -> None:
    x = [torch.ones(2)] * 2
    for sets, y, w, binary in (([x, x[:1]], x, x, []), ([x], x, x[:1], []), ([x], x, x, [CLICK] * 3)):
        with pytest.raises(ValueError, match="give each task one of each"):
            loss_sums(sets, y, w, binary)

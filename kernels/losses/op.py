"""Sums of all tasks' losses: on a GPU one pass over labels and logits, and one in backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from genrank.kernels.dispatch import backend_for
from genrank.kernels.losses.reference import TaskRow, reference_loss_sums


def loss_sums(
    logits: Sequence[Sequence[Tensor]], targets: Sequence[Tensor], weights: Sequence[Tensor], binary: Sequence[TaskRow]
) -> Tensor:
    """[T] float32: sums of T tasks' losses over C candidates, of the first of S sets of logits. Differentiable in the logits.

    Args:
        logits: S sets of T times [C] of any floating dtype; in a set the binary tasks' first. The gradient of every set is that of its own
            loss; those after the first add nothing to the value.
        targets, weights: T times [C]. Where a weight isn't above 0 the target isn't read.
        binary: of the first len(binary) tasks; the others are values.
    Raises: ValueError for counts of tensors that disagree.
    """
    if any(len(each) != len(targets) for each in (*logits, weights)) or len(binary) > len(targets):
        raise ValueError(
            f"{len(targets)} targets, {len(weights)} weights, {len(binary)} binary tasks and sets of {[len(each) for each in logits]} logits"
            " don't agree: give each task one of each"
        )
    flat = [each for one in logits for each in one]
    if backend_for(flat[0]) == "triton":
        flat, y, w = ([each.float().contiguous() for each in tensors] for tensors in (flat, targets, weights))
        sums: Tensor = _LossSums.apply(len(y), tuple(binary), *y, *w, *flat)  # type: ignore[no-untyped-call]
        return sums
    stacked = torch.stack(flat).view(len(logits), len(targets), -1)
    return reference_loss_sums(
        stacked.float(), torch.stack([*targets]).float(), torch.stack([*weights]).float(), binary
    )


class _LossSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, tasks: int, binary: tuple[TaskRow, ...], *tensors: Tensor) -> Tensor:
        """tensors: targets, weights, and each set's logits."""
        from genrank.kernels.losses import gpu

        ctx.save_for_backward(*tensors)
        ctx.tasks, ctx.binary = tasks, binary  # type: ignore[attr-defined]
        targets, weights, logits = tensors[:tasks], tensors[tasks : 2 * tasks], tensors[2 * tasks : 3 * tasks]
        return gpu.loss_sums(logits, targets, weights, binary)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        from genrank.kernels.losses import gpu

        tensors, tasks = ctx.saved_tensors, ctx.tasks  # type: ignore[attr-defined]
        targets, weights, logits = tensors[:tasks], tensors[tasks : 2 * tasks], tensors[2 * tasks :]
        gradients = gpu.loss_gradients(grad, logits, targets, weights, ctx.binary)  # type: ignore[attr-defined]
        return None, None, *[None] * (2 * tasks), *gradients.flatten(0, 1).unbind()

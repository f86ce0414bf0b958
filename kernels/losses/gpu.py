"""Losses on GPU (kernel: `triton_losses.py`)."""

from __future__ import annotations

from collections.abc import Sequence

import triton
from torch import Tensor

from genrank.kernels.launch import Tuned
from genrank.kernels.losses.reference import TaskRow
from genrank.kernels.losses.triton_losses import losses_kernel

STRIP = 256
"""Candidates that one program sums; the strips' sums are added in order."""

losses_tuned = Tuned(losses_kernel, [triton.Config({"STRIP": STRIP}, num_warps=4, num_stages=1)], [])


def loss_sums(
    logits: Sequence[Tensor], targets: Sequence[Tensor], weights: Sequence[Tensor], binary: Sequence[TaskRow]
) -> Tensor:
    """[T] float32.

    Args:
        logits, targets, weights: of each task [C] float32, contiguous.
    """
    strips, tasks = triton.cdiv(len(targets[0]), STRIP), len(targets)
    partial = logits[0].new_empty(strips, tasks)
    launch(logits, targets, weights, partial, partial, binary, back=False)
    return partial.sum(0)


def loss_gradients(
    upstream: Tensor,
    logits: Sequence[Tensor],
    targets: Sequence[Tensor],
    weights: Sequence[Tensor],
    binary: Sequence[TaskRow],
) -> Tensor:
    """[S, T, C] float32.

    Args:
        upstream: [T] float32, of every set's sums.
        logits: S sets, one after another.
        targets, weights: as above.
    """
    tasks = len(targets)
    gradients = upstream.new_empty(len(logits) // tasks, tasks, len(targets[0]))
    launch(logits, targets, weights, upstream.contiguous(), gradients, binary, back=True)
    return gradients


def launch(
    logits: Sequence[Tensor],
    targets: Sequence[Tensor],
    weights: Sequence[Tensor],
    upstream: Tensor,
    out: Tensor,
    binary: Sequence[TaskRow],
    *,
    back: bool,
) -> None:
    """Fill `out` with strips' sums, or (back) gradients."""
    tasks, count = len(targets), len(targets[0])
    if not count:
        return
    losses_tuned(
        lambda _: (triton.cdiv(count, STRIP),),
        [tuple(logits), tuple(targets), tuple(weights), upstream, out, count],
        {
            "SETS": len(logits) // tasks,
            "TASKS": tasks,
            "GIVEN": tuple(-1 if row.given is None else row.given for row in binary),
            "POSITIVE": tuple(float(row.positive_weight) for row in binary),
            "BACK": back,
        },
    )

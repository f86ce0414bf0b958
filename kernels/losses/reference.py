"""The definition of the tasks' losses, and what runs on CPU: tasks are rows, and the backward is written.

    each = -(positive_weight y log p + (1 - y) log(1 - p))   (binary),   (logit - y)^2 / 2   (value)
    sum  = sum over candidates of weight * each

p of a conditional task is its own probability times its condition's (`model.losses`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


class TaskRow(NamedTuple):
    """What a binary task's loss is, beside its logits."""

    given: int | None
    """The row of its condition, which comes before its own."""
    positive_weight: float


def reference_loss_sums(logits: Tensor, targets: Tensor, weights: Tensor, binary: Sequence[TaskRow]) -> Tensor:
    """[T]: as `loss_sums`, of logits [S, T, C], targets and weights [T, C] of one floating dtype."""
    sums: Tensor = _LossSums.apply(logits, targets, weights, binary)  # type: ignore[no-untyped-call]
    return sums


class _LossSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, logits: Tensor, targets: Tensor, weights: Tensor, binary: Sequence[TaskRow]
    ) -> Tensor:
        count = len(binary)
        immature = ~(weights > 0)
        # An immature label may hold anything, NaN too: it must not reach a sum as 0 * NaN.
        targets, weights = targets.masked_fill(immature, 0.0), weights.masked_fill(immature, 0.0)
        positive, negative = _sides(targets[:count], binary)
        own = logits[:, :count]
        yes, own_no = F.logsigmoid(own), F.logsigmoid(-own)
        no = own_no.clone() if _conditional(binary) else own_no
        for at, (given, _) in enumerate(binary):
            if given is not None:  # 1 - ab = (1 - a) + a(1 - b)
                torch.logaddexp(no[:, given], yes[:, given] + own_no[:, at], out=no[:, at])
                yes[:, at].add_(yes[:, given])
        parts = [torch.addcmul(positive * yes[0], negative, no[0]).neg_()] if count else []
        if count < len(targets):
            parts.append((logits[0, count:] - targets[count:]).square_().mul_(0.5))
        each = torch.cat(parts) if len(parts) > 1 else parts[0]
        ctx.save_for_backward(logits, targets, weights, positive, negative, yes, no, own_no)
        ctx.binary = binary  # type: ignore[attr-defined]
        return each.mul_(weights).masked_fill_(immature, 0.0).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        logits, targets, weights, positive, negative, yes, no, own_no = ctx.saved_tensors  # type: ignore[attr-defined]
        binary: Sequence[TaskRow] = ctx.binary  # type: ignore[attr-defined]
        count = len(binary)
        scale = weights * grad[:, None]
        parts = []
        if count:
            of_yes, of_no = ((scale[:count] * side).expand_as(yes) for side in (positive, negative))
            if _conditional(binary):
                of_yes, of_no = of_yes.contiguous(), of_no.contiguous()
            for at, (given, _) in reversed(list(enumerate(binary))):
                if given is not None:
                    share = (yes[:, given] + own_no[:, at]).sub_(no[:, at]).exp_()
                    of_no[:, given].add_(of_no[:, at])
                    of_no[:, at].mul_(share)
                    of_no[:, given].sub_(of_no[:, at])
                    of_yes[:, given].add_(of_yes[:, at]).add_(of_no[:, at])
            # d log sigmoid(x) = 1 - sigmoid(x), of the task's own logit.
            parts.append(torch.addcmul(of_no * torch.sigmoid(logits[:, :count]), of_yes, own_no.exp(), value=-1.0))
        if count < len(targets):
            parts.append((logits[:, count:] - targets[count:]).mul_(scale[count:]))
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0], None, None, None


def _conditional(binary: Sequence[TaskRow]) -> bool:
    return any(row.given is not None for row in binary)


def _sides(targets: Tensor, binary: Sequence[TaskRow]) -> tuple[Tensor, Tensor]:
    """Weights of log p and of log(1 - p), each [binary tasks, C]."""
    positive = targets
    if any(row.positive_weight != 1 for row in binary):
        positive = targets.clone()
        for at, row in enumerate(binary):
            if row.positive_weight != 1:
                positive[at] *= row.positive_weight
    return positive, 1 - targets

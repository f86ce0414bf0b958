"""Group LayerNorm and norm-gate in plain PyTorch: the definition, and what runs on CPU."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Order = Literal["norm_gate", "gate_norm"]


def reference_norm(x: Tensor, group_ids: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm of x [T, D] with weight and bias [D], or [G, D] and group_ids int32 [T]."""
    if group_ids is None:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    groups = group_ids.long()
    return F.layer_norm(x, x.shape[-1:], None, None, eps) * F.embedding(groups, weight) + F.embedding(groups, bias)


def reference_sum(x: Tensor, change: Tensor, shift: Tensor | None, scale: float) -> Tensor:
    """`x + scale * (change + shift)` in x's dtype; shapes as in `add_norm`."""
    change = change if shift is None else change + shift
    return (x + change if scale == 1.0 else x + scale * change).to(x.dtype)


def reference_norm_gate(
    attn: Tensor, u: Tensor, weight: Tensor, bias: Tensor, order: Order, group_ids: Tensor | None, eps: float
) -> Tensor:
    """`norm(attn) * u` or `norm(attn * u)`, without dropout; shapes as in `norm_gate`."""
    if order == "norm_gate":
        return reference_norm(attn, group_ids, weight, bias, eps) * u
    return reference_norm(attn * u, group_ids, weight, bias, eps)

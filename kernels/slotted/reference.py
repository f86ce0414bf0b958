"""Slotted linear map and feed-forward in plain PyTorch, a token at a time: the definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reference_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Shapes as in `slotted_linear`."""
    rows = [x[:, t] @ weight[t] + (0 if bias is None else bias[t]) for t in range(x.shape[1])]
    return torch.stack(rows, 1)


def reference_ffn(
    x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, activation: str
) -> Tensor:
    """Shapes as in `slotted_ffn`."""
    hidden = reference_linear(x, up, up_bias)
    if activation == "swiglu":
        gate, value = hidden.chunk(2, -1)
        hidden = gate * torch.sigmoid(gate) * value
    else:
        hidden = F.gelu(hidden) if activation == "gelu" else F.relu(hidden)
    return reference_linear(hidden, down, down_bias)

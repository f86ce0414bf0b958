"""Linear map and feed-forward with weights per token (RankMixer's per-token FFN, arXiv:2507.15551; HeteroAtt, arXiv:2311.05884).

The tokens of a candidate are few and every candidate has them all, so the product is one batched GEMM over the T tokens with M = C rows
each: what cuBLAS (and oneDNN on a CPU) is made for. No kernel of one's own is needed for equal counts.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["gelu", "relu", "swiglu"]


def slotted_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y[c, t] = x[c, t] @ weight[t] + bias[t].

    Args:
        x: [C, T, D]; weight: [T, D, E]; bias: [T, E].
    Returns: [C, T, E]. Differentiable in all; under autocast in its dtype.
    Raises: ValueError for shapes that disagree.
    """
    if x.dim() != 3 or weight.dim() != 3 or x.shape[1:] != weight.shape[:2]:
        raise ValueError(f"x {list(x.shape)} and weight {list(weight.shape)} must be [C, T, D] and [T, D, E]")
    if bias is not None and bias.shape != (weight.shape[0], weight.shape[2]):
        raise ValueError(f"bias {list(bias.shape)} must be [{weight.shape[0]}, {weight.shape[2]}]")
    rows = x.transpose(0, 1)
    y = torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, weight)
    return y.transpose(0, 1)


def slotted_ffn(
    x: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    activation: Activation = "gelu",
) -> Tensor:
    """down_t(activation(up_t(x_t))); `swiglu` (Shazeer, arXiv:2002.05202): silu(first half) * second half.

    Args:
        x: [C, T, D]; up: [T, D, E] (`swiglu`: 2E); up_bias: [T, E]; down: [T, E, D']; down_bias: [T, D'].
    Returns: [C, T, D'].
    """
    hidden = slotted_linear(x, up, up_bias)
    if activation == "swiglu":
        gate, value = hidden.chunk(2, -1)
        hidden = F.silu(gate) * value
    else:
        hidden = F.gelu(hidden) if activation == "gelu" else F.relu(hidden)
    return slotted_linear(hidden, down, down_bias)

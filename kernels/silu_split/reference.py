"""The split projection in plain PyTorch: the definition, and what runs on CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def reference_split(
    x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sequence[int], active: int
) -> tuple[Tensor, ...]:
    """Shapes as in `silu_split`."""
    z = F.linear(x, weight, bias)
    if active == sum(sizes):
        return torch.split(F.silu(z), list(sizes), 1)
    first, *rest = torch.split(z, list(sizes), 1)
    return (F.silu(first) if active else first, *rest)

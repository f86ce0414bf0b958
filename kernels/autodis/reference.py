"""AutoDis in plain PyTorch, one number after the other: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from genrank.kernels.autodis.layout import Number


def reference_autodis(values: Tensor, numbers: Sequence[Number], parameters: Sequence[Tensor]) -> Tensor:
    """Shapes as in `autodis`; any float dtype."""
    out = []
    for i, number in enumerate(numbers):
        lift, mixing, skip, vectors, absent = parameters[5 * i : 5 * i + 5]
        value = values[number.row, :, None]
        hidden = F.leaky_relu(value.nan_to_num(0.0) * lift)
        scores = (hidden @ mixing + skip * hidden) / number.temperature
        out.append(torch.where(value.isnan(), absent, scores.softmax(1) @ vectors))
    return torch.cat(out, 1)

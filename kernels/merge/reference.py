"""The definition of merging."""

from __future__ import annotations

import torch
from torch import Tensor


def reference_merge_rows(x: Tensor, offsets: Tensor, k: int) -> Tensor:
    """Group by group: [T, D], [B+1] -> [G, k, D]; differentiable by autograd."""
    groups = []
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        last = stop
        of_sample = []
        while last > start:
            rows = x[max(start, last - k) : last]
            of_sample.append(torch.cat([x.new_zeros(k - len(rows), x.shape[1]), rows]))
            last -= k
        groups += of_sample[::-1]
    return torch.stack(groups) if groups else x.new_zeros(0, k, x.shape[1])

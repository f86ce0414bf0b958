"""The id map on GPU (kernels: `triton_probe.py`)."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from genrank.kernels.idmap.triton_probe import find_kernel, place_kernel
from genrank.kernels.launch import Tuned

PROBE = triton.Config({"BLOCK": 256}, num_warps=4, num_stages=1)
# `place` writes to its own inputs: tuning would enter ids many times, so there is one configuration.
find_tuned = Tuned(find_kernel, [PROBE], [])
place_tuned = Tuned(place_kernel, [PROBE], [])


def find_slots(keys: Tensor, ids: Tensor) -> Tensor:
    """int64 [N]: the slot of each id, -1 where there is none."""
    found = torch.empty_like(ids)
    if len(ids):
        find_tuned(
            lambda chosen: (triton.cdiv(len(ids), chosen["BLOCK"]),),
            [keys, ids.contiguous(), found, len(ids), len(keys) - 1],
            {},
        )
    return found


def place(keys: Tensor, rows: Tensor, ids: Tensor, new_rows: Tensor) -> int:
    """Store distinct ids that the map does not hold; the number of EMPTY slots that this took."""
    taken = torch.zeros(1, dtype=torch.int64, device=keys.device)
    if len(ids):
        place_tuned(
            lambda chosen: (triton.cdiv(len(ids), chosen["BLOCK"]),),
            [keys, rows, ids.contiguous(), new_rows.contiguous(), taken, len(ids), len(keys) - 1],
            {},
        )
    return int(taken.item())

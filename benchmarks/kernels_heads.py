"""What heads and losses launch, for `benchmarks.kernels_compile`."""

from __future__ import annotations

import torch

from genrank.kernels.launch import Launch, recording
from genrank.kernels.losses import TaskRow
from genrank.kernels.losses import gpu as losses_gpu
from genrank.kernels.shared_rows import gpu as shared_gpu


def loss_launches(device: str = "cpu") -> list[Launch]:
    """Of two tasks with the encoder's own heads, as the marketplace has them, and of five tasks of every kind."""
    click, cart, buy = TaskRow(None, 1.0), TaskRow(0, 2.0), TaskRow(1, 3.0)
    with recording() as launches:
        for sets, tasks, binary in ((2, 2, [click, cart]), (1, 5, [click, cart, buy, click])):
            logits, values = [torch.zeros(64, device=device)] * sets * tasks, [torch.zeros(64, device=device)] * tasks
            losses_gpu.loss_sums(logits[:tasks], values, values, binary)
            losses_gpu.loss_gradients(torch.zeros(tasks, device=device), logits, values, values, binary)
    return launches


def shared_launches(dtype: torch.dtype, device: str = "cpu") -> list[Launch]:
    """Of a tower's first layer, 128 wide."""
    with torch.device(device):
        rows, offsets = torch.zeros(64, 128, dtype=dtype), torch.tensor([0, 64])
    with recording() as launches:
        shared_gpu.gradients(rows, shared_gpu.add(rows, rows[:1], offsets), offsets)
    return launches

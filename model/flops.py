"""What a device can do at most, as the measure of what training does: MFU."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def matmul_rate(
    device: torch.device, dtype: torch.dtype, timed: Callable[[Callable[[], object]], float] | None = None
) -> float:
    """Floating point operations per second of one large matrix product, the best of five; takes a tenth of a second.

    Args:
        dtype: what is trained in.
        timed: the seconds of a call; default wall time, the device's work included.
    """
    n = 1024 if device.type == "cpu" else 8192
    a, b = (torch.ones(n, n, device=device, dtype=dtype) for _ in range(2))
    timed = timed or (lambda run: _wall_seconds(run, device))
    timed(lambda: a @ b)
    return 2 * n**3 / min(timed(lambda: a @ b) for _ in range(5))


def _wall_seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began

"""Memory on the CPU for what is gathered every batch, used again once the last tensor on it is gone.

What comes fresh from the system costs a fault for every page: more time than a gather itself.
"""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

CACHE_LINE = 64
"""Bytes."""
BLOCK_BYTES = 1 << 24
"""Tensors lie together in blocks of 16 MiB: what one that is kept can keep alive. A larger one has a block of its own."""
KEPT_BYTES = 1 << 28
"""Returned memory that waits to be used again, at most."""

_own = threading.local()
"""`block` and `used`: the thread's current block, and how many of its bytes are taken."""
_returned: defaultdict[int, list[np.ndarray]] = defaultdict(list)
"""By size."""


def empty(n: int, dtype: torch.dtype) -> Tensor:
    """[n] of a type, uninitialised; no two share a cache line."""
    size = n * dtype.itemsize
    if not size:
        return torch.empty(0, dtype=dtype)
    if size > BLOCK_BYTES:
        return torch.frombuffer(_block(1 << (size - 1).bit_length()), dtype=dtype, count=n)
    used = getattr(_own, "used", BLOCK_BYTES)
    if used + size > BLOCK_BYTES:
        _own.block, used = _block(BLOCK_BYTES), 0
    _own.used = used + -(-size // CACHE_LINE) * CACHE_LINE
    return torch.frombuffer(_own.block, dtype=dtype, count=n, offset=used)


def _block(size: int) -> np.ndarray:
    """What tensors refer to; when the last of them is gone, the memory under it is returned."""
    try:
        block = _returned[size].pop()
    except IndexError:
        block = np.empty(size, np.uint8)
    lent = block.view()
    weakref.finalize(lent, _give_back, block).atexit = False
    return lent


def _give_back(block: np.ndarray) -> None:
    kept = sum(size * len(blocks) for size, blocks in list(_returned.items()))
    if kept + len(block) <= KEPT_BYTES:
        _returned[len(block)].append(block)

"""Freed memory that stays with the process while it builds.

A build allocates and frees arrays of some MiB all the while. Allocators hand such memory back to the system soon, which then has to find
and clear other pages for the next array: half of a build's time in the kernel. Here numpy and Arrow share the C library's allocator, which
keeps what is freed for the next array of either.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import pyarrow as pa

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's names of what `mallopt` sets, in bytes: free memory beyond is handed back; arrays beyond are mapped by themselves, and unmapped."""
KEPT, USUAL = 1 << 30, 32 << 20
"""While building; otherwise, which is where glibc's own rule ends once arrays of this size were freed."""


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within it; afterwards it is handed back. Does nothing where the C library isn't glibc."""
    pool = pa.default_memory_pool()
    try:
        keep_freed_memory()
        yield
    finally:
        pa.set_memory_pool(pool)
        if libc := _glibc():
            _set_thresholds(libc, USUAL)
            libc.malloc_trim(0)


def keep_freed_memory() -> None:
    """From now on, in a process that does nothing else."""
    if (libc := _glibc()) and _set_thresholds(libc, KEPT):
        pa.set_memory_pool(pa.system_memory_pool())


@lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def _set_thresholds(libc: ctypes.CDLL, size: int) -> bool:
    """Whether both were taken."""
    return all(libc.mallopt(which, size) == 1 for which in (MMAP_THRESHOLD, TRIM_THRESHOLD))

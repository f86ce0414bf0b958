"""Reused memory is never anybody else's: live tensors don't overlap, and what is returned is used again."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrank.tokenization import buffer_pool
from genrank.tokenization.buffer_pool import CACHE_LINE

DTYPES = (torch.int64, torch.float32, torch.int32, torch.uint8)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 1 KiB and a pool of its own, so that few tensors meet every path."""
    monkeypatch.setattr(buffer_pool, "BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(buffer_pool, "KEPT_BYTES", 1 << 13)
    monkeypatch.setattr(buffer_pool, "_returned", type(buffer_pool._returned)(list))
    monkeypatch.setattr(buffer_pool, "_own", type(buffer_pool._own)())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 700), st.sampled_from(DTYPES), st.booleans()), max_size=40))
def test_live_tensors_keep_their_values(steps: list[tuple[int, torch.dtype, bool]]) -> None:
    live: list[tuple[int, torch.Tensor]] = []
    for number, (n, dtype, drop) in enumerate(steps):
        tensor = buffer_pool.empty(n, dtype)
        assert tensor.shape == (n,) and tensor.dtype == dtype
        live.append((number, tensor.fill_(number)))
        if drop:
            del live[len(live) // 2], tensor
    assert all(bool((tensor == number).all()) for number, tensor in live)
    lines = [
        set(range(tensor.data_ptr() // CACHE_LINE, (tensor.data_ptr() + tensor.nbytes - 1) // CACHE_LINE + 1))
        for _, tensor in live
        if len(tensor)
    ]
    shared = [1 for a, one in enumerate(lines) for two in lines[:a] if one & two]
    # numpy aligns blocks to 16 bytes: the ends of two blocks may meet in a line.
    assert len(shared) <= len(lines)


def test_returned_memory_is_used_again() -> None:
    first = buffer_pool.empty(5000, torch.uint8)
    at = first.data_ptr()
    del first
    gc.collect()
    assert buffer_pool.empty(4097, torch.uint8).data_ptr() == at


def test_a_view_keeps_its_memory() -> None:
    whole = buffer_pool.empty(5000, torch.uint8).fill_(7)
    part = whole[10:20]
    del whole
    gc.collect()
    buffer_pool.empty(5000, torch.uint8).fill_(9)
    assert part.tolist() == [7] * 10


def test_keeps_no_more_than_its_limit() -> None:
    tensors = [buffer_pool.empty(4096, torch.uint8) for _ in range(8)]
    del tensors
    gc.collect()
    assert sum(size * len(blocks) for size, blocks in buffer_pool._returned.items()) <= 1 << 13
    assert all(isinstance(block, np.ndarray) for blocks in buffer_pool._returned.values() for block in blocks)

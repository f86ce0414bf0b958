"""Freed memory is kept while a build runs, and not after."""

from __future__ import annotations

import pyarrow as pa
import pytest

from genrank.pipelines import memory


def test_arrow_shares_the_c_librarys_allocator_within_and_not_after() -> None:
    before = pa.default_memory_pool().backend_name
    with pytest.raises(KeyError), memory.freed_memory_kept():
        within = pa.default_memory_pool().backend_name
        raise KeyError
    assert pa.default_memory_pool().backend_name == before
    assert within == ("system" if memory._glibc() else before)


def test_nothing_changes_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    before = pa.default_memory_pool().backend_name
    with memory.freed_memory_kept():
        assert pa.default_memory_pool().backend_name == before

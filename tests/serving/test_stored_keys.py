"""What is read of keys and values once they are stored is as near as the storage promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genrank.serving.stored_keys import Storage, rounded, store

shapes = st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 5))


def keys(shape: tuple[int, int, int], seed: int, magnitude: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * 10.0**magnitude


@given(shapes, st.integers(0, 10**6), st.integers(-30, 30))
def test_int8_is_within_half_a_step_of_each_head_s_largest_value(
    shape: tuple[int, int, int], seed: int, magnitude: int
) -> None:
    x = keys(shape, seed, magnitude)
    kept = store(x, "int8")
    assert kept.values.dtype == torch.int8 and kept.scale is not None and kept.scale.shape == (*shape[:2], 1)
    step = x.abs().amax(-1, keepdim=True).double() / 127
    assert ((kept.read(torch.float32).double() - x.double()).abs() <= step * 0.5001).all()


@given(shapes, st.integers(0, 10**6))
def test_a_head_of_zeros_is_read_as_zeros(shape: tuple[int, int, int], seed: int) -> None:
    x = keys(shape, seed)
    x[:, 0] = 0
    assert (rounded(x, "int8")[:, 0] == 0).all()


@given(shapes, st.integers(0, 10**6))
def test_bfloat16_rounds_and_float32_does_not(shape: tuple[int, int, int], seed: int) -> None:
    x = keys(shape, seed)
    assert torch.equal(rounded(x, "bf16"), x.bfloat16().float())
    assert torch.equal(rounded(x, "float32"), x)
    assert torch.equal(rounded(x.double(), "float32"), x.double())


@pytest.mark.parametrize("storage", ["bf16", "float32", "int8"])
def test_it_is_memory_of_its_own_and_as_large_as_it_says(storage: Storage) -> None:
    x = keys((3, 2, 8), 0)
    kept = store(x, storage)
    before = kept.read(torch.float32).clone()
    x.zero_()
    assert torch.equal(kept.read(torch.float32), before)
    numbers, scales = 3 * 2 * 8, 3 * 2
    assert kept.bytes == {"bf16": 2 * numbers, "float32": 4 * numbers, "int8": numbers + 4 * scales}[storage]
    assert torch.equal(kept.first(2).read(torch.float32), before[:2])
    assert torch.equal(kept.to("cpu").read(torch.float32), before)

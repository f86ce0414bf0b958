"""Concatenated integer ranges against a loop over them, run and compiled."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genrank.tokenization.batch import ranges

Bounds = list[tuple[int, int]]


def bounds(pairs: Bounds) -> tuple[Tensor, Tensor]:
    begin = torch.tensor([at for at, _ in pairs], dtype=torch.int64)
    return begin, begin + torch.tensor([length for _, length in pairs], dtype=torch.int64)


def assert_ranges(found: tuple[Tensor, Tensor], pairs: Bounds) -> None:
    offsets, index = found
    assert index.tolist() == [value for at, length in pairs for value in range(at, at + length)]
    assert offsets.diff().tolist() == [length for _, length in pairs] and offsets[0] == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-(2**40), 2**40), st.integers(0, 9)), max_size=12))
def test_every_range_follows_the_one_before(pairs: Bounds) -> None:
    assert_ranges(ranges(*bounds(pairs)), pairs)


def test_compiled_code_asks_for_ranges() -> None:
    """As encoders do under `--compile`: what runs otherwise uses memory again, which can't be traced."""
    compiled = torch.compile(ranges, backend="eager", dynamic=True)
    for pairs in ([(3, 2), (7, 0), (1, 4)], [(0, 1)], [(5, 3), (5, 3)]):
        assert_ranges(compiled(*bounds(pairs)), pairs)

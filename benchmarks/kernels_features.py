"""Launches of the kernels between a batch's columns and its features' vectors, for what compiles them without running them."""

from __future__ import annotations

import math

import torch

from genrank.kernels.autodis import Number, table
from genrank.kernels.autodis import gpu as autodis_gpu
from genrank.kernels.jagged import gpu as jagged_gpu
from genrank.kernels.launch import Launch, recording
from genrank.kernels.lookups import gpu as lookups_gpu
from genrank.kernels.vocabulary import gpu as vocabulary_gpu
from genrank.kernels.vocabulary.layout import VocabularyPlace


def lookup_launches(device: str = "cpu") -> list[Launch]:
    """All of a batch's lookups, features at one scale or not, and the places of its tokens."""
    with torch.device(device):
        ints, floats, wide = (torch.zeros(64, dtype=t) for t in (torch.int64, torch.float32, torch.float64))
        instructions, vectors = (torch.zeros(2, width, dtype=torch.int64) for width in (8, 6))
        seen = torch.zeros(64, dtype=torch.int32)
    program = lookups_gpu.RowProgram(instructions, floats, ints, ints, wide, ints, ints, ints[:1], 0, 24)
    group = lookups_gpu.GroupPlace(0, 0)
    parts = [jagged_gpu.Part(0, 0, 64, 1, kind, 0, 0, 0, 9, 0, 0) for kind in range(4)]
    with recording() as launches:
        lookups_gpu.find_rows(program, [lookups_gpu.RowPlace(0, 64, 0)] * 2, [group], [(0, 1)], seen, 48, ints, floats)
        for norm in (True, False):
            given = {"most": 64, "dim": 32, "norm": norm}
            lookups_gpu.gather_vectors(vectors, ints, ints, ints, floats, floats, floats, eps=1e-8, **given)
            lookups_gpu.scatter_gradients(vectors, ints, ints, floats, floats, floats, floats, rows=64, **given)
        jagged_gpu.arrange_tokens(parts, ints, (0, 1, 2, 3), 9)
    return launches


def vocabulary_launches(device: str = "cpu") -> list[Launch]:
    """A step of a dynamic vocabulary, and new rows' initial weights by each initialiser, with either optimizer."""
    place = VocabularyPlace(*[0] * 8, 63, 48, 16, 48, *[0] * 5, 16, 0, 0, 0, 16, 0)
    with torch.device(device):
        ids, table, state = torch.zeros(16, dtype=torch.int64), torch.zeros(64, 32), torch.zeros(64)
    numbers = vocabulary_gpu.reset_numbers(0.1, ids.device)
    with recording() as launches:
        sent = vocabulary_gpu.send([place], ids.device)
        vocabulary_gpu.observe([place], sent, ids, 64)
        vocabulary_gpu.look_up([place], sent)
        for first, second in ((None, state), (table, state), (None, None)):
            for normal in (True, False):
                vocabulary_gpu.reset_rows(table, first, second, ids, ids, ids, numbers, normal=normal)
    return launches


def autodis_launches(buckets: int, dim: int, device: str = "cpu") -> list[Launch]:
    """Two numbers, forward and backward."""
    numbers = [Number(0, buckets, dim, 1.0), Number(1, buckets - 1, dim, 0.5)]
    size = sum(math.prod(shape) for number in numbers for shape in number.shapes)
    places = table(numbers).to(device)
    values, parameters = torch.zeros(2, 64, device=device), torch.zeros(size, device=device)
    with recording() as launches:
        out = autodis_gpu.forward(values, numbers, places, parameters)
        autodis_gpu.backward(out, values, numbers, places, parameters)
    return launches

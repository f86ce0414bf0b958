"""Span attention's units of work, and what it knows of each chunk of queries, against their definition."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from genrank.kernels.attention.plan import CHUNK, UNIT
from genrank.kernels.spans import Spans
from genrank.kernels.spans.plan import make_plan

from .cases import interpreted
from .span_cases import random_spans

FAR = 2**31 - 1
Bounds = tuple[int, int]


def plan_by_definition(spans: Spans) -> tuple[list[list[list[int]]], dict[int, list[Bounds]], list[int], list[int]]:
    """Units of queries and of keys with a sample, in order; the rows of the summary, of each span, by their place; pairs of each sample; and the
    first chunk of each."""
    q_offsets, k_offsets = spans.q_offsets.tolist(), spans.k_offsets.tolist()
    of_query = [
        list(zip(*bounds, strict=True)) for bounds in zip(spans.begin.T.tolist(), spans.end.T.tolist(), strict=True)
    ]
    summary: dict[int, list[Bounds]] = {}
    pairs: list[int] = []
    starts: list[int] = []
    found: list[list[tuple[int, int, list[int]]]] = [[], []]

    def hull(seen: list[Bounds]) -> Bounds:
        some = [each for each in seen if each[0] < each[1]]
        return min([begin for begin, _ in some], default=FAR), max([end for _, end in some], default=0)

    for sample, first in enumerate(q_offsets[:-1]):
        own = of_query[first : q_offsets[sample + 1]]
        counts = [sum(max(end - begin, 0) for begin, end in each) for each in own]
        pairs.append(sum(counts))
        starts.append(first // CHUNK + sample)
        chunks = [own[row : row + CHUNK] for row in range(0, len(own), CHUNK)]
        for at, chunk in enumerate(chunks):
            summary[starts[-1] + at] = [hull(list(bounds)) for bounds in zip(*chunk, strict=True)]
        for row in range(0, len(own), UNIT):
            found[0].append((sample, sum(counts[row : row + UNIT]), [row, len(own), first, sample]))
        hulls = [hull([bounds for each in chunk for bounds in each]) for chunk in chunks]
        keys = k_offsets[sample + 1] - k_offsets[sample]
        for key in range(0, keys, UNIT):
            walked = sum(max(min(high, key + UNIT) - max(low, key), 0) for low, high in hulls)
            found[1].append((sample, walked, [key, keys, k_offsets[sample], sample]))
    ordered = [sorted(made, key=lambda unit: (-pairs[unit[0]], unit[0], -unit[1], unit[2][0])) for made in found]
    return [[unit for _, _, unit in made] for made in ordered], summary, pairs, starts


@interpreted(10)
@given(
    st.lists(st.tuples(*[st.sampled_from([0, 1, 63, 64, 65, 130, 300])] * 2), max_size=5),
    st.integers(1, 3),
    st.integers(0, 2**31),
    st.sampled_from([0, 1, 200]),
)
def test_the_plan_equals_its_definition(lengths: list[tuple[int, int]], count: int, seed: int, beyond: int) -> None:
    """With tokens beyond the last sample, whose spans nobody reads."""
    spans = random_spans(lengths, count, seed)
    units, summary, pairs, starts = plan_by_definition(spans)
    edges = [torch.nn.functional.pad(x, (0, beyond), value=at) for at, x in enumerate((spans.begin, spans.end))]
    plan = make_plan(spans._replace(begin=edges[0], end=edges[1]), int(spans.k_offsets[-1]) + beyond)
    for made, wanted, offsets in ((plan.q_units, units[0], spans.q_offsets), (plan.k_units, units[1], spans.k_offsets)):
        last = int(offsets[-1])
        assert made.shape == (-(-(last + beyond) // UNIT) + len(lengths), 4)
        assert made[: len(wanted)].tolist() == wanted
        rest = [[last + at * UNIT, -1] for at in range(len(made) - len(wanted))]
        assert made[len(wanted) :, :2].tolist() == rest, "what has no sample stands last"
    for place, bounds in summary.items():
        assert plan.summary[:, :, place].tolist() == [list(each) for each in bounds]
    assert plan.pairs.tolist() == pairs
    if lengths:
        assert plan.chunk_starts[:-1].tolist() == [plan.summary.shape[2], *starts]
        chunks = [-(-queries // CHUNK) for queries, _ in lengths]
        spaces = plan.chunk_starts[1:].diff().tolist()
        assert all(0 <= space - used <= 1 for space, used in zip(spaces, chunks, strict=True))

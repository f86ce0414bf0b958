"""Units of work: each row has one program, and the programs of a moment share their keys."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

from genrank.kernels.attention.interval import IntervalMask, queries_of
from genrank.kernels.attention.plan import CHUNK, UNIT, make_plan
from genrank.kernels.attention.triton_tiles import unit_of
from tests.kernels.cases import MASKS, interpreted, make_batch


def plan_by_definition(
    mask: IntervalMask, key_tokens: int
) -> tuple[list[list[list[int]]], dict[int, list[int]], list[int]]:
    """Units of queries and of keys with a sample, in order; the written rows of the summary, by their place; pairs of each sample."""
    far = 2**31 - 1
    q_offsets, k_offsets = mask.q_offsets.tolist(), mask.k_offsets.tolist()
    intervals = list(zip(mask.begin.tolist(), mask.end.tolist(), strict=True))
    summary: dict[int, list[int]] = {}
    pairs: list[int] = []
    found: list[list[tuple[int, int, list[int]]]] = [[], []]
    for sample, first in enumerate(q_offsets[:-1]):
        own = intervals[first : q_offsets[sample + 1]]
        pairs.append(sum(max(end - begin, 0) for begin, end in own))
        first_chunk = first // CHUNK + sample
        for row in range(0, len(own), CHUNK):
            part = list(enumerate(own[row : row + CHUNK], row))
            sees = [(begin, end) for _, (begin, end) in part if begin < end]
            summary[first_chunk + row // CHUNK] = [
                min([begin for begin, _ in sees], default=far),
                max([end for _, end in sees], default=0),
                max(begin for _, (begin, _) in part),
                min(end for _, (_, end) in part),
                int(any(at < begin or at >= end for at, (begin, end) in part)),
            ]
        chunks = [summary[first_chunk + at] for at in range(-(-len(own) // CHUNK))]
        for row in range(0, len(own), UNIT):
            cost = sum(max(end - begin, 0) for begin, end in own[row : row + UNIT])
            found[0].append((sample, cost, [row, len(own), first, sample]))
        keys = k_offsets[sample + 1] - k_offsets[sample]
        for key in range(0, keys, UNIT):
            walked = sum(max(min(chunk[1], key + UNIT) - max(chunk[0], key), 0) for chunk in chunks)
            found[1].append((sample, walked, [key, keys, k_offsets[sample], first_chunk]))
    ordered = [sorted(made, key=lambda unit: (-pairs[unit[0]], unit[0], -unit[1], unit[2][0])) for made in found]
    return [[unit for _, _, unit in made] for made in ordered], summary, pairs


@interpreted(12)
@given(
    st.lists(st.sampled_from([0, 1, 63, 64, 65, 130, 300, 700]), max_size=6),
    st.sampled_from(MASKS),
    st.integers(0, 2**31),
    st.sampled_from([0, 1, 200]),
    st.booleans(),
)
def test_the_plan_equals_its_definition(lengths: list[int], name: str, seed: int, beyond: int, few: bool) -> None:
    """Of queries that are the keys, and of some queries against all keys; with tokens beyond the last sample, and intervals out of it."""
    batch = make_batch(lengths, name, seed)
    mask, tokens = batch.mask, batch.tokens
    if few:
        mask = queries_of(mask, torch.arange(0, tokens, 3))
    else:
        wide = torch.nn.functional.pad(mask.begin, (0, beyond)), torch.nn.functional.pad(mask.end, (0, beyond), value=9)
        mask, tokens = mask._replace(begin=wide[0], end=wide[1]), tokens + beyond
    plan = make_plan(mask, tokens)
    units_wanted, summary, pairs = plan_by_definition(mask, tokens)
    for made, wanted, count, last in (
        (plan.q_units, units_wanted[0], len(mask.begin), mask.q_offsets[-1]),
        (plan.k_units, units_wanted[1], tokens, mask.k_offsets[-1]),
    ):
        assert made.shape == (-(-count // UNIT) + len(lengths), 4)
        assert made[: len(wanted)].tolist() == wanted
        rest = [[int(last) + at * UNIT, -1] for at in range(len(made) - len(wanted))]
        assert made[len(wanted) :, :2].tolist() == rest, "what has no sample stands last"
    assert plan.summary[list(summary)].tolist() == list(summary.values())
    assert plan.pairs.tolist() == pairs


@triton.jit
def show_kernel(units, out, heads, UNIT_ROWS: tl.constexpr, BLOCK: tl.constexpr):
    first, rows, start, _, head = unit_of(units, heads, UNIT_ROWS, BLOCK)
    at = out + tl.program_id(0) * 4
    tl.store(at, first)
    tl.store(at + 1, rows)
    tl.store(at + 2, start.to(tl.int32))
    tl.store(at + 3, head)


def test_heads_are_innermost_and_the_blocks_of_a_unit_stand_together() -> None:
    heads, block = 3, 64
    made = make_plan(make_batch([200, 60], "causal").mask, 260).q_units
    programs = len(made) * (UNIT // block) * heads
    out = torch.zeros(programs, 4, dtype=torch.int32)
    show_kernel[(programs,)](made, out, heads, UNIT_ROWS=UNIT, BLOCK=block)
    wanted = [
        [row + part, rows, start, head]
        for row, rows, start, _ in made.tolist()
        for part in range(0, UNIT, block)
        for head in range(heads)
    ]
    assert out.tolist() == wanted

"""Units of work: each row has one program, and the programs of a moment share their keys."""

from __future__ import annotations

from itertools import groupby

import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genrank.kernels.attention.plan import CHUNK, UNIT, make_plan, units
from genrank.kernels.attention.triton_tiles import unit_of
from tests.kernels.cases import MASKS, make_batch


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, int, Tensor]:
    """Offsets of samples up to several units long, the number of tokens (some may lie beyond the last offset), and the work
    of each token."""
    lengths = draw(st.lists(st.one_of(st.integers(0, 3), st.integers(0, 5 * UNIT)), max_size=8))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    tokens = int(offsets[-1]) + draw(st.sampled_from([0, 1, 200]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return offsets, tokens, torch.randint(0, draw(st.sampled_from([1, 2, 2**20])), (tokens,), generator=generator)


@settings(deadline=None)
@given(problems())
def test_every_row_has_one_unit_and_units_stand_in_order(problem: tuple[Tensor, int, Tensor]) -> None:
    offsets, tokens, work = problem
    batch = len(offsets) - 1
    running = torch.nn.functional.pad(work.cumsum(0), (1, 0))
    made = units(offsets, tokens, running, 7 + torch.arange(batch))
    assert made.dtype == torch.int32 and made.is_contiguous() and made.shape == (-(-tokens // UNIT) + batch, 4)

    seen = torch.zeros(tokens, dtype=torch.int64)
    costs: list[tuple[int, int]] = []
    lengths = offsets.diff().tolist()
    rest = False
    for row, rows, start, number in made.tolist():
        if rows < 0:
            rest = True
            seen[row : row + UNIT] += 1
            continue
        assert not rest, "units without a sample stand last"
        sample = number - 7
        assert (rows, start) == (lengths[sample], int(offsets[sample])) and 0 <= row < rows and row % UNIT == 0
        last = min(row + UNIT, rows)
        seen[start + row : start + last] += 1
        costs.append((sample, int(work[start + row : start + last].sum())))
    assert bool((seen == 1).all()), "each token belongs to exactly one unit"

    runs = [(sample, [cost for _, cost in run]) for sample, run in groupby(costs, lambda pair: pair[0])]
    assert len({sample for sample, _ in runs}) == len(runs), "the units of a sample stand together"
    assert all(run == sorted(run, reverse=True) for _, run in runs), "inside it the heaviest first"
    totals = [sum(run) for _, run in runs]
    assert totals == sorted(totals, reverse=True), "samples by their work"


def test_forward_and_both_gradients_walk_samples_in_order_of_visible_pairs() -> None:
    for mask in MASKS:
        batch = make_batch([300, 20, 700, 0, 150], mask, seed=3)
        plan = make_plan(batch.mask, batch.tokens)
        pairs = (batch.end - batch.begin).clamp(min=0).long()
        per_sample = torch.stack([part.sum() for part in pairs.tensor_split(batch.offsets[1:-1])])
        for made in (plan.q_units, plan.k_units):
            starts = [start for _, rows, start, _ in made.tolist() if rows >= 0]
            ranked = [per_sample[int(torch.searchsorted(batch.offsets, s, right=True)) - 1] for s, _ in groupby(starts)]
            assert len(ranked) == 4 and ranked == sorted(ranked, reverse=True), mask
        q = [(start, number) for _, rows, start, number in plan.q_units.tolist() if rows >= 0]
        assert all(int(batch.offsets[number]) == start for start, number in q), "queries' units name their sample"
        before = torch.nn.functional.pad(((batch.offsets.diff() + CHUNK - 1) // CHUNK).cumsum(0), (1, 0))
        k = [(start, number) for _, rows, start, number in plan.k_units.tolist() if rows >= 0]
        samples = [int(torch.searchsorted(batch.offsets, start, right=True)) - 1 for start, _ in k]
        assert [number for _, number in k] == before[samples].tolist(), "keys' units name the sample's first chunk"


@triton.jit
def show_kernel(units, out, heads, UNIT_ROWS: tl.constexpr, BLOCK: tl.constexpr):
    first, rows, start, _, head = unit_of(units, heads, UNIT_ROWS, BLOCK)
    at = out + tl.program_id(0) * 4
    tl.store(at, first)
    tl.store(at + 1, rows)
    tl.store(at + 2, start.to(tl.int32))
    tl.store(at + 3, head)


def test_heads_are_innermost_and_the_blocks_of_a_unit_stand_together() -> None:
    offsets, heads, block = torch.tensor([0, 200, 260]), 3, 64
    made = units(offsets, 260, torch.arange(261), torch.arange(2))
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

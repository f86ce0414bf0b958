"""Hypothesis strategies over jagged batches with every mask of DESIGN."""

from __future__ import annotations

from hypothesis import Phase, settings
from hypothesis import strategies as st

from benchmarks.kernels_cases import MASKS, Batch, make_batch

__all__ = ["MASKS", "Batch", "batches", "interpreted", "make_batch"]


def interpreted(examples: int) -> settings:
    """Triton's interpreter takes seconds a case: report the first failure as it is, shrinking it would take minutes."""
    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    return settings(max_examples=examples, deadline=None, phases=phases, report_multiple_bugs=False)


@st.composite
def batches(draw: st.DrawFn, longest: int = 40, most: int = 5) -> Batch:
    lengths = draw(st.lists(st.integers(0, longest), max_size=most))
    return make_batch(lengths, draw(st.sampled_from(MASKS)), draw(st.integers(0, 2**31)))

"""Hypothesis strategies over jagged batches with every mask of DESIGN, and what decides whether launches share a compiled kernel."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st

from benchmarks.kernels_cases import MASKS, Batch, make_batch
from genrank.kernels.launch import Launch

__all__ = ["MASKS", "Batch", "batches", "interpreted", "make_batch", "specialisation"]


def interpreted(examples: int) -> settings:
    """Triton's interpreter takes seconds a case: report the first failure as it is, shrinking it would take minutes."""
    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    return settings(max_examples=examples, deadline=None, phases=phases, report_multiple_bugs=False)


@st.composite
def batches(draw: st.DrawFn, longest: int = 40, most: int = 5) -> Batch:
    lengths = draw(st.lists(st.integers(0, longest), max_size=most))
    return make_batch(lengths, draw(st.sampled_from(MASKS)), draw(st.integers(0, 2**31)))


def specialisation(launch: Launch) -> tuple[Any, ...]:
    """What decides whether two launches share a compiled kernel: types, and ones and multiples of 16 among the integers that it asks about."""

    def kind(name: str, value: Any) -> Any:
        if isinstance(value, int) and name not in launch.kernel.kwargs["do_not_specialize"]:
            return value == 1, value % 16 == 0
        return value.dtype if isinstance(value, torch.Tensor) else type(value).__name__

    named = zip(launch.kernel.arg_names, launch.arguments, strict=False)
    return launch.kernel.__name__, *(kind(*each) for each in named), *sorted(launch.constants.items())

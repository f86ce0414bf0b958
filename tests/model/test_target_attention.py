"""DIN's activation unit equals the MLP over [event, candidate, difference, product] that its paper draws."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from genrank.model.target_attention import ActivationUnit


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 9), st.integers(1, 6), st.integers(0, 10**6))
def test_pairs_are_weighed_as_the_figure_draws_it(dim: int, hidden: int, pairs: int, rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    unit = ActivationUnit(dim, hidden).double()
    candidates, events = torch.randn(3, dim).double(), torch.randn(rows, dim).double()
    of, at = torch.randint(0, 3, (pairs,)), torch.randint(0, rows, (pairs,))
    found = unit(candidates, events, of, at)
    # The first layer over [e, v, e - v, e * v]: its e - v columns are any split of the two linear ones.
    shared = torch.randn(hidden, dim).double()
    weight = torch.cat(
        [unit.of_event.weight - shared, unit.of_candidate.weight + shared, shared, unit.of_product.weight], 1
    )
    assert found.shape == (pairs, dim)
    for pair in range(pairs):
        event, candidate = events[at[pair]], candidates[of[pair]]
        inputs = torch.cat([event, candidate, event - candidate, event * candidate])
        hidden_units = torch.nn.functional.prelu(weight @ inputs + unit.of_event.bias, unit.activation.weight)
        expected = (unit.weight.weight @ hidden_units + unit.weight.bias) * event
        torch.testing.assert_close(found[pair], expected, rtol=1e-9, atol=1e-9)

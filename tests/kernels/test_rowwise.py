"""Row-wise updates against the definition in float64, where rows are popular, many, and cross the chunks that programs sum."""

from __future__ import annotations

import itertools

import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genrank.kernels.launch import Tuned, recording
from genrank.kernels.rowwise import RowUpdate, gpu, rowwise_adagrad_, rowwise_adam_, rowwise_updates_
from genrank.kernels.rowwise.triton_rowwise import rowwise_kernel

ROWS, DIM = 9, 5
runs = st.lists(st.tuples(st.integers(0, ROWS - 1), st.sampled_from([1, 2, 16, 17, 128, 129, 257])), max_size=3)


def updated(rows: Tensor, grads: Tensor, optimizer: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two steps by the op."""
    torch.manual_seed(0)
    table, state, mean = (
        torch.randn(ROWS, DIM).to(dtype),
        torch.rand(ROWS).to(dtype),
        torch.zeros(ROWS, DIM, dtype=dtype),
    )
    for step in (1, 2):
        if optimizer == "adam":
            rowwise_adam_(table, mean, state, rows, grads, step=step, lr=0.1, weight_decay=0.1)
        else:
            rowwise_adagrad_(table, state, rows, grads, lr=0.1, weight_decay=0.1)
    return table, state


def defined(rows: Tensor, grads: Tensor, optimizer: str) -> tuple[Tensor, Tensor]:
    """The same by the definition, in float64."""
    torch.manual_seed(0)
    table, state = torch.randn(ROWS, DIM).double(), torch.rand(ROWS).double()
    mean = torch.zeros(ROWS, DIM, dtype=torch.float64)
    for step in (1, 2):
        for row in sorted(set(rows.tolist())):
            total = grads.double()[rows == row].sum(0)
            square = (total * total).mean()
            if optimizer == "adam":
                mean[row] = 0.9 * mean[row] + 0.1 * total
                state[row] = 0.999 * state[row] + 0.001 * square
                scale = (state[row] / (1 - 0.999**step)).sqrt() + 1e-8
                table[row] -= 0.1 * (mean[row] / (1 - 0.9**step) / scale + 0.1 * table[row])
            else:
                total = total + 0.1 * table[row]
                state[row] += (total * total).mean()
                table[row] -= 0.1 * total / (state[row].sqrt() + 1e-8)
    return table, state


@pytest.mark.parametrize("backend", ["triton", ""])
@settings(max_examples=6, deadline=None)
@given(found=runs, optimizer=st.sampled_from(["adagrad", "adam"]), shuffled=st.booleans(), seed=st.integers(0, 9))
def test_updates_are_as_defined(
    backend: str, found: list[tuple[int, int]], optimizer: str, shuffled: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.tensor([row for row, times in found for _ in range(times)], dtype=torch.int64)
    if shuffled:
        rows = rows[torch.randperm(len(rows), generator=generator)]
    grads = torch.randn(len(rows), DIM, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENRANK_KERNELS", backend)
        table, state = updated(rows, grads, optimizer, torch.float32)
        again, _ = updated(rows, grads, optimizer, torch.float32)
    expected_table, expected_state = defined(rows, grads, optimizer)
    torch.testing.assert_close(table.double(), expected_table, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state.double(), expected_state, rtol=1e-4, atol=1e-4)
    assert torch.equal(table, again), "to the bit"


@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_updates_of_many_passes(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of four: sums go through five passes, and rows end everywhere in them."""
    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    monkeypatch.setattr(gpu, "CHUNK", 4)
    small = triton.Config({"CHUNK": 4, "PIECE": 2}, num_warps=4, num_stages=1)
    monkeypatch.setattr(gpu, "rowwise_tuned", Tuned(rowwise_kernel, [small], []))
    generator = torch.Generator().manual_seed(1)
    for weights in ([50.0] + [1.0] * (ROWS - 1), [1.0] * 4 + [20.0] * 2 + [1.0] * 3):
        rows = torch.multinomial(torch.tensor(weights), 48, replacement=True, generator=generator)
        grads = torch.randn(len(rows), DIM, generator=generator)
        table, state = updated(rows, grads, optimizer, torch.float32)
        expected_table, expected_state = defined(rows, grads, optimizer)
        torch.testing.assert_close(table.double(), expected_table, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(state.double(), expected_state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["triton", ""])
def test_tables_updated_together_are_as_each_alone(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, of unlike sizes and optimisers, one without a gradient."""
    monkeypatch.setenv("GENRANK_KERNELS", backend)
    torch.manual_seed(0)
    rows = [torch.randint(0, size, (count,)) for size, count in ((3, 300), (50, 7), (9, 0), (1, 130))]
    tables = [torch.randn(size, dim) for size, dim in ((3, 5), (50, 20), (9, 4), (1, 1))]

    def steps(tables: list[Tensor]) -> list[RowUpdate]:
        generator = torch.Generator().manual_seed(1)
        return [
            RowUpdate(
                *(table, torch.zeros_like(table) if at % 2 else None, torch.ones(len(table)), rows[at]),
                *(torch.randn(len(rows[at]), table.shape[1], generator=generator), 0.1, 1e-8, (0.9, 0.999), 2, 0.1),
            )
            for at, table in enumerate(tables)
        ]

    together, alone = steps([t.clone() for t in tables]), steps([t.clone() for t in tables])
    rowwise_updates_(together)
    for each in alone:
        rowwise_updates_([each])
    for a, b, before in zip(together, alone, tables, strict=True):
        assert torch.equal(a.table, b.table) and torch.equal(a.state, b.state)
        assert a.mean is None or torch.equal(a.mean, b.mean)
        assert torch.equal(a.table, before) == (len(a.rows) == 0)


@pytest.mark.parametrize("count", [1, 128, 129, 8_192, 8_193, 1 << 20])
def test_a_program_sums_a_chunk_at_most_and_passes_are_few(count: int) -> None:
    """What a batch of one row costs: all of its gradients go through the passes."""
    with torch.device("meta"):
        table, state = torch.zeros(50, 32), torch.zeros(50)
        rows, grads = torch.zeros(count, dtype=torch.int64), torch.zeros(count, 32)
    with recording() as launches:
        gpu.rowwise([RowUpdate(table, None, state, rows, grads, 0.1, 1e-8)])
    names = launches[0].kernel.arg_names
    counts = [dict(zip(names, launch.arguments, strict=False))["count"] for launch in launches]
    assert counts[0] == count and counts[-1] <= gpu.CHUNK and len(counts) <= 4
    assert all(b <= a / 64 + 2 for a, b in itertools.pairwise(counts))
    assert [launch.constants["FIRST"] for launch in launches] == [True] + [False] * (len(counts) - 1)

"""The id map against a dictionary, and on both backends the sparse optimisers against a loop over rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genrank.kernels.idmap import EMPTY, IdMap, unique_inverse_counts
from genrank.kernels.rowwise import rowwise_adagrad_, rowwise_adam_

BACKENDS = ["", "triton"]
IDS = st.lists(st.one_of(st.integers(-20, 20), st.integers(-(2**63) + 2, 2**63 - 1)), max_size=15)
STEPS = st.lists(st.tuples(st.sampled_from(["insert", "insert", "evict"]), IDS), max_size=8)


class Oracle:
    """The same map, written with a dictionary: new ids ascending take the lowest free rows, then the next ones."""

    def __init__(self) -> None:
        self.rows: dict[int, int] = {}
        self.next = 0
        self.free: list[int] = []

    def insert(self, ids: list[int]) -> list[int]:
        for i in sorted(set(ids) - set(self.rows)):
            if self.free:
                self.rows[i] = self.free.pop(0)
            else:
                self.rows[i], self.next = self.next, self.next + 1
        return [self.rows[i] for i in ids]

    def evict(self, ids: list[int]) -> None:
        self.free = sorted([*self.free, *(self.rows.pop(i) for i in set(ids) if i in self.rows)])


@settings(max_examples=50)
@given(STEPS)
def test_map_equals_a_dictionary(steps: list[tuple[str, list[int]]]) -> None:
    ours, oracle = IdMap(capacity=4), Oracle()
    for step, ids in steps:
        given_ids = torch.tensor(ids, dtype=torch.int64)
        if step == "insert":
            assert ours.insert(given_ids).rows.tolist() == oracle.insert(ids)
        else:
            ours.evict(given_ids)
            oracle.evict(ids)
        asked = [*ids, *oracle.rows, 12345]
        assert ours.lookup(torch.tensor(asked)).tolist() == [oracle.rows.get(i, -1) for i in asked]
        assert len(ours) == len(oracle.rows)
    ids_and_rows = ours.items()
    assert dict(zip(*[t.tolist() for t in ids_and_rows], strict=True)) == oracle.rows
    copy = IdMap(capacity=1)
    copy.load(*ids_and_rows)
    more = torch.arange(-3, 3)
    assert torch.equal(copy.lookup(ids_and_rows[0]), ids_and_rows[1])
    assert copy.insert(more).rows.unique().numel() == 6


def test_growth_keeps_every_id() -> None:
    ids = torch.randperm(50_000) * 7919
    ours = IdMap(capacity=10)
    for piece in ids.split(7_000):
        ours.insert(piece)
    rows = ours.lookup(ids)
    assert torch.equal(rows.sort().values, torch.arange(50_000))
    assert (ours.lookup(ids + 1)[~torch.isin(ids + 1, ids)] == -1).all()


def test_created_rows_are_reported_once() -> None:
    ours = IdMap()
    assert ours.insert(torch.tensor([9, 5, 9])).created.tolist() == [0, 1]
    assert ours.insert(torch.tensor([5, 7])).created.tolist() == [2]
    assert ours.evict(torch.tensor([5, 404])).tolist() == [0]
    again = ours.insert(torch.tensor([11, 12]))
    assert again.rows.tolist() == again.created.tolist() == [0, 3]


def test_bad_ids_are_named() -> None:
    with pytest.raises(TypeError, match="ids must be int64"):
        IdMap().insert(torch.tensor([1], dtype=torch.int32))
    with pytest.raises(ValueError, match="reserved by the id map"):
        IdMap().insert(torch.tensor([EMPTY]))


def test_unique() -> None:
    ids = torch.tensor([5, -1, 5, 7, -1, 5])
    distinct, inverse, counts = unique_inverse_counts(ids)
    assert distinct.tolist() == [-1, 5, 7] and counts.tolist() == [2, 3, 1]
    assert torch.equal(distinct[inverse], ids)


def updates(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    rows = torch.randint(0, 6, (tokens,), generator=generator)
    return torch.randn(8, 5, generator=generator), rows, torch.randn(tokens, 5, generator=generator)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", [0, 1, 40, 150])
def test_rowwise_adagrad(tokens: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENRANK_KERNELS", backend)
    table, rows, grads = updates(tokens)
    state, want, want_state = torch.zeros(8), table.double(), torch.zeros(8, dtype=torch.float64)
    for _ in range(2):
        rowwise_adagrad_(table, state, rows, grads, lr=0.1)
        for r in set(rows.tolist()):
            total = grads[rows == r].double().sum(0)
            want_state[r] += total.square().mean()
            want[r] -= 0.1 * total / (want_state[r].sqrt() + 1e-8)
    torch.testing.assert_close(table.double(), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state.double(), want_state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rowwise_adam(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of dim 1 has one value a row: there, row-wise Adam is Adam."""
    monkeypatch.setenv("GENRANK_KERNELS", backend)
    table = torch.randn(6, 1)
    parameter = torch.nn.Parameter(table.clone())
    adam = torch.optim.Adam([parameter], lr=0.05)
    mean, state = torch.zeros(6, 1), torch.zeros(6)
    for step in (1, 2, 3):
        rows = torch.tensor([0, 1, 2, 3, 4, 5, 0, 3])
        grads = torch.randn(8, 1)
        rowwise_adam_(table, mean, state, rows, grads, step=step, lr=0.05)
        parameter.grad = torch.zeros(6, 1).index_add_(0, rows, grads)
        adam.step()
    torch.testing.assert_close(table, parameter.detach(), rtol=1e-4, atol=1e-6)

"""Dynamic vocabularies against a dictionary that does the same one id at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import genrank.schemas as s
from genrank.schemas.ids import MISSING_ID
from genrank.schemas.table import LogicalTable
from genrank.tokenization.dynamic import EVICTED_SHARE, DynamicVocabulary


def vocabulary(**options: object) -> DynamicVocabulary:
    return DynamicVocabulary(LogicalTable("t", ("candidates.t",), 4, s.Dynamic(**options)))


@dataclass
class Oracle:
    """The contract, id by id."""

    spec: s.Dynamic
    max_age: int | None = None
    step: int = 0
    counts: dict[int, int] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    times: dict[int, int] = field(default_factory=dict)
    rows: dict[int, int] = field(default_factory=dict)

    def observe(self, ids: list[int], now: int) -> tuple[list[int], list[int]]:
        self.step += 1
        if self.max_age is not None:
            for old in [i for i in self.rows if self.times[i] < now - self.max_age]:
                self.forget(old)
        for i in ids:
            if i != MISSING_ID:
                self.counts[i] = self.counts.get(i, 0) + 1
                self.steps[i], self.times[i] = self.step, now
        waiting = [
            i
            for i in sorted({i for i in ids if i != MISSING_ID})
            if i not in self.rows and self.counts[i] >= self.spec.admit_after
        ]
        free = self.spec.capacity - len(self.rows)
        if len(waiting) > free:
            old = [i for i in self.rows if self.steps[i] < self.step]
            by_age = self.spec.evict == "age"
            rank = {i: (self.steps[i], self.counts[i]) if by_age else (self.counts[i], self.steps[i]) for i in old}
            wanted = max(len(waiting) - free, self.spec.capacity // EVICTED_SHARE)
            for i in sorted(old, key=lambda i: (*rank[i], self.rows[i]))[:wanted]:
                self.forget(i)
        given = []
        for i in waiting:
            if len(self.rows) < self.spec.capacity:
                self.rows[i] = min(set(range(2, self.spec.capacity + 2)) - set(self.rows.values()))
                given.append(self.rows[i])
        self.forget_pending()
        return self.rows_of(ids), given

    def forget(self, i: int) -> None:
        for known in (self.rows, self.counts, self.steps, self.times):
            known.pop(i, None)

    def forget_pending(self) -> None:
        pending = [i for i in self.counts if i not in self.rows]
        if len(pending) > self.spec.capacity:
            oldest = sorted(pending, key=lambda i: (self.steps[i], self.counts[i], i))
            for i in oldest[: len(pending) - self.spec.capacity // 2]:
                self.forget(i)

    def rows_of(self, ids: list[int]) -> list[int]:
        return [0 if i == MISSING_ID else self.rows.get(i, 1) for i in ids]


streams = st.lists(
    st.lists(st.one_of(st.integers(0, 12), st.just(MISSING_ID), st.integers(-(2**62), 2**62)), max_size=12), max_size=12
)


@settings(max_examples=150)
@given(streams, st.integers(1, 6), st.integers(1, 3), st.sampled_from(["age", "frequency"]), st.booleans())
def test_does_what_a_dictionary_does(
    stream: list[list[int]], capacity: int, admit_after: int, evict: str, ages: bool
) -> None:
    options = {"capacity": capacity, "admit_after": admit_after, "evict": evict, "max_age": "3ms" if ages else None}
    real, oracle = vocabulary(**options), Oracle(s.Dynamic(**options), 3 if ages else None)
    for now, ids in enumerate(stream):
        batch = torch.tensor(ids, dtype=torch.int64)
        rows, given = real.observe(batch, now)
        assert (rows.tolist(), given.tolist()) == oracle.observe(ids, now)
        assert real.rows_of(batch).tolist() == oracle.rows_of(ids)
        assert len(real) == len(oracle.rows) <= capacity


@settings(max_examples=50)
@given(streams, st.integers(0, 12))
def test_resumes_as_if_it_had_never_stopped(stream: list[list[int]], stop: int) -> None:
    whole, first = (vocabulary(capacity=3, admit_after=2, evict="frequency") for _ in range(2))
    second = vocabulary(capacity=3, admit_after=2, evict="frequency")
    for now, ids in enumerate(stream):
        batch = torch.tensor(ids, dtype=torch.int64)
        if now == stop:
            second.load(*first.state())
            first = second
        a, b = whole.observe(batch, now), first.observe(batch, now)
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_grows_without_losing_rows() -> None:
    small = vocabulary(capacity=3)
    ids = torch.tensor([10, 20, 30])
    rows, _ = small.observe(ids, 0)
    large = vocabulary(capacity=8)
    large.load(*small.state())
    assert torch.equal(large.rows_of(ids), rows)
    more, given = large.observe(torch.tensor([40, 50]), 1)
    assert torch.equal(large.rows_of(ids), rows) and torch.equal(more, given) and more.tolist() == [5, 6]
    with pytest.raises(ValueError, match="beyond its capacity"):
        vocabulary(capacity=1).load(*small.state())


def test_batch_order_does_not_matter() -> None:
    ids = torch.randint(0, 50, (200,))
    a, b = vocabulary(capacity=16, admit_after=2), vocabulary(capacity=16, admit_after=2)
    a.observe(ids, 0)
    b.observe(ids[torch.randperm(200)], 0)
    assert torch.equal(a.rows_of(ids), b.rows_of(ids))


def test_memory_is_bounded() -> None:
    table = vocabulary(capacity=64, admit_after=3)
    for step in range(200):
        table.observe(torch.arange(step * 50, step * 50 + 50), step)
    assert len(table.map) <= 2 * 64 + 50
    assert len(table.entries.ids) <= 1024 and len(table.map.keys) <= 4096

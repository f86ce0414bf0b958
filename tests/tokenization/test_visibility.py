"""Every visibility rule, as a boolean matrix, equals what its definition says token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genrank.tokenization.visibility import CANDIDATE, HISTORY, REALTIME, USER, Layout, Rule, causal, hstu, mtgr


@dataclass
class Sample:
    """One sample: group and, for realtime tokens and candidates, the moments that decide what they see."""

    users: int
    history: int
    available: list[int]
    exposed: list[int]

    @property
    def groups(self) -> list[int]:
        counts = (self.users, self.history, len(self.available), len(self.exposed))
        return [group for group, n in enumerate(counts) for _ in range(n)]

    @property
    def moment(self) -> list[int]:
        return [0] * (self.users + self.history) + self.available + self.exposed


samples = st.builds(
    lambda users, history, available, exposed: Sample(users, history, sorted(available), sorted(exposed)),
    st.integers(0, 3),
    st.integers(0, 6),
    st.lists(st.integers(1, 8), max_size=6),
    st.lists(st.integers(1, 8), max_size=4),
)


def layout_of(sample: Sample) -> Layout:
    group = torch.tensor(sample.groups, dtype=torch.int32)
    sees = [
        sum(a < moment for a in sample.available) if g >= REALTIME else 0
        for g, moment in zip(sample.groups, sample.moment, strict=True)
    ]
    n = len(group)
    known = sample.users + sample.history
    full = torch.full((n,), 0, dtype=torch.int64)
    return Layout(torch.arange(n), group, full + sample.users, full + known, torch.tensor(sees, dtype=torch.int64))


def mask_of(layout: Layout, rule: Rule) -> Tensor:
    begin, end = rule(layout)
    assert begin.dtype == end.dtype == torch.int32
    key = torch.arange(len(begin))
    inside = (key >= begin[:, None]) & (key < end[:, None])
    return inside | torch.eye(len(begin), dtype=torch.bool)


def brute(sample: Sample, sees: Callable[[int, int], bool]) -> Tensor:
    n = len(sample.groups)
    return torch.tensor([[q == k or sees(q, k) for k in range(n)] for q in range(n)], dtype=torch.bool).view(n, n)


@given(samples)
def test_mtgr(sample: Sample) -> None:
    group, moment = sample.groups, sample.moment

    def sees(q: int, k: int) -> bool:
        if group[k] in (USER, HISTORY):
            return True
        return group[q] in (REALTIME, CANDIDATE) and group[k] == REALTIME and moment[k] < moment[q]

    assert torch.equal(mask_of(layout_of(sample), mtgr), brute(sample, sees))


@given(samples)
def test_causal(sample: Sample) -> None:
    group, moment = sample.groups, sample.moment

    def sees(q: int, k: int) -> bool:
        if group[k] in (USER, HISTORY):
            return k < q
        return group[q] in (REALTIME, CANDIDATE) and group[k] == REALTIME and moment[k] < moment[q]

    assert torch.equal(mask_of(layout_of(sample), causal), brute(sample, sees))


@settings(max_examples=300)
@given(samples, st.booleans(), st.integers(0, 4), st.integers(0, 3))
def test_hstu_without_realtime_is_metas_mask(sample: Sample, contextual: bool, window: int, tail: int) -> None:
    """generative-recommenders' `_get_valid_attn_mask`, token by token: contextual tokens share position 0, targets the position
    behind the sequence."""
    sample.available = []
    group = sample.groups
    first = sample.users - 1 if contextual and sample.users else 0
    behind = sample.users + sample.history - first

    def place(token: int) -> int:
        return min(max(token - first, 0), behind)

    def sees(q: int, k: int) -> bool:
        distance = place(q) - place(k)
        near = not window or distance <= window or (tail > 0 and place(q) >= behind - tail)
        if contextual and sample.users and group[q] == USER and place(k) < behind:
            return True
        return distance > 0 and near

    rule = lambda layout: hstu(layout, contextual=contextual, window=window, full_tail=tail)  # noqa: E731
    assert torch.equal(mask_of(layout_of(sample), rule), brute(sample, sees))


@given(samples, st.integers(1, 4), st.integers(0, 3))
def test_hstu_window_with_realtime(sample: Sample, window: int, tail: int) -> None:
    group, moment = sample.groups, sample.moment
    known = sample.users + sample.history

    def before(q: int) -> list[int]:
        """What the token would see without a window, oldest first."""
        if group[q] <= HISTORY:
            return list(range(q))
        return [k for k in range(known + len(sample.available)) if k < known or moment[k] < moment[q]]

    def sees(q: int, k: int) -> bool:
        if group[q] == USER:
            return k < known
        seen = before(q)
        if tail and len(seen) >= known - tail:
            return k in seen
        near = seen[-window:]
        return k in near or (k in seen and k < sample.users and bool(near) and near[0] < sample.users)

    rule = lambda layout: hstu(layout, window=window, full_tail=tail)  # noqa: E731
    assert torch.equal(mask_of(layout_of(sample), rule), brute(sample, sees))


@pytest.mark.parametrize("rule", [mtgr, causal, hstu])
def test_candidates_never_see_each_other(rule: Rule) -> None:
    sample = Sample(2, 3, [1, 2, 2, 5], [2, 3, 9])
    mask = mask_of(layout_of(sample), rule)
    candidates = mask[-3:, -3:]
    assert torch.equal(candidates, torch.eye(3, dtype=torch.bool))

"""Scores of each query with its own choice of vectors, against a loop in float64; and the loss made of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genrank.model.losses import sampled_softmax
from genrank.model.sampled_scores import (
    gathered_gradients,
    gathered_scores,
    sampled_scores,
    sparse_gradients,
    sparse_scores,
)


def by_loop(queries: Tensor, vectors: Tensor, chosen: Tensor) -> Tensor:
    rows = [[queries[q] @ vectors[n] for n in own] for q, own in enumerate(chosen.tolist())]
    return torch.stack([torch.stack(row) for row in rows])


@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 9), st.integers(1, 5))
def test_both_ways_are_the_loop_s(seed: int, queries: int, vectors: int, each: int) -> None:
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(queries, 3, generator=g, dtype=torch.float64, requires_grad=True)
    v = torch.randn(vectors, 3, generator=g, dtype=torch.float64, requires_grad=True)
    chosen = torch.randint(vectors, (queries, each), generator=g)  # the same one more than once, too
    upstream = torch.randn(queries, each, generator=g, dtype=torch.float64)
    expected = by_loop(q, v, chosen)
    gradients = torch.autograd.grad(expected, (q, v), upstream)
    got = sampled_scores(q, v, chosen)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, (q, v), upstream), gradients)
    for scores, of in ((sparse_scores, sparse_gradients), (gathered_scores, gathered_gradients)):
        own = q.detach(), v.detach(), chosen
        torch.testing.assert_close(scores(*own), expected.detach())
        torch.testing.assert_close(of(*own, upstream), gradients)


def test_gathering_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    q, v, chosen, upstream = torch.randn(11, 4), torch.randn(6, 4), torch.randint(6, (11, 5)), torch.randn(11, 5)
    whole = gathered_scores(q, v, chosen), *gathered_gradients(q, v, chosen, upstream)
    monkeypatch.setattr("genrank.model.sampled_scores.GATHERED", 5 * 4 * 3)
    pieces = gathered_scores(q, v, chosen), *gathered_gradients(q, v, chosen, upstream)
    torch.testing.assert_close(pieces, whole)


def test_more_vectors_than_16_bits_count() -> None:
    torch.manual_seed(0)
    q, v = torch.randn(3, 2, requires_grad=True), torch.randn((1 << 16) + 5, 2, requires_grad=True)
    chosen = torch.tensor([[0, 1 << 16, 3], [len(v) - 1, 3, 3], [1, 2, 1 << 16]])
    scores = sampled_scores(q, v, chosen)
    torch.testing.assert_close(scores, by_loop(q, v, chosen))
    (of_vectors,) = torch.autograd.grad(scores.sum(), v)
    assert of_vectors.abs().sum(1).nonzero().squeeze(1).tolist() == sorted(set(chosen.flatten().tolist()))


def test_no_query_and_no_choice() -> None:
    v = torch.randn(4, 3, requires_grad=True)
    for shape in ((0, 5), (2, 0)):
        q = torch.randn(shape[0], 3, requires_grad=True)
        scores = sampled_scores(q, v, torch.zeros(shape, dtype=torch.int64))
        assert scores.shape == shape
        assert torch.autograd.grad(scores.sum(), v)[0].abs().sum() == 0
    with pytest.raises(ValueError, match="chosen must be \\[2, R\\]"):
        sampled_scores(torch.randn(2, 3), v, torch.zeros(3, 1, dtype=torch.int64))


def test_a_query_s_own_negatives_leave_out_its_positive() -> None:
    """-log softmax over the positive and the chosen that are other items; each choice counts as often as it was drawn."""
    torch.manual_seed(0)
    queries, items = torch.randn(4, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    target, chosen = torch.tensor([2, 0, 5, 5]), torch.tensor([[2, 1, 1], [3, 4, 5], [5, 5, 5], [0, 5, 1]])
    log_q = torch.randn(6, dtype=torch.float64)
    expected = 0.0
    for q, own in enumerate(chosen.tolist()):

        def score(n: int, q: int = q) -> float:
            return float(queries[q] @ items[n] / queries[q].norm() / items[n].norm() / 0.2)

        positive = math.exp(score(int(target[q])))
        others = sum(math.exp(score(n) - float(log_q[n])) for n in own if n != int(target[q]))
        expected -= math.log(positive / (positive + others))
    got = sampled_softmax(
        queries, items[target], items, positive_ids=target + 100, negative_ids=torch.arange(100, 106),
        negative_log_q=log_q, chosen=chosen, temperature=0.2,
    )  # fmt: skip
    assert got.item() == pytest.approx(expected, rel=1e-5)

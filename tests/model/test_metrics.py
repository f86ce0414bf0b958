"""Metrics equal scikit-learn's, or a loop that anyone can read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

from genrank.model import metrics
from genrank.model.metrics import Predictions, RetrievalMetrics, target_ranks


def draw(seed: int, n: int = 300, users: int = 12, levels: int = 20):
    """Predictions with ties, zero weights and users of one class."""
    g = np.random.default_rng(seed)
    user = g.integers(0, users, n)
    score = g.integers(1, levels, n) / levels
    label = (g.random(n) < score * (user % 3 > 0)).astype(float)
    weight = g.choice([0.0, 0.5, 1.0, 4.0], n)
    return user, label, score, weight


def gauc_by_loop(user, label, score, weight) -> float:
    numerator = denominator = 0.0
    for u in np.unique(user):
        mine = (user == u) & (weight > 0)
        if len(set(label[mine])) < 2:
            continue
        w = weight[mine].sum()
        numerator += w * roc_auc_score(label[mine], score[mine], sample_weight=weight[mine])
        denominator += w
    return numerator / denominator


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), levels=st.sampled_from([2, 7, 1000]))
def test_binary_metrics_equal_scikit_learn(seed: int, levels: int) -> None:
    user, label, score, weight = draw(seed, levels=levels)
    predictions = Predictions()
    for part in np.array_split(np.arange(len(user)), 5):
        predictions.update(*(torch.from_numpy(c[part]) for c in (user, label, score, weight)))
    got = {name: e.value for name, e in predictions.compute().items()}
    if len(set(label[weight > 0])) < 2:
        assert got["auc"] is None and got["ne"] is None
        return
    assert got["auc"] == pytest.approx(roc_auc_score(label, score, sample_weight=weight), abs=1e-12)
    assert got["gauc"] == pytest.approx(gauc_by_loop(user, label, score, weight), abs=1e-12)
    loss = log_loss(label, score, sample_weight=weight)
    rate = np.average(label, weights=weight)
    assert got["logloss"] == pytest.approx(loss, rel=1e-12)
    assert got["ne"] == pytest.approx(
        loss / log_loss(label, np.full_like(score, rate), sample_weight=weight), rel=1e-12
    )
    assert got["calibration"] == pytest.approx(np.average(score, weights=weight) / rate, rel=1e-12)


def by_request_slowly(user, request, label, score, weight) -> dict[str, float]:
    """A loop over requests, with scikit-learn's AUC and NDCG."""
    area = impressions = 0.0
    reciprocal, gains = [], []
    for u, r in {*zip(user.tolist(), request.tolist(), strict=True)}:
        mine = (user == u) & (request == r) & (weight > 0)
        own, scores = label[mine], score[mine]
        if len(set(own)) < 2:
            continue
        area += weight[mine].sum() * roc_auc_score(own, scores, sample_weight=weight[mine])
        impressions += weight[mine].sum()
        best = scores[own > 0].max()
        reciprocal.append(1 / (1 + ((own == 0) & (scores >= best)).sum()))
        gains.append(ndcg_score(own[None], scores[None], k=10))
    if not gains:
        return dict.fromkeys(("request_auc", "mrr", "ndcg@10"))
    return {"request_auc": area / impressions, "mrr": np.mean(reciprocal), "ndcg@10": np.mean(gains)}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), levels=st.sampled_from([2, 7, 1000]), requests=st.sampled_from([1, 4, 60]))
def test_metrics_by_request_equal_scikit_learn(seed: int, levels: int, requests: int) -> None:
    user, label, score, weight = draw(seed, levels=levels)
    request = np.random.default_rng(seed).integers(0, requests, len(user))
    predictions = Predictions(by_request=True)
    for part in np.array_split(np.arange(len(user)), 3):
        predictions.update(*(torch.from_numpy(c[part]) for c in (user, label, score, weight, request)))
    got = {name: e.value for name, e in predictions.compute().items()}
    for name, expected in by_request_slowly(user, request, label, score, weight).items():
        assert got[name] == (None if expected is None else pytest.approx(expected, abs=1e-12)), name


def test_replicates_by_request_equal_repeating_each_drawn_users_requests() -> None:
    user, label, score, weight = draw(5)
    keep = weight > 0
    user, label, score, weight = user[keep], label[keep], score[keep], weight[keep]
    request = np.random.default_rng(1).integers(0, 6, len(user))
    names = np.unique(user)
    picks = np.random.default_rng(0).integers(0, len(names), len(names))
    rows = np.concatenate([np.flatnonzero(user == names[p]) for p in picks])
    copies = np.concatenate([np.full((user == names[p]).sum(), i) for i, p in enumerate(picks)])
    expected = by_request_slowly(copies, request[rows], label[rows], score[rows], weight[rows])
    predictions = Predictions(by_request=True)
    predictions.update(*map(torch.from_numpy, (user, label, score, weight, request)))
    ranked = predictions._ranked(*predictions.arrays())
    assert ranked is not None
    got = ranked.metrics(np.bincount(picks, minlength=len(names)).astype(float))
    assert got == pytest.approx(expected, rel=1e-12)


def test_a_user_of_one_class_does_not_move_gauc_but_moves_auc() -> None:
    user = np.array([1, 1, 1, 1])
    label, score = np.array([1.0, 0, 1, 0]), np.array([0.9, 0.1, 0.4, 0.6])
    assert metrics.gauc(user, label, score) == 0.75
    more = np.r_[user, 2, 2], np.r_[label, 0, 0], np.r_[score, 0.95, 0.99]
    assert metrics.gauc(*more) == 0.75
    assert metrics.auc(*more[1:]) < metrics.auc(label, score)


def test_one_class_and_no_candidates_are_undefined_not_an_error() -> None:
    predictions = Predictions()
    assert all(e.value is None for e in predictions.compute(bootstrap=5).values())
    predictions.update(torch.tensor([1, 2]), torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.25]))
    got = predictions.compute(bootstrap=5)
    assert got["auc"].value is None and got["gauc"].low is None and got["ne"].value is None
    assert got["calibration"].value == pytest.approx(0.375)


@pytest.mark.parametrize("kind", ["binary", "value"])
def test_bootstrap_replicates_equal_repeating_each_drawn_users_rows(kind: str) -> None:
    user, label, score, weight = draw(5)
    keep = weight > 0
    user, label, score, weight = user[keep] * 7 - 3, label[keep], score[keep], weight[keep]
    make = metrics._BinaryReplicates if kind == "binary" else metrics._ValueReplicates
    replicates = make(user, label, score, weight)
    names = np.unique(user)
    picks = np.random.default_rng(0).integers(0, len(names), len(names))
    rows = np.concatenate([np.flatnonzero(user == names[p]) for p in picks])
    # A user drawn twice is two users: GAUC sees the copies apart.
    copies = np.concatenate([np.full((user == names[p]).sum(), i) for i, p in enumerate(picks)])
    compute = metrics._binary if kind == "binary" else metrics._value
    expected = compute(copies, label[rows], score[rows], weight[rows])
    got = replicates.metrics(np.bincount(picks, minlength=len(names)).astype(float))
    assert got == pytest.approx(expected, rel=1e-12)


def test_intervals_hold_the_value_and_shrink_with_more_users() -> None:
    def width(users: int) -> float:
        g = np.random.default_rng(users)
        user = np.repeat(np.arange(users), 20)
        score = g.random(len(user))
        label = (g.random(len(user)) < score).astype(float)
        predictions = Predictions()
        predictions.update(*(torch.from_numpy(c) for c in (user, label, score)))
        got = predictions.compute(bootstrap=100)
        for e in got.values():
            assert e.low <= e.value <= e.high
        return got["gauc"].high - got["gauc"].low

    assert width(800) < width(50) / 2


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_retrieval_metrics_equal_scikit_learn(seed: int) -> None:
    g = np.random.default_rng(seed)
    scores, targets = g.normal(size=(9, 40)), g.integers(0, 40, 9)
    relevance = np.eye(40)[targets]
    got = RetrievalMetrics(cutoffs=(1, 10))
    ranks = target_ranks(torch.from_numpy(scores), torch.from_numpy(targets))
    got.update(ranks[:4])
    got.update(ranks[4:])
    result = got.compute()
    assert result["ndcg@10"].value == pytest.approx(ndcg_score(relevance, scores, k=10))
    order = (-scores).argsort(1)
    place = np.array([int(np.flatnonzero(order[i] == targets[i])[0]) + 1 for i in range(9)])
    assert result["hr@1"].value == pytest.approx((place == 1).mean())
    assert result["mrr"].value == pytest.approx((1 / place).mean())


def test_a_constant_scorer_gains_nothing() -> None:
    assert target_ranks(torch.zeros(1, 5), torch.tensor([2])).tolist() == [5]

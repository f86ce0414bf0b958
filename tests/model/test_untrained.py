"""Baselines that nothing trains: counts over windows as a loop has them, the best column as sorting has it, slices that add up."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "tokenization"))
from random_samples import demo_schema, write_random_samples

from genrank.model.baselines.best_column import Column, best_columns
from genrank.model.baselines.numbers import Numbers
from genrank.model.baselines.popularity import (
    CHOICES,
    STRENGTH,
    WINDOWS,
    Exposures,
    Popularity,
    WindowedCounts,
    choose,
)
from genrank.model.baselines.untrained import Untrained
from genrank.model.metrics import gauc
from genrank.model.predict import candidate_users
from genrank.model.slices import Slices
from genrank.tokenization.reader import SampleReader

SCHEMA = demo_schema()
DATES = ["2026-01-01", "2026-01-02"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_samples(tmp_path_factory.mktemp("samples"), SCHEMA, DATES, users=30)


EXPOSURE = st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(0, 1), st.sampled_from([0.0, 1.0, 2.0]))


@settings(max_examples=40, deadline=None)
@given(st.lists(EXPOSURE, max_size=30), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 90))), st.integers(0, 9))
def test_windowed_counts_equal_a_loop(
    shown: list[tuple[int, int, int, float]], asked: list[tuple[int, int]], delay: int
) -> None:
    item, ts, label, weight = (np.array([each[i] for each in shown]) for i in range(4))
    counts = WindowedCounts(
        item.astype(np.int64), ts.astype(np.int64), label.astype(float), weight.astype(float), delay
    )
    items, at = (np.array([each[i] for each in asked], np.int64) for i in range(2))
    for window in (1, 20, None):
        exposures, positives = counts.counts(items, at, window)
        for i, (wanted, t) in enumerate(asked):
            until = t - delay
            rows = [s for s in shown if s[0] == wanted and s[1] < until and (window is None or s[1] >= until - window)]
            assert exposures[i] == sum(s[3] for s in rows)
            assert positives[i] == sum(s[3] * s[2] for s in rows)


def test_the_window_is_chosen_that_orders_a_training_day_best() -> None:
    """Item 1 was clicked long ago, item 2 in the last hour; today item 2 is clicked."""
    hour = 3_600_000
    items = np.array([1] * 20 + [2] * 4, np.int64)
    ts = np.array([hour] * 20 + [95 * hour] * 4, np.int64)
    labels = np.array([1.0] * 10 + [0.0] * 10 + [1.0, 0, 0, 0])
    counts = WindowedCounts(items, ts, labels, np.ones(24), 0)
    day = Exposures(
        np.array([7, 7], np.int64),
        np.array([1, 2], np.int64),
        np.array([96 * hour - 1] * 2, np.int64),
        {"click": np.array([0.0, 1.0])},
        {"click": np.ones(2)},
    )
    chosen = choose(counts, day, "click")
    assert WINDOWS[chosen.window] == hour
    assert chosen.in_words("click") == "click count of the item, 1 h"
    np.testing.assert_array_equal(chosen.scores(counts, day.item, day.ts), [0, 1])
    rate = (1 + STRENGTH * counts.base) / (4 + STRENGTH)
    by_rate = Popularity("rate", chosen.window)
    np.testing.assert_allclose(by_rate.scores(counts, day.item, day.ts), [counts.base, rate])
    assert len(CHOICES) == 2 * len(WINDOWS)


def test_the_best_column_is_the_one_that_sorting_finds(root: Path) -> None:
    found = best_columns(root, SCHEMA, DATES[0], ["click"])["click"]
    numbers = Numbers(SCHEMA, user=False)
    assert set(numbers.names) == {f"candidates.{f.name}" for f in SCHEMA.candidates.features if f.number_transform}
    batch = next(
        iter(SampleReader(root, SCHEMA, DATES[:1], view="user_day", shuffle=False, token_budget=10**9, prefetch=0))
    )
    matrix, users = numbers(batch).numpy().astype(np.float64), candidate_users(batch).numpy()
    label, weight = batch.labels["click"].numpy().astype(float), batch.weights["click"].numpy().astype(float)
    keep = weight > 0
    reached = {}
    for at, name in enumerate(numbers.names):
        for sign in (1, -1):
            values = np.where(np.isnan(matrix[:, at]), -np.inf, sign * matrix[:, at])
            reached[name, sign] = gauc(users[keep], label[keep], values[keep], weight[keep])
    best = max(reached.values())
    assert reached[found.name, 1 if found.largest_first else -1] == pytest.approx(best)
    missing = Column(0, "x", largest_first=False).scores(torch.tensor([[1.0], [float("nan")], [-5.0]]))
    assert missing.argsort(descending=True).tolist() == [2, 0, 1]


def test_days_without_samples_leave_the_baselines_out(root: Path) -> None:
    assert Untrained.of_days(root, SCHEMA, ["2025-01-01"], DATES[1:]) is None
    assert Untrained.of_days(root, SCHEMA, [], DATES[1:]) is None


def test_slices_are_of_the_candidates_they_name(root: Path) -> None:
    known = np.arange(250, dtype=np.int64)
    slices = Slices(SCHEMA, known)
    everything: list[tuple[int, int, int, int, float, int]] = []
    for batch in SampleReader(root, SCHEMA, DATES[1:], view="user_day", shuffle=False, prefetch=0):
        owner = candidate_users(batch)
        slices.update(batch, owner, {label.name: torch.full((len(owner),), 0.5) for label in SCHEMA.labels})
        history = np.repeat(batch.groups["history"].lengths.numpy(), batch.candidates.lengths.numpy())
        columns = (owner, batch.request, batch.item, batch.candidates.ts, batch.weights["click"])
        everything += zip(*(c.tolist() for c in columns), history.tolist(), strict=True)
    found = slices.compute(bootstrap=0, seed=0)["click"]
    mature = [row for row in everything if row[4] > 0]
    sizes = {(u, r): sum((o[0], o[1]) == (u, r) for o in everything) for u, r, *_ in everything}
    assert found["item"]["new: on no training day"].candidates == sum(row[2] >= 250 for row in mature)
    assert found["user"]["cold: no history"].candidates == sum(row[5] == 0 for row in mature)
    assert found["request"]["1 to 5 candidates"].candidates == sum(sizes[row[0], row[1]] <= 5 for row in mature)
    assert found["hour"]["06 to 11 h"].candidates == sum(6 <= row[3] // 3_600_000 % 24 < 12 for row in mature)
    assert found["item"]["known"].metrics["gauc"].value == 0.5  # equal scores tie

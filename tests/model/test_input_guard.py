"""The input that is no number is named: sample, feature, column."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from genrank.model.input_guard import not_finite
from genrank.tokenization.batch import Batch, Group


def batch(ctr: list[float], click: list[float], weight: list[float]) -> Batch:
    offsets = torch.tensor([0, 2, 3])
    none = torch.zeros(0, dtype=torch.int64)
    return Batch(
        groups={"candidates": Group(offsets, torch.zeros(3, dtype=torch.int64), {"ctr": torch.tensor(ctr)})},
        sample_id=["first", "second"],
        user=torch.tensor([1, 2]),
        window_start=torch.tensor([0, 0]),
        request=torch.zeros(3, dtype=torch.int64),
        item=torch.zeros(3, dtype=torch.int64),
        labels={"click": torch.tensor(click)},
        weights={"click": torch.tensor(weight)},
        oracles={},
        candidate_sees=torch.zeros(3, dtype=torch.int32),
        realtime_sees=none.int(),
        realtime_available=none,
    )


def test_missing_values_are_no_fault() -> None:
    assert not_finite(batch([math.nan, 0.0, 1.0], [math.nan, 1.0, 0.0], [0.0, 1.0, 1.0])) is None


@pytest.mark.parametrize(
    ("ctr", "click", "weight", "named"),
    [
        (math.inf, 0.0, 1.0, "sample second, feature ctr (samples' column candidates.ctr) is inf"),
        (0.0, math.nan, 1.0, "sample second, label click (samples' column labels.click) is nan"),
        (0.0, 0.0, math.inf, "sample second, the weight of label click (samples' column labels.click_weight) is inf"),
    ],
)
def test_the_first_one_is_named(ctr: float, click: float, weight: float, named: str) -> None:
    wrong = batch([0.0, 0.0, ctr], [0.0, 1.0, click], [1.0, 1.0, weight])
    assert not_finite(wrong) == named
    assert not_finite(replace(wrong, sample_id=["a", "b"])) == named.replace("second", "b")

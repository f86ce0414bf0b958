"""The report of a run shows what is known and draws a dash where a metric isn't defined."""

from __future__ import annotations

import pytest

from genrank.model.documents import Evaluation
from genrank.model.terminal import print_metrics


def test_a_metric_that_is_not_defined_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    """`metrics.json` has null for a metric of labels all of one class: JSON knows no NaN."""
    known = {"value": 0.6321, "low": 0.61, "high": 0.65}
    undefined = {"value": None, "low": None, "high": None}
    rows = {
        "click": {"model": {"gauc": known, "auc": undefined}, "popularity": {"gauc": undefined, "auc": known}},
        "purchase": {"model": {"gauc": undefined, "auc": undefined}},
    }
    evaluation = Evaluation(model="mtgr-tiny", step=1, dates=["2026-01-05"], task="ranking", tasks=rows)
    print_metrics("mtgr-tiny", evaluation)
    printed = capsys.readouterr().out
    model = next(line for line in printed.splitlines() if "mtgr-tiny" in line)
    assert "0.6321" in model
    assert "–" in model
    assert "nan" not in printed
    assert "purchase: no candidate of 2026-01-05 has a mature label yet" in printed

"""What a training tells where there is no terminal."""

from __future__ import annotations

import logging

import pytest

from genrank.kernels import tuning
from genrank.model import progress
from genrank.model.progress import Progress


def steps(show: bool = True, total: int = 1200) -> None:
    with Progress("mtgr-tiny", total, show) as bar:
        for step in range(1, 4):
            bar.update(step, epoch=0, loss=0.5, samples=10, tokens=1000)


def test_a_log_hears_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    steps()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "TOLD_EVERY_S", 0.0)
    steps()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[-1].startswith("mtgr-tiny: step 3 of about 1,200, epoch 0 loss 0.5000 ")
    steps(show=False)
    assert capsys.readouterr().err == ""


def test_an_estimate_that_was_too_low_is_not_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "TOLD_EVERY_S", 0.0)
    steps(total=2)
    told = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == ["mtgr-tiny: step 1 of about 2", "mtgr-tiny: step 2 of about 2", "mtgr-tiny: step 3"]


def test_what_kernels_report_is_shown_while_training_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for show, shown in ((True, ["kernels: compiling on first use [fixed]"]), (False, [])):
        with Progress("mtgr-tiny", 10, show):
            tuning.logger.info("kernels: compiling on first use [fixed]")
        assert capsys.readouterr().err.splitlines() == shown
    tuning.logger.info("afterwards nobody listens")
    assert capsys.readouterr().err == "" and tuning.logger.level == logging.NOTSET

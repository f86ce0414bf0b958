"""What a training reports where there is no terminal."""

from __future__ import annotations

import logging

import pytest

from genrank.kernels import tuning
from genrank.model import progress
from genrank.model.progress import Progress, StepClock, StepTime


def steps(show: bool = True, total: int = 1200) -> None:
    with Progress("mtgr-tiny", total, show) as bar:
        for step in range(1, 4):
            bar.update(step, epoch=0, loss=0.5, samples=10, tokens=1000, took=StepTime(0.1, 0.05))


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "genrank")
    steps()
    assert caplog.messages == []
    monkeypatch.setattr(progress, "REPORT_EVERY_S", 0.0)
    steps()
    lines = list(caplog.messages)
    assert len(lines) == 3 and lines[-1].startswith("mtgr-tiny: step 3 of 1,200, epoch 0 loss 0.5000 ")
    steps(show=False)
    assert caplog.messages == lines


def test_steps_beyond_those_expected_are_counted_without_a_total(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "genrank")
    monkeypatch.setattr(progress, "REPORT_EVERY_S", 0.0)
    steps(total=2)
    reported = [line.split(",")[0] for line in caplog.messages]
    assert reported == ["mtgr-tiny: step 1 of 2", "mtgr-tiny: step 2 of 2", "mtgr-tiny: step 3"]


def test_what_kernels_report_is_shown_while_training_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A command that ran before in this process shows whatever reaches "genrank".
    monkeypatch.setattr(tuning.logger, "propagate", False)
    monkeypatch.setattr(tuning.logger, "level", logging.NOTSET)
    for show, shown in ((True, ["kernels: compiling on first use [fixed]"]), (False, [])):
        with Progress("mtgr-tiny", 10, show):
            tuning.logger.info("kernels: compiling on first use [fixed]")
        assert capsys.readouterr().err.splitlines() == shown
        assert not tuning.logger.propagate  # as it was before
    tuning.logger.info("afterwards nobody listens")
    assert capsys.readouterr().err == "" and tuning.logger.level == logging.NOTSET


def test_a_clock_counts_steps_and_what_was_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10_000, 1))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: float(next(now)))
    clock = StepClock()  # 0
    steps = clock.waiting(iter("ab"))
    assert next(steps) == "a"  # asked at 1, there at 2
    assert clock.lap() == StepTime(3.0, 1.0)  # at 3, begun anew at 4
    assert next(steps) == "b"  # 5, 6
    clock.start()  # 7: an evaluation
    assert clock.lap() == StepTime(1.0, 0.0)
    assert list(steps) == []


def test_rates_are_of_the_steps_since_they_were_last_asked_for() -> None:
    with Progress("x", 10, show=False) as bar:
        bar.update(1, 0, 0.5, samples=7, tokens=70, took=StepTime(9.0, 0.0))
        bar.rates(0, 1.0)
        for step in (2, 3):
            bar.update(step, 0, 0.5, samples=10, tokens=1000, took=StepTime(0.5, 0.1))
        assert bar.rates(2 * 10**9, 10.0**10).model_dump() == {
            "step_ms": 500.0, "input_wait": 0.2, "samples_per_s": 20.0, "tokens_per_s": 2000.0, "model_gflops_per_s": 2.0,
            "mfu": 0.2,
        }  # fmt: skip
        assert bar.rates(0, 1.0).step_ms is None

"""A progress bar with throughput (off a terminal, a line now and then), and the figures of log and summary: a step's time and what
of it was waiting for input, samples, tokens and operations a second, memory of the GPU. Messages of the kernels are shown above the bar."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from genrank.model.documents import Speeds
from genrank.schemas.console import logger, stderr

T = TypeVar("T")
REPORT_EVERY_S = 30.0
"""Off a terminal: seconds between lines, so that a scheduler's log shows a long training's way and a short one's not at all."""
SETTLING_STEPS = 2
"""First steps of a process that the summary's rates leave out: kernels are compiled and tuned then, and caches filled."""


@dataclass(frozen=True)
class StepTime:
    """How long a step took on the host, reading included, and for how much of it the host waited for batches."""

    seconds: float
    waited: float


class StepClock:
    """Times steps end to end, so that what the device still computes when a step returns counts for the next one."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin now: whatever came before, such as an evaluation, is part of no step."""
        self._began, self._waited = time.perf_counter(), 0.0

    def waiting(self, steps: Iterator[T]) -> Iterator[T]:
        """The same; what it takes to get each is waiting for input."""
        while True:
            asked = time.perf_counter()
            step = next(steps, None)
            self._waited += time.perf_counter() - asked
            if step is None:
                return
            yield step

    def lap(self) -> StepTime:
        """The step that ends now; the next one begins."""
        done = StepTime(time.perf_counter() - self._began, self._waited)
        self.start()
        return done


def speeds(steps: int, samples: int, tokens: int, flops: int, time: StepTime, peak: float) -> Speeds:
    """What steps that took `time` together came to.

    Args:
        flops: of the model; 0 where they aren't counted.
        peak: FLOP/s of which `mfu` is a share.
    """
    seconds = max(time.seconds, 1e-9)
    return Speeds(
        step_ms=round(1e3 * seconds / steps, 3) if steps else None,
        input_wait=round(time.waited / seconds, 4) if steps and math.isfinite(time.waited) else None,
        samples_per_s=round(samples / seconds, 2),
        tokens_per_s=round(tokens / seconds, 1),
        model_gflops_per_s=round(flops / seconds / 1e9, 3) if flops else None,
        mfu=round(flops / seconds / peak, 4) if flops else None,
    )


def peak_gpu_bytes(device: torch.device) -> int | None:
    """The most GPU memory that tensors took at once so far in this process; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


KERNELS = logging.getLogger("genrank.kernels")
"""What they report: that they are compiled and tuned, which is why the first step takes longer, or what is wrong with their
tuning cache."""


class Lines(logging.Handler):
    """Log messages as lines on stderr, above the bar if there is one."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one."""
        self._console.print(record.getMessage(), highlight=False, markup=False, soft_wrap=True)


class Progress:
    """Counts steps, samples and tokens; reports them on stderr: a bar on a terminal, else a line every 30 seconds."""

    def __init__(self, title: str, total_steps: int, show: bool) -> None:
        terminal = stderr().is_terminal
        self._title, self._total, self._lines = title, total_steps, show and not terminal
        self._reported = time.perf_counter()
        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            TimeRemainingColumn(),
            console=stderr(),
            disable=not (show and terminal),
            transient=True,
            refresh_per_second=4,
        )
        self._kernels = Lines(self._bar.console) if show else None
        self._task = self._bar.add_task(title, total=total_steps or None, rates="")
        self._reset()

    def _reset(self) -> None:
        self._steps, self._samples, self._tokens = 0, 0, 0
        self._time = StepTime(0.0, 0.0)

    def update(self, step: int, epoch: int, loss: float, samples: int, tokens: int, took: StepTime) -> None:
        """After each step: where training is, what the step took in and how long it took."""
        self._steps += 1
        self._samples += samples
        self._tokens += tokens
        self._time = StepTime(self._time.seconds + took.seconds, self._time.waited + took.waited)
        seconds = max(self._time.seconds, 1e-9)
        rates = f"epoch {epoch} loss {loss:.4f} {self._samples / seconds:,.0f} samples/s {self._tokens / seconds:,.0f} tokens/s"
        # Of a finished run that goes on for more epochs than it was begun with.
        if step > self._total:
            self._total = 0
        self._bar.update(self._task, completed=step, total=self._total or None, rates=rates)
        if self._lines and time.perf_counter() - self._reported >= REPORT_EVERY_S:
            self._reported = time.perf_counter()
            total = f" of {self._total:,}" if self._total else ""
            logger.info(f"{self._title}: step {step:,}{total}, {rates}")

    def rates(self, flops: int, peak: float) -> Speeds:
        """`speeds` of the steps since the last call."""
        found = speeds(self._steps, self._samples, self._tokens, flops, self._time, peak)
        self._reset()
        return found

    def __enter__(self) -> Progress:
        self._bar.start()
        if self._kernels:
            self._before = KERNELS.level, KERNELS.propagate
            KERNELS.addHandler(self._kernels)
            KERNELS.setLevel(logging.INFO)
            KERNELS.propagate = False  # the command shows what reaches "genrank": each message once
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._kernels:
            KERNELS.removeHandler(self._kernels)
            level, KERNELS.propagate = self._before
            KERNELS.setLevel(level)
        self._bar.stop()

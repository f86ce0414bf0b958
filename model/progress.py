"""A progress bar with throughput (off a terminal, a line now and then), messages of the kernels, and the same figures for the log."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

TOLD_EVERY_S = 30.0
"""Off a terminal: seconds between lines, so that a scheduler's log shows a long training's way and a short one's not at all."""


KERNELS = logging.getLogger("genrank.kernels")
"""What they report: that they are compiled and tuned, which is why the first step takes longer, or what is wrong with their
tuning cache."""


class Lines(logging.Handler):
    """Log messages as lines on stderr, above the bar if there is one."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(record.getMessage(), highlight=False, markup=False, soft_wrap=True)


class Progress:
    """Counts steps, samples and tokens; tells them on stderr: a bar on a terminal, else a line every 30 seconds."""

    def __init__(self, title: str, total_steps: int, show: bool) -> None:
        terminal = Console(stderr=True).is_terminal
        self._title, self._total, self._lines = title, total_steps, show and not terminal
        self._told = time.perf_counter()
        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (show and terminal),
            transient=True,
            refresh_per_second=4,
        )
        self._kernels = Lines(self._bar.console) if show else None
        self._task = self._bar.add_task(title, total=total_steps or None, told="")
        self._reset()

    def _reset(self) -> None:
        self._since, self._samples, self._tokens = time.perf_counter(), 0, 0

    def update(self, step: int, epoch: int, loss: float, samples: int, tokens: int) -> None:
        """After each step: where training is and what the step took in."""
        self._samples += samples
        self._tokens += tokens
        seconds = max(time.perf_counter() - self._since, 1e-9)
        told = f"epoch {epoch} loss {loss:.4f} {self._samples / seconds:,.0f} samples/s {self._tokens / seconds:,.0f} tokens/s"
        # How many steps there will be is an estimate from the first rows.
        if step > self._total:
            self._total = 0
        self._bar.update(self._task, completed=step, total=self._total or None, told=told)
        if self._lines and time.perf_counter() - self._told >= TOLD_EVERY_S:
            self._told = time.perf_counter()
            total = f" of about {self._total:,}" if self._total else ""
            print(f"{self._title}: step {step:,}{total}, {told}", file=sys.stderr, flush=True)

    def rates(self, flops: int, peak: float) -> dict[str, float]:
        """Samples, tokens and (given how many there were) floating point operations per second since the last call, and these as a
        share of `peak` (MFU)."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        rates = {
            "samples_per_s": round(self._samples / seconds, 2),
            "tokens_per_s": round(self._tokens / seconds, 1),
        }
        if flops:
            rates["model_gflops_per_s"] = round(flops / seconds / 1e9, 3)
            rates["mfu"] = round(flops / seconds / peak, 4)
        self._reset()
        return rates

    def __enter__(self) -> Progress:
        self._bar.start()
        if self._kernels:
            KERNELS.addHandler(self._kernels)
            KERNELS.setLevel(logging.INFO)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._kernels:
            KERNELS.removeHandler(self._kernels)
            KERNELS.setLevel(logging.NOTSET)
        self._bar.stop()

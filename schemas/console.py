"""The one console: results on stdout, progress and log messages on stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Protocol, TextIO, TypeVar

from rich.console import Console
from rich.logging import RichHandler
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

Item = TypeVar("Item")

logger = logging.getLogger("genrank")
"""Warnings and messages of long work. `genrank` (the command) shows them on stderr; a library user configures logging as usual."""


def stdout() -> Console:
    """A console for results: long lines are not wrapped, numbers are not coloured."""
    return Console(soft_wrap=True, highlight=False)


def stderr() -> Console:
    """A console for progress and errors."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the moment, not to what it was when the handler was made."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        del value


def show_log_messages(level: int = logging.INFO) -> None:
    """Show `logger`'s messages on stderr; the command calls it once."""
    if not logger.handlers:
        handler: logging.Handler
        if sys.stderr.isatty():
            handler = RichHandler(console=stderr(), show_path=False, show_time=False, markup=False)
        else:
            handler = _Stderr()
            handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(level)


class Bar(Protocol):
    """A running progress bar."""

    def advance(self, steps: int = 1) -> None:
        """Count so many more as done."""


class _RichBar:
    def __init__(self, progress: Progress, description: str, total: int | None, unit: str) -> None:
        self._progress = progress
        self._task = progress.add_task(f"{description} ({unit}s)" if unit else description, total=total)

    def advance(self, steps: int = 1) -> None:
        self._progress.advance(self._task, steps)


@contextmanager
def progress_bar(description: str, total: int | None, *, unit: str = "") -> Iterator[Bar]:
    """A bar on stderr while the block runs, removed at its end; nothing off a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = stderr()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _RichBar(progress, description, total, unit)


def with_progress(
    items: Iterable[Item], description: str, total: int | None = None, *, unit: str = ""
) -> Iterator[Item]:
    """The items, with a bar that counts them."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(description, total, unit=unit) as bar:
        for item in items:
            yield item
            bar.advance()


def print_whole(table: Table, console: Console | None = None) -> None:
    """Print every cell in full: where the terminal (80 columns, for a pipe or a log) is narrower, lines run past its edge rather than
    numbers being cut to `0.0…`."""
    console = console or Console(highlight=False)
    needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    before, console.width = console.width, max(console.width, needed)
    try:
        console.print(table, crop=False, no_wrap=True)
    finally:
        console.width = before

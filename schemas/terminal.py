"""Tables in the terminal, or in a log."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table


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

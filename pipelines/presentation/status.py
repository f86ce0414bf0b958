"""`genrank status` in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from genrank.pipelines.days import day_number
from genrank.pipelines.status import DayStatus
from genrank.schemas.console import print_whole, stdout


def print_status(days: Sequence[DayStatus]) -> None:
    """A table in the terminal, then each reason with the days it holds for."""
    colours = {"up to date": "green", "stale": "yellow", "missing": "red", "no inputs": "magenta"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("day", "state", "samples", "candidates", "quarantined", "duplicates", "schema"):
        right = heading in ("samples", "candidates", "quarantined", "duplicates")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    reasons: dict[str, list[str]] = {}
    for day in days:
        state = f"[{colours[day.state]}]{day.state}[/]"
        numbers = [
            f"{n:,}" if day.fingerprint else "" for n in (day.samples, day.candidates, day.quarantined, day.duplicates)
        ]
        table.add_row(day.dt, state, *numbers, day.fingerprint)
        if day.reason:
            reasons.setdefault(day.reason, []).append(day.dt)
    console = stdout()
    print_whole(table, console)
    for day in days:
        for line in day.losses:
            console.print(escape(f"{day.dt}: {line}"))
    for reason, dts in reasons.items():
        console.print(f"{_spans(dts)}: {reason}")
    if todo := [day.dt for day in days if day.state in ("stale", "missing")]:
        summary = f"{len(todo)} of {len(days)} days to build: genrank build --from {todo[0]} --to {todo[-1]}"
        console.print(f"{summary} (it leaves what is up to date)")


def _spans(dts: Sequence[str]) -> str:
    """`2026-01-01 to 2026-01-04, 2026-01-06`."""
    spans: list[list[str]] = []
    for dt in dts:
        if spans and day_number(dt) == day_number(spans[-1][-1]) + 1:
            spans[-1][1:] = [dt]
        else:
            spans.append([dt])
    return ", ".join(" to ".join(span) for span in spans)

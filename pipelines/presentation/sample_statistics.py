"""`genrank stats`: the newest day in the terminal, or all days as a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich import box
from rich.console import Console
from rich.table import Table

from genrank.pipelines.sample_statistics import SHIFTED, UNSTEADY, DayStatistics, Summary
from genrank.schemas.console import stdout
from genrank.schemas.files import write_atomically

HEADINGS = ("leaf", "values", "missing", "mean", "median", "90%", "PSI")
"""The mean of a binary label is its rate; of an id, that column has the number of different ones."""
JOINS = ("join", "rows", "found", "PSI")
LEGEND = (
    f"PSI (population stability index): below {UNSTEADY} steady, from {SHIFTED} shifted (yellow between, red above). In a log's first days "
    "histories and window statistics still fill, so theirs are large. Gaps and recencies are in seconds, len() is the length of a list."
)


def _cells(summary: Summary, psi: float | None) -> list[str]:
    median, high = summary.quantiles([0.5, 0.9]) or (math.nan, math.nan)
    middle = _distinct_text(summary) if summary.kind == "id" else _number_text(summary.mean)
    return [
        summary.leaf,
        _short(summary.count),
        f"{summary.missing_rate:.1%}",
        middle,
        _number_text(median),
        _number_text(high),
        _psi_text(psi),
    ]


def _join_cells(summary: Summary, psi: float | None) -> list[str]:
    return [summary.leaf, _short(summary.count), f"{1 - summary.missing_rate:.2%}", _psi_text(psi)]


def _distinct_text(summary: Summary) -> str:
    """The number of different ids, exact below `SKETCH`; `≥` where not all were counted."""
    return f"{'' if summary.all_counted else '≥'}{_short(summary.distinct)} ids"


def _psi_text(psi: float | None) -> str:
    return "" if psi is None or math.isnan(psi) else f"{psi:.3f}"


def _number_text(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def _short(count: int) -> str:
    """At most five characters: 950, 12.3k, 4.56M."""
    value, unit = float(count), ""
    for bigger in ("k", "M", "G", "T"):
        if round(value) < 1000:
            break
        value, unit = value / 1000, bigger
    return f"{count}" if not unit else f"{value:.3g}{unit}"


def _tone(psi: float | None) -> str:
    if psi is None or math.isnan(psi) or psi < UNSTEADY:
        return ""
    return "red" if psi >= SHIFTED else "yellow"


def _by_kind(day: DayStatistics) -> tuple[list[str], list[str]]:
    """(leaves, joins), each what drifted first."""
    ordered = sorted(day.summaries, key=lambda leaf: (-_sortable(day.psi.get(leaf)), leaf))
    joins = [leaf for leaf in ordered if day.summaries[leaf].kind == "join"]
    return [leaf for leaf in ordered if leaf not in joins], joins


def print_statistics(days: Sequence[DayStatistics], console: Console | None = None) -> None:
    """The newest day in the terminal, what drifted first; 80 columns are enough."""
    console = console or stdout()
    if not days:
        console.print("no published day")
        return
    day = days[-1]
    console.print(f"[bold]{day.dt}[/], {day.comparison}")
    console.print(LEGEND)
    for headings, names, cells in zip((HEADINGS, JOINS), _by_kind(day), (_cells, _join_cells), strict=True):
        if names:
            table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
            for i, heading in enumerate(headings):
                table.add_column(heading, justify="right" if i else "left", no_wrap=bool(i), overflow="fold")
            for leaf in names:
                table.add_row(*cells(day.summaries[leaf], day.psi.get(leaf)), style=_tone(day.psi.get(leaf)))
            console.print(table)


def _sortable(psi: float | None) -> float:
    return -1.0 if psi is None or math.isnan(psi) else psi


# ---------------------------------------------------------------------- the page


@dataclass(frozen=True)
class _Drift:
    """A cell of drift."""

    text: str
    tone: str

    @classmethod
    def of(cls, psi: float | None) -> _Drift:
        return cls(_psi_text(psi), _tone(psi))


@dataclass(frozen=True)
class _Section:
    """A table of one day."""

    headings: Sequence[str]
    rows: Sequence[tuple[Sequence[str], _Drift]]


def _sections(day: DayStatistics) -> list[_Section]:
    return [
        _Section(
            headings,
            [
                (cells(day.summaries[leaf], day.psi.get(leaf))[:-1], _Drift.of(day.psi.get(leaf)))
                for leaf in sorted(names)
            ],
        )
        for headings, names, cells in zip((HEADINGS, JOINS), _by_kind(day), (_cells, _join_cells), strict=True)
    ]


def write_statistics(days: Sequence[DayStatistics], path: Path) -> None:
    """One self-contained HTML page: drift over all days, then each day's leaves and joins, newest first."""
    loader = PackageLoader("genrank.pipelines.presentation", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    leaves = sorted({leaf for day in days for leaf in day.summaries})
    page = environment.get_template("sample_statistics.html").render(
        legend=LEGEND,
        days=days,
        drift=[(leaf, [_Drift.of(day.psi.get(leaf)) for day in days]) for leaf in leaves],
        sections=[(day, _sections(day)) for day in reversed(days)],
    )
    write_atomically(path, page)

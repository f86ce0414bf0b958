"""A sweep as a figure, an HTML page and a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich import box
from rich.table import Table

from genrank.model.presentation import dates_text
from genrank.model.report_figures import COLOURS, svg
from genrank.model.scaling.document import Law, Point, ScaleReport
from genrank.model.tasks import task_type
from genrank.schemas.console import print_whole, stdout
from genrank.schemas.files import move, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEMPLATE = "scale.html"
MARKERS = {"history": "o", "width": "s", "depth": "^"}
NUMBERS_AT = {"history": (-4, 8), "width": (5, -11), "depth": (6, 4)}
"""Of a point's size beside it, in points: so that those of axes that meet don't cover each other."""
DASHES = ("--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))


class Row(NamedTuple):
    """A model in a label's table."""

    axis: str
    value: str
    flops: str
    parameters: str
    cells: list[str]
    """Of each metric: mean and standard deviation over seeds."""


def write_page(out: Path, report: ScaleReport) -> None:
    """OUT/scale.html, which holds the figure, and OUT/scale.png."""
    import jinja2

    drawn, staged = figure(report), out / ".scale.png"
    drawn.savefig(staged, format="png", dpi=160)
    move(staged, out / "scale.png")
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([here, here.parent]), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template(TEMPLATE).render(
        report=report,
        scope=scope(report),
        figure=svg(drawn),
        headings=[heading(metric) for metric in _metrics(report)],
        tables={label: rows(report, label) for label in report.labels},
        laws=[in_words(law) for law in report.laws],
    )
    write_atomically(out / "scale.html", page)


def print_scale(report: ScaleReport) -> None:
    """What was trained, a table a label, and a line a fit."""
    stdout().print(scope(report), markup=False)
    for label in report.labels:
        table = Table(
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
            title=label,
            title_justify="left",
            title_style="bold",
        )
        table.add_column("", no_wrap=True)
        for name in ("", "training FLOPs", "parameters", *map(heading, _metrics(report))):
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows(report, label):
            table.add_row(row.axis, row.value, row.flops, row.parameters, *row.cells)
        print_whole(table)
    for law in report.laws:
        stdout().print(in_words(law), markup=False)


# ---------------------------------------------------------------------- in words


def heading(metric: str) -> str:
    """As a table names a metric."""
    return task_type("ranking").heading(metric)


def scope(report: ScaleReport) -> str:
    """What was trained on, and judged on."""
    seeds = f"seed {report.seeds[0]}" if len(report.seeds) == 1 else f"{len(report.seeds)} seeds"
    return (
        f"{report.model}, trained once on {dates_text(report.train_dates)} in batches of {report.token_budget:,} tokens,"
        f" judged on {dates_text(report.eval_dates)}, {seeds}"
    )


def in_words(law: Law) -> str:
    """A fit in a line: the equation and the interval of b, and whether it is a law or why not."""
    name = f"{law.label} {heading(law.metric)} by {law.axis}"
    fitted = ""
    if law.a is not None and law.b is not None and law.c is not None:
        interval = f" [{law.interval[0]:.3f}, {law.interval[1]:.3f}]" if law.interval else ""
        fitted = f"y = {law.a:.3g} x^b + {law.c:.4f}, b = {law.b:.3f}{interval}, over {law.decades:.2f} decades: "
    return f"{name}: {fitted}" + ("no law: " + "; ".join(law.reasons) if law.reasons else "a law")


def rows(report: ScaleReport, label: str) -> list[Row]:
    """A label's table: every point, then what is compared with."""
    metrics = _metrics(report)
    found = [
        Row(
            point.axis,
            f"{point.value:,}",
            f"{np.mean(point.flops):.3g}",
            f"{point.dense_parameters:,}",
            [_spread(point.metrics[label][metric]) for metric in metrics],
        )
        for point in report.points
    ]
    return found + [
        Row(line.name, "", "", "", [_spread(line.metrics[label][metric]) for metric in metrics])
        for line in report.lines
    ]


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "\N{EN DASH}"
    return f"{np.mean(known):.4f}" + (f" ± {np.std(known, ddof=1):.4f}" if len(known) > 1 else "")


def _metrics(report: ScaleReport) -> list[str]:
    return list(dict.fromkeys(law.metric for law in report.laws))


# ---------------------------------------------------------------------- the figure


def figure(report: ScaleReport) -> Figure:
    """A row a label, a panel a metric: means over training FLOPs, a line an axis, bars from the least to the greatest seed; fits that
    are laws as curves, models compared with as horizontal lines."""
    from matplotlib.figure import Figure

    metrics = _metrics(report)
    drawn = Figure(figsize=(5.6 * len(metrics), 4.0 * len(report.labels)), layout="constrained")
    for row, label in enumerate(report.labels):
        for column, metric in enumerate(metrics):
            axis = drawn.add_subplot(len(report.labels), len(metrics), row * len(metrics) + column + 1)
            _panel(axis, report, label, metric)
    return drawn


def _panel(axis: Axes, report: ScaleReport, label: str, metric: str) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.set_xscale("log")
    axis.set(xlabel="training FLOPs", ylabel=heading(metric), title=label)
    for (name, marker), colour in zip(MARKERS.items(), COLOURS, strict=False):
        own = [point for point in report.points if point.axis == name]
        _points(axis, own, label, metric, name, marker, colour)
        for law in report.laws:
            if (law.axis, law.label, law.metric) == (name, label, metric) and own and not law.reasons:
                _curve(axis, law, own, colour)
    oracle = task_type("ranking").references["oracle"]  # it would press everything else flat; the table has it
    lines = [line for line in report.lines if line.name != oracle]
    for line, dashes in zip(lines, DASHES * len(lines), strict=False):
        values = [value for value in line.metrics[label][metric] if value is not None]
        if values:
            axis.axhline(float(np.mean(values)), color=COLOURS[5], linestyle=dashes, linewidth=1.1, label=line.name)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)
    else:
        axis.text(0.5, 0.5, "undefined on these days", transform=axis.transAxes, ha="center")


def _points(axis: Axes, points: Sequence[Point], label: str, metric: str, name: str, marker: str, colour: str) -> None:
    known = [point for point in points if all(value is not None for value in point.metrics[label][metric])]
    if not known:
        return
    x = [float(np.mean(point.flops)) for point in known]
    values = np.array([point.metrics[label][metric] for point in known], np.float64)
    mean = values.mean(1)
    bars = np.stack([mean - values.min(1), values.max(1) - mean])
    axis.errorbar(
        x, mean, yerr=bars, marker=marker, markersize=5, color=colour, linewidth=0.9, elinewidth=0.8, label=name
    )
    for point, at, height in zip(known, x, mean, strict=True):
        place = NUMBERS_AT[name]
        axis.annotate(
            f"{point.value}", (at, height), textcoords="offset points", xytext=place, fontsize=7, color=colour
        )


def _curve(axis: Axes, law: Law, points: Sequence[Point], colour: str) -> None:
    assert law.a is not None and law.b is not None and law.c is not None  # a law is fitted
    flops = [float(np.mean(point.flops)) for point in points]
    x = np.geomspace(min(flops), max(flops), 100)
    text = f"{law.axis}: {law.a:.2g} x^{law.b:.3f} + {law.c:.3f}"
    axis.plot(x, law.a * x**law.b + law.c, color=colour, linewidth=2.2, alpha=0.45, label=text)

"""The figures of the report's page, each as SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from genrank.model.documents import EvalRow, StepRow
from genrank.model.metrics import Estimate
from genrank.model.presentation import numbers
from genrank.model.report_data import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1f6fb2", "#d9822b", "#3a9a5b", "#8a56ac", "#b5443c", "#5c6878")


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def dots(metric_name: str, rows: Sequence[tuple[str, str, Estimate | None]]) -> Figure:
    """A metric of each row (kind, name, estimate) as a dot with its interval."""
    figure, (axis,) = _figure(8, 0.6 + 0.32 * len(rows))
    for y, (kind, _, metric) in enumerate(reversed(rows)):
        value, low, high = numbers(metric)
        if not math.isfinite(value):
            continue
        colour = COLOURS[5] if kind == "reference" else COLOURS[0]
        axis.plot([low, high], [y, y], color=colour, linewidth=2)
        axis.plot(value, y, "o", color=colour)
        axis.annotate(f"{value:.4f}", (value, y), textcoords="offset points", xytext=(0, 6), ha="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [name for _, name, _ in reversed(rows)])
    axis.set_ylim(-0.5, len(rows) - 0.3)
    axis.set_xlabel(metric_name)
    return figure


def curves(groups: Sequence[Group]) -> Figure:
    """Training loss, and the task's headline where there was an evaluation on the way, by step; runs of one setting in one colour."""
    runs = [run for group in groups for run in group.runs]
    validated = any(isinstance(row, EvalRow) for run in runs for row in run.log)
    figure, axes = _figure(10, 3.4, columns=1 + validated)
    loss_axis, metric_axis = axes[0], axes[-1]
    task = runs[0].task
    each = [
        (group, run, colour) for group, colour in zip(groups, _cycle(len(groups)), strict=True) for run in group.runs
    ]
    for group, run, colour in each:
        first = run is group.runs[0]
        steps = [(row.step, row.loss) for row in run.log if isinstance(row, StepRow)]
        if steps:
            x, loss = (np.asarray(column, float) for column in zip(*steps, strict=True))
            window = max(1, len(loss) // 40)
            smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
            loss_axis.plot(x[window - 1 :], smooth, color=colour, label=group.name if first else None)
        evaluations = [row for row in run.log if isinstance(row, EvalRow)]
        for objective, style in zip(run.objectives, ("-", "--", ":", "-.") * 4, strict=False):
            found = [(row.step, row.eval.get(objective, {}).get(task.headline)) for row in evaluations]
            points = [(step, value) for step, value in found if value]
            if points:
                name = f"{group.name} {objective}" if first else None
                metric_axis.plot(*zip(*points, strict=True), linestyle=style, marker=".", color=colour, label=name)
    loss_axis.set(xlabel="step", ylabel="training loss")
    if validated:
        metric_axis.set(xlabel="step", ylabel=task.heading(task.headline))
    for axis in axes:
        if axis.has_data():
            axis.legend(frameon=False, fontsize=8)
    return figure


def calibration(groups: Sequence[Group]) -> Figure | None:
    """Observed against predicted rates of each binary label, by the first run of each setting; None without predictions."""
    judged = groups[0].runs[0].objectives
    tasks = [label.name for label in groups[0].runs[0].schema.labels if label.kind == "binary" and label.name in judged]
    names = [name for task in tasks for name in (task, f"{task}_weight", f"{task}_score")]
    tables = [(group.name, group.runs[0].predictions(names)) for group in groups]
    if not tasks or all(table is None for _, table in tables):
        return None
    figure, axes = _figure(min(10, 4.5 * len(tasks)), 3.8, columns=len(tasks))
    for axis, task in zip(axes, tasks, strict=True):
        axis.set_title(task)
        for (group, table), colour in zip(tables, _cycle(len(tables)), strict=True):
            if table is None:
                continue
            columns = [task, f"{task}_weight", f"{task}_score"]
            label, weight, score = (table[name].to_numpy().astype(float) for name in columns)
            order = np.argsort(score[weight > 0], kind="stable")
            bins = [part for part in np.array_split(order, 15) if len(part)]
            if not bins:
                axis.set_axis_off()
                axis.set_title(f"{task}: no mature label on these days")
                continue
            predicted = [score[weight > 0][part].mean() for part in bins]
            observed = [label[weight > 0][part].mean() for part in bins]
            axis.plot(predicted, observed, ".-", color=colour, label=group, linewidth=1)
        axis.set_xscale("log")
        axis.set_yscale("log")
        limits = [max(1e-4, min(axis.get_xlim()[0], axis.get_ylim()[0])), 1]
        axis.plot(limits, limits, color="#b8c0ca", linewidth=1, zorder=0)
        axis.set(xlabel="predicted", ylabel="observed", xlim=limits, ylim=limits)
        if axis.lines[:-1]:
            axis.legend(frameon=False, fontsize=8)
    return figure


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def svg(figure: Figure) -> str:
    """The figure as markup that a template takes as it is."""
    from markupsafe import Markup

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])

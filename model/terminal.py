"""Results as tables on the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.table import Table

from genrank.model.documents import Evaluation, ProgressiveDay, RankingEvaluation
from genrank.model.metrics import Estimate
from genrank.model.presentation import cell, dates_text
from genrank.model.tasks import task_type
from genrank.schemas.console import print_whole, stdout


def print_metrics(name: str, evaluation: Evaluation) -> None:
    """A table an objective: a row for the model, called `name`, and one for each it is compared with."""
    task, days = task_type(evaluation.task), dates_text(evaluation.dates)
    console = stdout()
    for objective, rows in evaluation.tasks.items():
        if all(estimate.value is None for estimate in rows["model"].values()):
            console.print(task.nothing_known(objective, days))
            continue
        table = Table(
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
            title=f"{objective} on {days}",
            title_justify="left",
            title_style="bold",
        )
        table.add_column("", no_wrap=True)
        headline, *others = task.shown(rows["model"])
        table.add_column(task.heading(headline), justify="right")
        table.add_column("95 % interval", style="dim", no_wrap=True)
        for metric in others:
            table.add_column(task.heading(metric), justify="right")
        for key, estimates in rows.items():
            first, *rest = (cell(estimates.get(metric)) for metric in (headline, *others))
            label = name if key == "model" else evaluation.in_words(objective, key, task.references.get(key, key))
            cells = (label, first.value, first.interval, *(each.value for each in rest))
            table.add_row(*cells, style="bold" if key == "model" else "")
        print_whole(table, console)


def print_importance(evaluation: RankingEvaluation, most: int = 15) -> None:
    """Label by label, what shuffling the features and groups that matter most costs in GAUC."""
    for label, found in evaluation.importance.items():
        table = Table(
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
            title=f"{label}: GAUC lost when shuffled, {min(most, len(found))} of {len(found)}",
            title_justify="left",
            title_style="bold",
        )
        for heading, side in (("", "left"), ("drop", "right"), ("95 % interval", "right")):
            table.add_column(heading, justify=side, no_wrap=True)  # type: ignore[arg-type]
        for one in found[:most]:
            drop = cell(one.drop)
            table.add_row(one.in_words(), drop.value, drop.interval, style="" if one.feature else "bold")
        print_whole(table)


def print_progressive(rows: Sequence[ProgressiveDay]) -> None:
    """A line a day: the next day's headline metric per objective beside its oracle's and popularity's, and how many ids have a row."""
    metric = task_type(rows[0].task).headline
    columns = [
        (objective, name)
        for objective, each in rows[0].tasks.items()
        for name in ("model", "oracle", "popularity")
        if metric in each.get(name, {})
    ]
    table = Table(
        title=f"{metric.upper()} on the day after the one trained on",
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1),
    )
    for heading in ("trained", "judged"):
        table.add_column(heading, no_wrap=True)
    for objective, name in columns:
        table.add_column(objective if name == "model" else name, justify="right")
    table.add_column("ids", justify="right")
    for row in rows:
        found = [row.tasks[objective][name][metric] for objective, name in columns]
        table.add_row(row.trained[5:], row.evaluated[5:], *map(_value, found), f"{sum(row.ids.values()):,}")
    print_whole(table)


def _value(estimate: Estimate) -> str:
    return "-" if estimate.value is None or math.isnan(estimate.value) else f"{estimate.value:.4f}"

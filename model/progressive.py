"""Progressive validation: learn each day once, judge on the next, as production does (T+1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.evaluate import evaluate
from genrank.model.ranks import join_ranks
from genrank.model.run_dir import read_json, write_json
from genrank.model.trainer import train
from genrank.schemas.errors import UserError


def progressive(config: TrainConfig, *, bootstrap: int = 0) -> list[dict[str, object]]:
    """Train on each of `config.dates` but the last in a single pass, each from the day before's checkpoint (the first from
    `config.from_checkpoint`, if any), and evaluate on the day after.

    Writes OUT/dt=<day>/ (a run of its own each, so that a killed series goes on where it was) and OUT/progressive.json.

    Returns: per trained day {"trained", "evaluated", "steps", "ids", "tasks"}: tasks as in metrics.json, ids the number of
        ids that have a row after the day, by dynamic table.
    Raises:
        UserError: fewer than two days, or what `train` and `evaluate` refuse.
    """
    if len(config.dates) < 2:
        raise UserError("--progressive needs at least two days, one to learn and one to judge on: --dates FROM:TO")
    if config.eval_dates or config.epochs > 1:
        raise UserError(
            "--progressive learns each day once and judges on the next: leave out --eval-dates and --epochs"
        )
    if join_ranks(config.device).size > 1:
        raise UserError(
            "--progressive evaluates each day in one process; start it without torchrun, or train day by day with it"
        )
    rows: list[dict[str, object]] = []
    previous: Path | None = config.from_checkpoint
    for day, following in zip(config.dates, config.dates[1:], strict=False):
        out = config.out / f"dt={day}"
        own = dataclasses.replace(config, dates=(day,), out=out, from_checkpoint=previous)
        done = train(own)
        result = evaluate(
            EvaluateConfig(
                run=out, samples=config.samples, dates=(following,), bootstrap=bootstrap, device=config.device
            )
        )
        rows.append(
            {
                "trained": day,
                "evaluated": following,
                "steps": done.steps,
                "ids": read_json(out / "summary.json")["ids"],
                "tasks": result["tasks"],
            }
        )
        write_json(config.out / "progressive.json", rows)
        previous = out
    return rows


def print_progressive(rows: Sequence[Mapping[str, Any]]) -> None:
    """A line a day: the next day's GAUC per task beside the oracle's and popularity's, and how many ids have a row."""
    from rich.box import SIMPLE
    from rich.table import Table

    from genrank.schemas.console import print_whole

    columns = [
        (task, name)
        for task, each in rows[0]["tasks"].items()
        for name in ("model", "oracle", "popularity")
        if {"gauc", "mrr"} & each.get(name, {}).keys()
    ]
    metric = "gauc" if "gauc" in rows[0]["tasks"][columns[0][0]]["model"] else "mrr"
    table = Table(
        title=f"{metric.upper()} on the day after the one trained on", title_justify="left", box=SIMPLE, padding=(0, 1)
    )
    for heading in ("trained", "judged"):
        table.add_column(heading, no_wrap=True)
    for task, name in columns:
        table.add_column(task if name == "model" else name, justify="right")
    table.add_column("ids", justify="right")
    for row in rows:
        gauc = [row["tasks"][task][name][metric]["value"] for task, name in columns]
        shown = ["-" if value is None else f"{value:.4f}" for value in gauc]
        table.add_row(row["trained"][5:], row["evaluated"][5:], *shown, f"{sum(row['ids'].values()):,}")
    print_whole(table)

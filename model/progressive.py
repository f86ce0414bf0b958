"""Progressive validation: learn each day once, judge on the next, as production does (T+1)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.documents import ProgressiveDay, Summary, as_json, read_document
from genrank.model.evaluate import evaluate
from genrank.model.ranks import join_ranks
from genrank.model.run_dir import write_json
from genrank.model.trainer import train
from genrank.schemas.errors import UserError


def progressive(config: TrainConfig, *, bootstrap: int = 0) -> list[ProgressiveDay]:
    """Train on each of `config.dates` but the last in a single pass, each from the day before's checkpoint (the first from
    `config.from_checkpoint`, if any), and evaluate on the day after.

    Writes OUT/dt=<day>/ (a run of its own each, so that a killed series goes on where it was) and OUT/progressive.json.

    Returns: a row a trained day.
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
    rows: list[ProgressiveDay] = []
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
            ProgressiveDay(
                trained=day,
                evaluated=following,
                steps=done.steps,
                ids=read_document(out / "summary.json", Summary).ids,
                task=result.task,
                tasks=result.tasks,
            )
        )
        write_json(config.out / "progressive.json", [as_json(row) for row in rows])
        previous = out
    return rows

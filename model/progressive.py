"""Progressive validation: learn each day once, judge on the next, as production does (T+1)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from model.config import EvaluateConfig, TrainConfig
from model.evaluate import evaluate
from model.run_folder import write_json
from model.trainer import train
from schemas.errors import UserError


def progressive(config: TrainConfig, *, bootstrap: int = 0) -> list[dict[str, object]]:
    """Train on each of `config.dates` but the last in a single pass, each from the day before's checkpoint (the first from
    `config.from_checkpoint`, if any), and evaluate on the day after.

    Writes OUT/dt=<day>/ (a run of its own each, so that a killed series goes on where it was) and OUT/progressive.json.

    Returns: per trained day {"trained", "evaluated", "steps", "tasks"}, tasks as in metrics.json.
    Raises:
        UserError: fewer than two days, or what `train` and `evaluate` refuse.
    """
    if len(config.dates) < 2:
        raise UserError("progressive validation needs at least two days: --dates FROM:TO")
    rows: list[dict[str, object]] = []
    previous: Path | None = config.from_checkpoint
    for day, following in zip(config.dates, config.dates[1:], strict=False):
        out = config.out / f"dt={day}"
        own = dataclasses.replace(
            config, dates=(day,), out=out, epochs=1, from_checkpoint=previous, eval_dates=(), eval_every=0, patience=0
        )
        done = train(own)
        result = evaluate(
            EvaluateConfig(
                run=out, samples=config.samples, dates=(following,), bootstrap=bootstrap, device=config.device
            )
        )
        rows.append({"trained": day, "evaluated": following, "steps": done.steps, "tasks": result["tasks"]})
        write_json(config.out / "progressive.json", rows)
        previous = out
    return rows

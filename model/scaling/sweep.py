"""The points of a sweep and the runs behind them: each an ordinary run of `genrank train` and `genrank evaluate` under --out.

    scale(config) -> ScaleReport      trains what isn't there yet, reads the rest, fits

Every run of a seed sees the same samples in the same batches: `history` is a field of the model, which drops older events after a batch
is made, and batches are cut before that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from genrank.model.config import EvaluateConfig, TrainConfig, samples_folder
from genrank.model.documents import RankingEvaluation, Summary, read_document, write_document
from genrank.model.encoders import Counts, EncoderConfig
from genrank.model.evaluate import evaluate
from genrank.model.ranks import join_ranks
from genrank.model.registry import ChosenModel, choose_model
from genrank.model.scaling.config import ScaleConfig
from genrank.model.scaling.document import Axis, Law, Line, Point, ScaleReport, Values
from genrank.model.scaling.power_law import judge
from genrank.model.tasks import task_type
from genrank.model.trainer import train
from genrank.schemas.console import logger
from genrank.schemas.errors import UserError
from genrank.schemas.manifest import build_ids
from genrank.schemas.schema import Schema

METRICS = ("ne", "gauc")
AXES: tuple[Axis, ...] = ("history", "width", "depth")


class Planned(NamedTuple):
    """A model to be trained with every seed."""

    name: str
    """Of its runs' folders: `<name>-seed<k>`."""
    model: str
    settings: Mapping[str, str]


class Measured(NamedTuple):
    """A run that is trained and judged."""

    summary: Summary
    evaluation: RankingEvaluation


def scale(config: ScaleConfig) -> ScaleReport:
    """Train and judge every point and baseline with every seed, fit, and write OUT/scale.json, scale.html and scale.png.

    A command that was killed goes on where it was: complete runs are read, an interrupted one is resumed.

    Raises:
        UserError: a model that can't be swept so, runs in --out of another configuration or of samples built again since, or what
            training and evaluation refuse.
    """
    from genrank.model.scaling.page import write_page

    if join_ranks(config.device).size > 1:
        raise UserError("genrank scale trains its runs in one process; start it without torchrun")
    series = plan(config)
    labels = [label.name for label in config.schema.labels if label.kind == "binary"]
    if not labels:
        raise UserError(f"schema {config.schema.name!r} has no binary label: NE and GAUC are of binary labels")
    lines = {name: Planned(name.partition(":")[2] or name, name, {}) for name in config.baselines}
    for planned in lines.values():
        chosen = choose_model(planned.model)
        _require_ranker(chosen, planned.model)
        if (
            not chosen.spec.by_steps
        ):  # it has no tables, and may lack its package: better found before hours of training
            chosen.build(chosen.embeddings(config.schema, device="cpu"))
    every = {each.name: each for points in series.values() for each in points.values()}
    every |= {planned.name: planned for planned in lines.values()}
    measured: dict[str, list[Measured]] = {}
    for seed in config.seeds:  # a seed of everything first: an interrupted sweep is a whole one of fewer seeds
        for done, planned in enumerate(every.values(), 1):
            logger.info(f"seed {seed}: {planned.name} ({done} of {len(every)})")
            measured.setdefault(planned.name, []).append(_measure(config, planned, seed))
    points = [
        _point(axis, value, config, measured[planned.name], labels, planned.name)
        for axis, values in series.items()
        for value, planned in values.items()
    ]
    report = ScaleReport(
        schema=config.schema.name,
        fingerprint=config.schema.fingerprint,
        model=config.model,
        settings=dict(config.settings),
        train_dates=list(config.dates),
        eval_dates=list(config.eval_dates),
        token_budget=config.token_budget,
        seeds=list(config.seeds),
        labels=labels,
        points=points,
        lines=[
            *_oracles(measured, labels),
            *(Line(name=name, metrics=_metrics(measured[planned.name], labels)) for name, planned in lines.items()),
        ],
        laws=[_law(axis, label, metric, points) for axis in series for label in labels for metric in METRICS],
    )
    write_document(config.out / "scale.json", report)
    write_page(config.out, report)
    return report


# ---------------------------------------------------------------------- what is trained


def plan(config: ScaleConfig) -> dict[Axis, dict[int, Planned]]:
    """Axis -> its values in order -> the model; the base is on every axis.

    Raises:
        UserError: the model isn't a ranker on an encoder that counts its operations, or lacks a field that is swept.
    """
    chosen = choose_model(config.model, config.settings)
    _require_ranker(chosen, config.model)
    own = chosen.config
    if not isinstance(own, EncoderConfig) or own.flops(Counts(0, 0)) is None:
        raise UserError(
            f"--model {config.model}: its operations can't be counted by size; give a ranker on an encoder, such as mtgr-tiny"
        )
    base = Planned("base", config.model, dict(config.settings))
    fields = {"history": "history", "width": "dim", "depth": "layers"}
    series: dict[Axis, dict[int, Planned]] = {}
    for axis in AXES:
        values: Sequence[int] = getattr(config, axis)
        if not values:
            continue
        name = fields[axis]
        if not hasattr(own, name):
            raise UserError(
                f"--{axis}: --model {config.model} has no field {name!r} to sweep; leave it empty: --{axis} ''"
            )
        here = whole_history(config.schema, own) if axis == "history" else int(getattr(own, name))
        if axis == "history":
            values = [min(value, here) for value in values]
        series[axis] = {}
        for value in sorted({*values, here}):
            changed = width_settings(own, value) if axis == "width" else {name: json.dumps(value)}
            other = Planned(f"{axis}-{value}", config.model, {**config.settings, **changed})
            series[axis][value] = base if value == here else other
    for planned in {each.name: each for points in series.values() for each in points.values()}.values():
        choose_model(planned.model, planned.settings)  # a size that can't be is found before an hour of training
    return series


def whole_history(schema: Schema, config: EncoderConfig) -> int:
    """Events of a history that the base reads: its `history`, or the longest that the schema's are built with.

    Raises:
        UserError: the schema has no history.
    """
    if not schema.histories:
        raise UserError(f"--history: schema {schema.name!r} has no history; leave it empty: --history ''")
    longest = max(sequence.max_length for sequence in schema.histories)
    own = int(getattr(config, "history", 0))
    return min(own, longest) if own else longest


def width_settings(config: EncoderConfig, width: int) -> dict[str, str]:
    """The fields of a model of another width: heads' widths keep their proportion to it.

    Raises:
        UserError: they would be no whole numbers.
    """
    changed = {"dim": json.dumps(width)}
    for name in ("qk_dim", "v_dim"):
        own = getattr(config, name, None)
        if own is None:
            continue
        if own * width % config.dim:
            step = config.dim // math.gcd(own, config.dim)
            raise UserError(
                f"--width {width}: {name} {own} at width {config.dim} would be no whole number; give multiples of {step}"
            )
        changed[name] = json.dumps(own * width // config.dim)
    return changed


def _require_ranker(chosen: ChosenModel, name: str) -> None:
    if chosen.spec.task != "ranking":
        raise UserError(f"{name} is a {chosen.spec.task} model; NE and GAUC are of rankers")


# ---------------------------------------------------------------------- a run


def _measure(config: ScaleConfig, planned: Planned, seed: int) -> Measured:
    """A run, made where it isn't there."""
    run = config.out / f"{planned.name}-seed{seed}"
    train(train_config(config, planned, seed))
    summary = read_document(run / "summary.json", Summary)
    samples = samples_folder(config.samples)
    for day, build in build_ids(samples, config.dates).items():
        if summary.builds.get(day, build) != build:
            raise UserError(f"{run}: was trained on another build of {day}; give a new --out, or remove the folder")
    if (run / "metrics.json").is_file():
        found = read_document(run / "metrics.json", RankingEvaluation)
        if found.dates == list(config.eval_dates) and found.builds == build_ids(samples, config.eval_dates):
            return Measured(summary, found)
    judged = evaluate(
        EvaluateConfig(run=run, samples=config.samples, dates=config.eval_dates, bootstrap=0, device=config.device)
    )
    assert isinstance(judged, RankingEvaluation)  # a ranker's
    return Measured(summary, judged)


def train_config(config: ScaleConfig, planned: Planned, seed: int) -> TrainConfig:
    """The configuration of one run."""
    return TrainConfig(
        schema=config.schema,
        samples=config.samples,
        dates=config.dates,
        out=config.out / f"{planned.name}-seed{seed}",
        model=planned.model,
        settings=planned.settings,
        token_budget=config.token_budget,
        view=config.view,
        lr=config.lr,
        sparse_lr=config.sparse_lr,
        device=config.device,
        precision=config.precision,
        seed=seed,
    )


# ---------------------------------------------------------------------- the report


def _point(
    axis: Axis, value: int, config: ScaleConfig, runs: Sequence[Measured], labels: Sequence[str], name: str
) -> Point:
    flops = [run.summary.flops for run in runs]
    if None in flops:
        raise UserError(
            f"{config.out}/{name}-seed{config.seeds[flops.index(None)]}: its operations weren't counted; remove the folder"
        )
    first = runs[0].summary
    return Point(
        axis=axis,
        value=value,
        runs=[f"{name}-seed{seed}" for seed in config.seeds],
        flops=[each for each in flops if each is not None],
        dense_parameters=first.dense_parameters,
        steps=[run.summary.steps for run in runs],
        metrics=_metrics(runs, labels),
    )


def _metrics(runs: Sequence[Measured], labels: Sequence[str], row: str = "model") -> Values:
    def value(run: Measured, label: str, metric: str) -> float | None:
        found = run.evaluation.tasks[label].get(row, {}).get(metric)
        return found.value if found else None

    return {label: {metric: [value(run, label, metric) for run in runs] for metric in METRICS} for label in labels}


def _oracles(measured: Mapping[str, Sequence[Measured]], labels: Sequence[str]) -> Iterator[Line]:
    """The truth, where the world knows it: no law goes past it."""
    known = _metrics(next(iter(measured.values()))[:1], labels, "oracle")
    if any(value is not None for each in known.values() for values in each.values() for value in values):
        yield Line(name=task_type("ranking").references["oracle"], metrics=known)


def _law(axis: Axis, label: str, metric: str, points: Sequence[Point]) -> Law:
    own = [point for point in points if point.axis == axis]
    values = [point.metrics[label][metric] for point in own]
    known = [[value for value in seeds if value is not None] for seeds in values]
    if list(map(len, known)) != list(map(len, values)):
        reason = "the metric is undefined on these days: labels of one class, or none mature"
        return Law(axis=axis, label=label, metric=metric, decades=0.0, reasons=[reason])
    verdict = judge([float(np.mean(point.flops)) for point in own], known)
    a, b, c = verdict.law[:3] if verdict.law else (None, None, None)
    return Law(
        axis=axis,
        label=label,
        metric=metric,
        a=a,
        b=b,
        c=c,
        interval=verdict.interval,
        decades=verdict.decades,
        reasons=list(verdict.reasons),
    )

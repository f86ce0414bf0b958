"""`genrank report`: one self-contained HTML page from run folders.

Reads only what training and evaluation wrote: `summary.json`, `metrics.json`, `log.jsonl`, `predictions/`, `schema.json`; and,
for the drawn sample, the samples the first run was evaluated on.
"""

from __future__ import annotations

import base64
import io
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from genrank.model.config import samples_folder
from genrank.model.run_folder import read_json, read_log, read_schema
from genrank.schemas import Schema, UserError
from genrank.schemas.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADINGS = {
    "gauc": "GAUC",
    "auc": "AUC",
    "ne": "NE",
    "logloss": "log loss",
    "calibration": "pred/obs",
    "rmse": "RMSE",
    "mae": "MAE",
    "bias": "bias",
}
"""Metrics in the order they are shown; a task has those of its kind (binary or value), the first is the headline."""
REFERENCES = {"oracle": "oracle", "popularity": "item popularity", "user_item_ctr": "user-item CTR"}
Estimate = Mapping[str, float | None]
"""`value` and the interval's `low` and `high`; null where undefined (AUC of one class)."""
COLOURS = ("#1f6fb2", "#d9822b", "#3a9a5b", "#8a56ac", "#b5443c", "#5c6878")


@dataclass(frozen=True)
class Run:
    """What one `genrank train` + `genrank evaluate` left behind."""

    folder: Path
    summary: dict[str, object]
    metrics: dict[str, object]
    log: list[dict[str, object]]
    schema: Schema

    @property
    def name(self) -> str:
        return str(self.summary["model"])

    @classmethod
    def read(cls, folder: Path) -> Run:
        """The run in `folder`.

        Raises:
            UserError: the folder is no run, or was not trained or evaluated yet.
        """
        if not folder.is_dir():
            raise UserError(f"--run {folder}: no such folder; give the --out folder of `genrank train`")
        if (folder / "progressive.json").is_file():
            days = sorted(day.parent.name for day in folder.glob("*/summary.json"))
            raise UserError(
                f"--run {folder}: it holds a run a day (--progressive); give one, such as {folder / days[-1]}"
            )
        for name, remedy in (("summary.json", "genrank train"), ("metrics.json", "genrank evaluate")):
            if not (folder / name).is_file():
                raise UserError(f"--run {folder}: it has no {name}; run `{remedy}` on it first")
        return cls(
            folder,
            read_json(folder / "summary.json"),
            read_json(folder / "metrics.json"),
            read_log(folder),
            read_schema(folder),
        )

    def task_metrics(self, task: str, row: str = "model") -> dict[str, Estimate] | None:
        tasks = self.metrics["tasks"]
        assert isinstance(tasks, dict)
        return tasks[task].get(row)


def write_report(runs: Sequence[Path], out: Path, samples: Path | None = None) -> None:
    """Write the page that compares `runs` (the first is the one the others are baselines of) to `out`, atomically.

    Raises:
        UserError: a folder is no evaluated run, or two runs were evaluated on different samples.
    """
    import jinja2

    loaded = [Run.read(run) for run in runs]
    for run in loaded:
        if "catalogue" in run.metrics:
            raise UserError(
                f"--run {run.folder}: a retrieval model; the page compares rankers. Its figures are in {run.folder}/metrics.json"
            )
    first = loaded[0]
    for run in loaded[1:]:
        for key in ("dates", "candidates"):
            if run.metrics[key] != first.metrics[key]:
                raise UserError(
                    f"--run {run.folder}: evaluated on other {key} ({run.metrics[key]}) than {first.folder} "
                    f"({first.metrics[key]}); evaluate both on the same --dates"
                )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((Path(__file__).parent / "report.html").read_text())
    page = template.render(
        schema_name=first.schema.name,
        fingerprint=first.schema.fingerprint,
        headline=f"{first.name} beside its baselines",
        scope=_scope(first),
        tasks=[_task_section(label.name, loaded) for label in first.schema.labels],
        curves=_svg(_curves(loaded)),
        validated=_days(validation) if (validation := first.summary.get("eval_dates")) else None,
        calibration=_svg(figure) if (figure := _calibration(loaded)) else None,
        runs=[_run_row(run) for run in loaded],
        plan=_plan(first),
        sample=_sample(first, samples) if samples else None,
    )
    write_atomically(out, page)


def print_metrics(name: str, metrics: Mapping[str, object]) -> None:
    """The table of one run's `metrics.json` on the terminal: a row for the model and each reference, per task."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from genrank.schemas.console import print_whole

    tasks = metrics["tasks"]
    assert isinstance(tasks, dict)
    console = Console(highlight=False)
    for task, rows in tasks.items():
        if not any(math.isfinite(_estimate(estimate)[0]) for estimate in rows["model"].values()):
            console.print(f"{task}: no candidate of {_days(_dates(metrics))} has a mature label yet")
            continue
        table = Table(
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
            title=f"{task} on {_days(_dates(metrics))}",
            title_justify="left",
            title_style="bold",
        )
        table.add_column("", no_wrap=True)
        headline, *others = _metrics_of(rows["model"])
        table.add_column(_heading(headline), justify="right")
        table.add_column("95 % interval", style="dim", no_wrap=True)
        for metric in others:
            table.add_column(_heading(metric), justify="right")
        for key, estimates in rows.items():
            first, *rest = (_cell(estimates.get(metric)) for metric in (headline, *others))
            label = name if key == "model" else REFERENCES.get(key, key)
            cells = (label, first["value"], first["interval"], *(cell["value"] for cell in rest))
            table.add_row(*cells, style="bold" if key == "model" else "")
        print_whole(table, console)


def _metrics_of(estimates: Mapping[str, Estimate]) -> list[str]:
    return [*(metric for metric in HEADINGS if metric in estimates), *(m for m in estimates if m not in HEADINGS)]


def _heading(metric: str) -> str:
    return HEADINGS.get(metric, metric.upper())


# ---------------------------------------------------------------------- sections


def _scope(run: Run) -> str:
    trained, tested = run.summary["train_dates"], _dates(run.metrics)
    assert isinstance(trained, list)
    return (
        f"Trained on {_days(trained)}; evaluated on {_days(tested)}: {run.metrics['candidates']:,} candidates of "
        f"{run.metrics['users']:,} users."
    )


def _dates(metrics: Mapping[str, object]) -> list[str]:
    dates = metrics["dates"]
    assert isinstance(dates, list)
    return dates


def _days(dates: list[str]) -> str:
    return dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]} ({len(dates)} days)"


def _task_section(task: str, runs: Sequence[Run]) -> dict[str, object]:
    first = runs[0]
    label = next(label for label in first.schema.labels if label.name == task)
    rows: list[tuple[str, str, dict[str, Estimate]]] = []
    if oracle := first.task_metrics(task, "oracle"):
        rows.append(("reference", REFERENCES["oracle"], oracle))
    rows += [("model", run.name, metrics) for run in runs if (metrics := run.task_metrics(task))]
    for key in ("user_item_ctr", "popularity"):
        if counts := first.task_metrics(task, key):
            rows.append(("reference", REFERENCES[key], counts))
    shown = _metrics_of(rows[0][2])
    headline = {name: _estimate(metrics.get(shown[0]))[0] for _, name, metrics in rows}
    of_models = [headline[name] for kind, name, _ in rows if kind == "model" and math.isfinite(headline[name])]
    best = (max if label.kind == "binary" else min)(of_models, default=math.nan)
    reached = (headline.get(first.name, math.nan) - 0.5) / (headline.get(REFERENCES["oracle"], math.nan) - 0.5)
    return {
        "name": task,
        "note": f"given {label.given}" if label.given else "",
        "mature": any(math.isfinite(value) for value in headline.values()),
        "headings": [_heading(metric) for metric in shown],
        "rows": [
            {
                "name": name,
                "kind": "best" if kind == "model" and headline[name] == best else kind,
                "cells": [_cell(metrics.get(metric)) for metric in shown],
            }
            for kind, name, metrics in rows
        ],
        "figure": _svg(_dots(_heading(shown[0]), [(name, metrics.get(shown[0])) for _, name, metrics in rows])),
        "distance": f"{first.name} reaches {reached:.1%} of the oracle's GAUC above chance."
        if math.isfinite(reached)
        else "",
    }


def _cell(estimate: Estimate | None) -> dict[str, str]:
    value, low, high = _estimate(estimate)
    return {
        "value": f"{value:.4f}" if math.isfinite(value) else "–",
        "interval": f"[{low:.4f}, {high:.4f}]" if math.isfinite(low + high) else "",
    }


def _estimate(estimate: Estimate | None) -> tuple[float, float, float]:
    """(value, low, high); NaN where a metric is undefined, which JSON keeps as null."""
    found = estimate or {}
    value, low, high = (found.get(key) for key in ("value", "low", "high"))
    return tuple(math.nan if x is None else x for x in (value, low, high))  # type: ignore[return-value]


def _run_row(run: Run) -> dict[str, str]:
    def number(key: str, digits: int = 0) -> str:
        value = run.summary.get(key)
        return f"{value:,.{digits}f}" if isinstance(value, int | float) else "–"

    return {
        "name": run.name,
        "dense": number("dense_parameters"),
        "sparse": number("sparse_rows"),
        "steps": number("steps"),
        "seconds": f"{number('seconds')} s",
        "samples_per_s": number("samples_per_s"),
        "tokens_per_s": number("tokens_per_s"),
        "step_ms": number("step_ms", 1),
        "input_wait": number("input_wait", 2),
        "mfu": number("mfu", 3),
        "device": str(run.summary.get("device", "–")),
    }


# ---------------------------------------------------------------------- figures


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def _dots(metric_name: str, rows: Sequence[tuple[str, Estimate | None]]) -> Figure:
    figure, (axis,) = _figure(8, 0.6 + 0.32 * len(rows))
    for y, (name, metric) in enumerate(reversed(rows)):
        value, low, high = _estimate(metric)
        if not math.isfinite(value):
            continue
        colour = COLOURS[5] if name in REFERENCES.values() else COLOURS[0]
        axis.plot([low, high], [y, y], color=colour, linewidth=2)
        axis.plot(value, y, "o", color=colour)
        axis.annotate(f"{value:.4f}", (value, y), textcoords="offset points", xytext=(0, 6), ha="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)])
    axis.set_ylim(-0.5, len(rows) - 0.3)
    axis.set_xlabel(metric_name)
    return figure


def _curves(runs: Sequence[Run]) -> Figure:
    validated = any("eval" in row for run in runs for row in run.log)
    figure, axes = _figure(10, 3.4, columns=1 + validated)
    loss_axis, gauc_axis = axes[0], axes[-1]
    for run, colour in zip(runs, _cycle(len(runs)), strict=True):
        steps = [(row["step"], row["loss"]) for row in run.log if "loss" in row]
        if steps:
            x, loss = (np.asarray(column, float) for column in zip(*steps, strict=True))
            window = max(1, len(loss) // 40)
            smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
            loss_axis.plot(x[window - 1 :], smooth, color=colour, label=run.name)
        evaluations = [row for row in run.log if "eval" in row]
        for task, style in zip([label.name for label in run.schema.labels], ("-", "--", ":", "-.") * 4, strict=False):
            points = [
                (row["step"], row["eval"][task]["gauc"]) for row in evaluations if row["eval"].get(task, {}).get("gauc")
            ]  # type: ignore[index,operator]
            if points:
                gauc_axis.plot(
                    *zip(*points, strict=True), linestyle=style, marker=".", color=colour, label=f"{run.name} {task}"
                )
    loss_axis.set(xlabel="step", ylabel="training loss")
    if validated:
        gauc_axis.set(xlabel="step", ylabel="GAUC")
    for axis in axes:
        if axis.has_data():
            axis.legend(frameon=False, fontsize=8)
    return figure


def _calibration(runs: Sequence[Run]) -> Figure | None:
    tasks = [label.name for label in runs[0].schema.labels if label.kind == "binary"]
    if not tasks or not any((run.folder / "predictions").is_dir() for run in runs):
        return None
    figure, axes = _figure(min(10, 4.5 * len(tasks)), 3.8, columns=len(tasks))
    for axis, task in zip(axes, tasks, strict=True):
        axis.set_title(task)
        for run, colour in zip(runs, _cycle(len(runs)), strict=True):
            columns = [task, f"{task}_weight", f"{task}_score"]
            table = pq.read_table(run.folder / "predictions", columns=columns, partitioning=None)
            label, weight, score = (table[name].to_numpy().astype(float) for name in columns)
            order = np.argsort(score[weight > 0], kind="stable")
            bins = [part for part in np.array_split(order, 15) if len(part)]
            if not bins:
                axis.set_axis_off()
                axis.set_title(f"{task}: no mature label on these days")
                continue
            predicted = [score[weight > 0][part].mean() for part in bins]
            observed = [label[weight > 0][part].mean() for part in bins]
            axis.plot(predicted, observed, ".-", color=colour, label=run.name, linewidth=1)
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


def _svg(figure: Figure) -> object:
    from markupsafe import Markup

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])


# ---------------------------------------------------------------------- the plan and one sample


def _plan(run: Run) -> dict[str, object]:
    from genrank.tokenization.explain import explain
    from genrank.tokenization.plan import make_plan
    from genrank.tokenization.present.plan import COLUMNS, table_rows

    explained = explain(make_plan(run.schema))
    return {
        "summary": explained.summary,
        "columns": COLUMNS,
        "rows": [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in table_rows(explained)],
    }


def _sample(run: Run, samples: Path) -> dict[str, str] | None:
    from genrank.tokenization.inspect_sample import interesting_sample
    from genrank.tokenization.present.sample import show_sample

    folder = samples_folder(samples)
    sample_id = interesting_sample(folder, run.schema, _dates(run.metrics)[0])
    with tempfile.TemporaryDirectory() as scratch:
        png = Path(scratch) / "sample.png"
        show_sample(folder, sample_id, schema=run.schema, png=png)
        return {"id": sample_id, "png": base64.b64encode(png.read_bytes()).decode()}

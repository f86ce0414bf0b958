"""`genrank report`: one self-contained HTML page from run folders.

Reads only what training and evaluation wrote: `summary.json`, `metrics.json`, `log.jsonl`, `predictions/`, `schema.json` (`report_data`);
and, for the drawn sample, the samples the first run was evaluated on. Computes the page's numbers here, its figures in `report_figures`;
`report.html` lays them out.
"""

from __future__ import annotations

import base64
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from genrank.model import report_figures as figures
from genrank.model.config import samples_folder
from genrank.model.metrics import Estimate
from genrank.model.paired import paired_differences
from genrank.model.presentation import Cell, cell, dates_text, numbers
from genrank.model.report_data import Group, Run, differing, grouped, read_runs
from genrank.schemas.files import write_atomically

TEMPLATE = "report.html"
REPLICATES = 200
"""Of the intervals of paired differences."""


class Row(NamedTuple):
    """Of a label's table."""

    name: str
    kind: str
    """`model`, `best` (of the models) or `reference`."""
    cells: list[Cell]


class Section(NamedTuple):
    """A label's part of the page."""

    name: str
    note: str
    mature: bool
    headings: list[str]
    rows: list[Row]
    figure: str
    """SVG."""
    distance: str
    """How near to the oracle the first model comes, in words."""
    differences: list[Row]
    """The first setting less each other one, by the metrics of `headings`."""
    slices: list[SliceRow]
    importance: list[Row]
    """Features and groups of the first run, by what shuffling them costs."""


class SliceRow(NamedTuple):
    """A part of the candidates."""

    dimension: str
    name: str
    candidates: str
    cells: list[Cell]
    """The headline metric of each setting's first run."""


class RunRow(NamedTuple):
    """A run's cost."""

    name: str
    seed: str
    dense: str
    sparse: str
    steps: str
    seconds: str
    samples_per_s: str
    tokens_per_s: str
    step_ms: str
    input_wait: str
    mfu: str
    device: str


class Plan(NamedTuple):
    """Which tables are merged."""

    summary: str
    columns: list[str]
    rows: list[list[str]]


class Sample(NamedTuple):
    """One sample, drawn."""

    id: str
    png: str
    """Base64."""


def write_report(runs: Sequence[Path], out: Path, samples: Path | None = None) -> None:
    """Write the page that compares `runs` (the first is the one the others are baselines of) to `out`, atomically.

    Raises:
        UserError: a folder is no evaluated run, or two runs were evaluated on different samples.
    """
    import jinja2

    loaded = read_runs(runs)
    first, groups = loaded[0], grouped(loaded)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template(TEMPLATE).render(
        schema_name=first.schema.name,
        fingerprint=first.schema.fingerprint,
        headline=f"{first.name} beside its baselines",
        scope=_scope(first),
        resampled=first.task.resampled,
        notes=first.task.page_notes,
        watched=first.task.heading(first.task.headline),
        tasks=[section(objective, groups) for objective in first.objectives],
        settings=differing([group.runs[0] for group in groups]) if len(groups) > 1 else {},
        groups=[group.name for group in groups],
        curves=figures.svg(figures.curves(groups)),
        validated=dates_text(first.summary.eval_dates) if first.summary.eval_dates else None,
        calibration=figures.svg(figure) if (figure := figures.calibration(groups)) else None,
        runs=[_run_row(run) for run in loaded],
        plan=_plan(first),
        sample=_sample(first, samples) if samples else None,
    )
    write_atomically(out, page)


def _scope(run: Run) -> str:
    on = run.evaluation
    judged = " of ".join(f"{count:,} {what}" for what, count in on.scope().items())
    return f"Trained on {dates_text(run.summary.train_dates)}; evaluated on {dates_text(on.dates)}: {judged}."


def section(label_name: str, groups: Sequence[Group]) -> Section:
    """A label's (or another objective's) metrics by every setting and reference."""
    first, leading = groups[0].runs[0], groups[0].name
    task = first.task
    label = next((label for label in first.schema.labels if label.name == label_name), None)
    smaller = label is not None and label.kind == "value"
    rows: list[tuple[str, str, dict[str, Estimate]]] = []
    if oracle := first.metrics(label_name, "oracle"):
        rows.append(("reference", task.references["oracle"], oracle))
    spread = {group.name: group for group in groups if len(group.runs) > 1}
    rows += [("model", group.name, metrics) for group in groups if (metrics := group.metrics(label_name))]
    for key, title in task.references.items():
        if key != "oracle" and (counts := first.metrics(label_name, key)):
            rows.append(("reference", first.evaluation.in_words(label_name, key, title), counts))
    shown = task.shown(rows[0][2])
    headline = {name: numbers(metrics.get(shown[0])).value for _, name, metrics in rows}
    of_models = [headline[name] for kind, name, _ in rows if kind == "model" and math.isfinite(headline[name])]
    best = (min if smaller else max)(of_models, default=math.nan)
    oracle_name = task.references.get("oracle", "")
    reached = (headline.get(leading, math.nan) - 0.5) / (headline.get(oracle_name, math.nan) - 0.5)
    dots = [(kind, name, metrics.get(shown[0])) for kind, name, metrics in rows]
    return Section(
        name=label_name,
        note=f"given {label.given}" if label and label.given else "",
        mature=any(math.isfinite(value) for value in headline.values()),
        headings=[task.heading(metric) for metric in shown],
        rows=[
            Row(
                name,
                "best" if kind == "model" and headline[name] == best else kind,
                [
                    cell(metrics.get(metric))._replace(interval=spread[name].spread(label_name, metric))
                    if kind == "model" and name in spread
                    else cell(metrics.get(metric))
                    for metric in shown
                ],
            )
            for kind, name, metrics in rows
        ],
        figure=figures.svg(figures.dots(task.heading(shown[0]), dots)),
        distance=f"{leading} reaches {reached:.1%} of the oracle's GAUC above chance."
        if math.isfinite(reached)
        else "",
        differences=_differences(label_name, groups, shown),
        slices=_slices(label_name, groups, shown[0]),
        importance=[
            Row(one.in_words(), "best" if one.feature is None else "model", [cell(one.drop)])
            for one in first.importance.get(label_name, [])
        ],
    )


def _differences(label: str, groups: Sequence[Group], shown: Sequence[str]) -> list[Row]:
    """The first setting less each other one, users drawn for both at once; of settings whose predictions are there."""
    scored = [[run.scored(label) for run in group.runs] for group in groups]
    known = [[each for each in runs if each is not None] for runs in scored]
    rows = []
    for group, runs, own in zip(groups[1:], scored[1:], known[1:], strict=True):
        if len(own) < len(runs) or len(known[0]) < len(scored[0]):
            continue
        found = paired_differences(known[0], own, bootstrap=REPLICATES)
        cells = [_signed(found.get(metric)) for metric in shown]
        rows.append(Row(f"{groups[0].name} less {group.name}", "model", cells))
    return rows


def _signed(estimate: Estimate | None) -> Cell:
    value, low, high = numbers(estimate)
    interval = f"[{low:+.4f}, {high:+.4f}]" if math.isfinite(low + high) else ""
    return Cell(f"{value:+.4f}" if math.isfinite(value) else "\N{EN DASH}", interval)


def _slices(label: str, groups: Sequence[Group], metric: str) -> list[SliceRow]:
    rows = []
    for dimension, slices in groups[0].runs[0].slices.get(label, {}).items():
        for name, own in slices.items():
            each = [group.runs[0].slices.get(label, {}).get(dimension, {}).get(name) for group in groups]
            cells = [cell(found.metrics.get(metric) if found else None) for found in each]
            rows.append(SliceRow(dimension, name, f"{own.candidates:,}", cells))
    return rows


def _run_row(run: Run) -> RunRow:
    def number(value: float | None, digits: int = 0) -> str:
        return "\N{EN DASH}" if value is None else f"{value:,.{digits}f}"

    done = run.summary
    return RunRow(
        name=run.name,
        seed=run.seed,
        dense=number(done.dense_parameters),
        sparse=number(done.sparse_rows),
        steps=number(done.steps),
        seconds=f"{number(done.seconds)} s",
        samples_per_s=number(done.samples_per_s),
        tokens_per_s=number(done.tokens_per_s),
        step_ms=number(done.step_ms, 1),
        input_wait=number(done.input_wait, 2),
        mfu=number(done.mfu, 3),
        device=done.device,
    )


def _plan(run: Run) -> Plan:
    from genrank.tokenization.explain import explain
    from genrank.tokenization.plan import make_plan
    from genrank.tokenization.present.plan import COLUMNS, table_rows

    explained = explain(make_plan(run.schema))
    rows = [[f"{each:,}" if isinstance(each, int) else each for each in row] for row in table_rows(explained)]
    return Plan(explained.summary, list(COLUMNS), rows)


def _sample(run: Run, samples: Path) -> Sample:
    from genrank.tokenization.inspect_sample import interesting_sample
    from genrank.tokenization.present.sample import show_sample

    folder = samples_folder(samples)
    sample_id = interesting_sample(folder, run.schema, run.evaluation.dates[0])
    with tempfile.TemporaryDirectory() as scratch:
        png = Path(scratch) / "sample.png"
        show_sample(folder, sample_id, schema=run.schema, png=png)
        return Sample(sample_id, base64.b64encode(png.read_bytes()).decode())

"""What `genrank report` compares: evaluated runs, read from their folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from genrank.model.documents import (
    Evaluation,
    LogRow,
    RankingEvaluation,
    RetrievalEvaluation,
    SliceMetrics,
    Summary,
    read_document,
)
from genrank.model.documents import Importance as FeatureImportance
from genrank.model.metrics import Estimate, Predictions, RetrievalMetrics
from genrank.model.run_dir import read_json, read_log, read_schema
from genrank.model.tasks import AnyTask, task_type
from genrank.schemas.errors import UserError
from genrank.schemas.schema import Schema

APART = (
    "seed",
    "out",
    "samples",
    "device",
    "log_every",
    "profile",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_checkpoints",
)
"""Fields of a run's configuration that make no other setting of it."""


@dataclass(frozen=True)
class Run:
    """What one `genrank train` and `genrank evaluate` left behind."""

    folder: Path
    summary: Summary
    evaluation: Evaluation
    log: list[LogRow]
    schema: Schema
    config: Mapping[str, object] = field(default_factory=dict)
    """Its config.json; empty of a run that has none."""

    @property
    def name(self) -> str:
        """Of its model."""
        return self.summary.model

    @property
    def task(self) -> type[AnyTask]:
        """What it learned."""
        return task_type(self.evaluation.task)

    @property
    def objectives(self) -> list[str]:
        """What it is judged by, in order: labels, or the task's one objective."""
        return list(self.evaluation.tasks)

    @property
    def slices(self) -> dict[str, dict[str, dict[str, SliceMetrics]]]:
        """As in `RankingEvaluation`; of other tasks none."""
        return self.evaluation.slices if isinstance(self.evaluation, RankingEvaluation) else {}

    @property
    def importance(self) -> dict[str, list[FeatureImportance]]:
        """As in `RankingEvaluation`; of other tasks none."""
        return self.evaluation.importance if isinstance(self.evaluation, RankingEvaluation) else {}

    @property
    def seed(self) -> str:
        """As it was given; a dash of a run that doesn't say."""
        return str(self.config.get("seed", "\N{EN DASH}"))

    @cached_property
    def setting(self) -> dict[str, str]:
        """What its training was told, but for the seed and where it ran: field -> value."""
        fields = {k: v for k, v in self.config.items() if k not in (*APART, "settings")}
        own = {f"--set {name}": value for name, value in sorted(self.summary.settings.items())}
        return {k: v if isinstance(v, str) else json.dumps(v) for k, v in (fields | own).items()} | {
            "schema": f"{self.schema.name} {self.schema.fingerprint}"
        }

    def predictions(self, columns: Sequence[str]) -> pa.Table | None:
        """Columns of what evaluation wrote of the days it judged; None where a day's are gone."""
        paths = [self.folder / "predictions" / f"dt={date}.parquet" for date in self.evaluation.dates]
        if not all(path.is_file() for path in paths):
            return None
        return pa.concat_tables(pq.read_table(path, columns=list(columns), partitioning=None) for path in paths)

    def scored(self, label: str) -> Predictions | RetrievalMetrics | None:
        """The predictions of a label, or the ranks of all queries; None where they are gone or no label is mature."""
        if isinstance(self.evaluation, RetrievalEvaluation):
            return self._ranked(label)
        names = ("user_id", label, f"{label}_score", f"{label}_weight", "request")
        table = self.predictions(names)
        if table is None:
            return None
        kind = next(each.kind for each in self.schema.labels if each.name == label)
        found = Predictions(kind, by_request=self.schema.candidates.request is not None)
        user, truth, score, weight, request = (torch.from_numpy(table[name].to_numpy().copy()) for name in names)
        found.update(user, truth, score, weight, request)
        return found if len(found) else None

    def _ranked(self, objective: str) -> RetrievalMetrics | None:
        table = self.predictions(["rank"])
        cutoffs = [int(name.removeprefix("hr@")) for name in self.metrics(objective) or {} if name.startswith("hr@")]
        if table is None or not len(table):
            return None
        found = RetrievalMetrics(cutoffs)
        found.update(torch.from_numpy(table["rank"].to_numpy().copy()))
        return found

    @classmethod
    def read(cls, folder: Path) -> Run:
        """The run in `folder`.

        Raises:
            UserError: the folder is no run, was not trained or evaluated yet, or is of a task that the page doesn't show.
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
        task = task_of(read_json(folder / "metrics.json"))
        if not task_type(task).on_page:
            raise UserError(f"--run {folder}: no page draws {task} models; its figures are in {folder}/metrics.json")
        return cls(
            folder,
            read_document(folder / "summary.json", Summary),
            read_document(folder / "metrics.json", task_type(task).evaluation),
            read_log(folder),
            read_schema(folder),
            read_json(folder / "config.json") if (folder / "config.json").is_file() else {},
        )

    def metrics(self, label: str, row: str = "model") -> dict[str, Estimate] | None:
        """A row of a label's metrics; None where there is none."""
        return self.evaluation.tasks[label].get(row)


class Group(NamedTuple):
    """Runs of one setting, which differ by their seed."""

    name: str
    runs: Sequence[Run]

    def metrics(self, label: str) -> dict[str, Estimate] | None:
        """Of one run its estimates; of several the mean, and the smallest and largest as its bounds."""
        found = [metrics for run in self.runs if (metrics := run.metrics(label))]
        if len(found) < 2:
            return found[0] if found else None
        means = {}
        for name in found[0]:
            known = [value for each in found if name in each and (value := each[name].value) is not None]
            whole = len(known) == len(found)
            means[name] = Estimate(float(np.mean(known)), min(known), max(known)) if whole else Estimate(None)
        return means

    def spread(self, label: str, metric: str) -> str:
        """`± 0.0012, 3 seeds`: the standard deviation between the runs; empty of one run."""
        values = [m[metric].value for run in self.runs if (m := run.metrics(label)) and metric in m]
        known = [value for value in values if value is not None]
        return f"± {np.std(known, ddof=1):.4f}, {len(known)} seeds" if len(known) > 1 else ""


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs by setting, in order of each one's first, named by model and, where that isn't enough, by what differs."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        # Without a config.json nothing says that two are the same setting.
        key = json.dumps(run.setting, sort_keys=True) if run.config else str(run.folder)
        found.setdefault(key, []).append(run)
    groups = list(found.values())
    differ = differing([members[0] for members in groups])
    named = []
    for members in groups:
        first = members[0]
        same_model = [other[0] for other in groups if other[0].name == first.name]
        own = [
            f"{name.removeprefix('--set ')} {value}"
            for name in differ
            if name != "model"
            and len({run.setting.get(name) for run in same_model}) > 1
            and (value := first.setting.get(name)) is not None
        ]
        named.append(Group(f"{first.name} ({', '.join(own)})" if own else first.name, members))
    names = [group.name for group in named]
    return [
        Group(f"{group.name} ({group.runs[0].folder.name})", group.runs) if names.count(group.name) > 1 else group
        for group in named
    ]


def differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Setting -> its value in each run, for those that differ; a dash where a run has none."""
    names = dict.fromkeys(name for run in runs for name in run.setting)
    rows = {name: [run.setting.get(name, "\N{EN DASH}") for run in runs] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def task_of(metrics: dict[str, object]) -> str:
    """The task that a metrics.json is of; release 0.1 wrote a catalogue's size for retrieval and no name."""
    return str(metrics.get("task", "retrieval" if "catalogue" in metrics else "ranking"))


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Runs that were evaluated on the same samples.

    Raises:
        UserError: a folder is no evaluated run, or two were evaluated on different samples.
    """
    runs = [Run.read(folder) for folder in folders]
    first = runs[0].evaluation
    for run in runs[1:]:
        own = run.evaluation
        if own.task != first.task:
            raise UserError(
                f"--run {run.folder}: a {own.task} model, and {runs[0].folder} a {first.task} model; give those of one task a page"
            )
        for key, theirs, ours in (
            ("dates", own.dates, first.dates),
            *((key, each, first.scope()[key]) for key, each in own.scope().items() if key != "users"),
        ):
            if theirs != ours:
                raise UserError(
                    f"--run {run.folder}: evaluated on other {key} ({theirs}) than {runs[0].folder} ({ours}); evaluate both on the"
                    " same --dates"
                )
    return runs

"""What `genrank report` compares: evaluated runs, read from their folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genrank.model.documents import LogRow, RankingEvaluation, Summary, read_document
from genrank.model.metrics import Estimate
from genrank.model.run_dir import read_json, read_log, read_schema
from genrank.model.tasks import task_type
from genrank.schemas.errors import UserError
from genrank.schemas.schema import Schema


@dataclass(frozen=True)
class Run:
    """What one `genrank train` and `genrank evaluate` left behind."""

    folder: Path
    summary: Summary
    evaluation: RankingEvaluation
    log: list[LogRow]
    schema: Schema

    @property
    def name(self) -> str:
        """Of its model."""
        return self.summary.model

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
            raise UserError(
                f"--run {folder}: a {task} model; the page compares rankers. Its figures are in {folder}/metrics.json"
            )
        return cls(
            folder,
            read_document(folder / "summary.json", Summary),
            read_document(folder / "metrics.json", RankingEvaluation),
            read_log(folder),
            read_schema(folder),
        )

    def metrics(self, label: str, row: str = "model") -> dict[str, Estimate] | None:
        """A row of a label's metrics; None where there is none."""
        return self.evaluation.tasks[label].get(row)


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
        for key, theirs, ours in (
            ("dates", own.dates, first.dates),
            ("candidates", own.candidates, first.candidates),
        ):
            if theirs != ours:
                raise UserError(
                    f"--run {run.folder}: evaluated on other {key} ({theirs}) than {runs[0].folder} ({ours}); evaluate both on the"
                    " same --dates"
                )
    return runs

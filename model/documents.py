"""The JSON that training and evaluation write, as types: what is in a file is what is here.

    RUN/log.jsonl            a StepRow, EvalRow or GuardRow a line
    RUN/summary.json         Summary
    RUN/metrics.json         Evaluation, or the task's own subclass of it
    RUN/progressive.json     a list of ProgressiveDay
    RUN/checkpoints/best.json             Best
    RUN/checkpoints/step-N/manifest.json  CheckpointManifest

Files that earlier releases wrote read, too: what they lack has a default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_serializer

from genrank.model.metrics import Estimate
from genrank.schemas.checked_json import checked, with_checksum
from genrank.schemas.errors import UserError
from genrank.schemas.files import write_atomically
from genrank.schemas.schema import Schema


class Document(BaseModel):
    """A JSON object of ours; fields of a later release are kept when it is read."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


DocumentT = TypeVar("DocumentT", bound=Document)


class ModelIdentity(Document):
    """Which model a checkpoint is of."""

    name: str
    settings: Mapping[str, str]
    """As `--set` was given."""
    fields: Mapping[str, str] | None = None
    """Every field that `--set` can change, as text: a default that a later release changes leaves the model as it was. None: written by a
    release that didn't record them."""

    def __str__(self) -> str:
        return " ".join([self.name, *(f"--set {field}={value}" for field, value in self.settings.items())])


class FileDigest(Document):
    """A file as it was written."""

    bytes: int
    sha256: str


class CheckpointManifest(Document):
    """What a checkpoint is of."""

    format: int
    step: int
    model: ModelIdentity
    fingerprint: str
    declared: Schema = Field(alias="schema")
    boundaries: dict[str, list[float]]
    """Of quantile buckets, by `group.feature`."""
    files: dict[str, FileDigest]
    """By their path in the checkpoint's folder."""
    builds: dict[str, str] = {}
    """Day of samples -> the build that was read (`build_id` of its manifest); training's days and those evaluated on the way."""

    @field_serializer("declared")
    def _as_schema_json(self, schema: Schema) -> dict[str, Any]:
        return schema.model_dump(mode="json")


class Best(Document):
    """The best checkpoint so far, by the mean of the task's headline metric over its objectives."""

    step: int
    metric: str = "gauc"
    value: float | None = None


class Speeds(Document):
    """What some steps came to; None where there is nothing to say."""

    step_ms: float | None = None
    """Milliseconds a step, reading included."""
    input_wait: float | None = None
    """The share of them that the host waited for batches."""
    samples_per_s: float
    tokens_per_s: float
    model_gflops_per_s: float | None = None
    mfu: float | None = None
    """The same as a share of what the device can do at most."""


class StepRow(Document):
    """A line of the log about training steps since the last such line."""

    step: int
    epoch: int
    loss: float
    """Of this step."""
    tasks: dict[str, float]
    """Loss by objective."""
    lr: float
    sparse_lr: float
    step_ms: float | None = None
    input_wait: float | None = None
    samples_per_s: float
    tokens_per_s: float
    model_gflops_per_s: float | None = None
    mfu: float | None = None
    """These six as in `Speeds`."""
    peak_gpu_bytes: int | None = None
    time: float
    """Epoch seconds."""


class EvalRow(Document):
    """A line of the log about an evaluation on the way."""

    step: int
    eval: dict[str, dict[str, float | None]]
    """Objective -> metric -> value."""
    time: float


class GuardRow(Document):
    """A line of the log about a batch that was not learned from."""

    step: int
    event: str
    """`nan` or `spike`."""
    loss: str
    """As text: it may be no number."""
    sample_ids: list[str]


LogRow = StepRow | EvalRow | GuardRow
LOG_ROW: TypeAdapter[LogRow] = TypeAdapter(LogRow)


class Versions(Document):
    """What trained."""

    torch: str
    python: str


class Summary(Document):
    """What a complete training took in, and how fast."""

    model: str
    settings: dict[str, str]
    schema_name: str = Field(alias="schema")
    fingerprint: str
    train_dates: list[str]
    eval_dates: list[str]
    samples_root: str
    builds: dict[str, str] = {}
    """As in `CheckpointManifest`."""
    dense_parameters: int
    sparse_rows: int
    ids: dict[str, int]
    """Ids that have a row, by dynamic table."""
    steps: int
    best_step: int | None
    epochs: int
    max_steps: int
    samples: int
    candidates: int
    flops: int | None = None
    """Floating point operations of the model's dense part in all steps, forward and backward, on all ranks. None: not counted."""
    seconds: float
    timed_steps: int = 0
    """Steps that the rates are taken over."""
    step_ms: float | None = None
    input_wait: float | None = None
    samples_per_s: float
    tokens_per_s: float
    model_gflops_per_s: float | None = None
    mfu: float | None = None
    """These six as in `Speeds`."""
    peak_rss_bytes: int
    peak_gpu_bytes: int | None = None
    device: str
    ranks: int
    versions: Versions


Rows = dict[str, dict[str, dict[str, Estimate]]]
"""Objective -> row (`model`, and what it is compared with) -> metric -> its value and interval."""


class Evaluation(Document):
    """Metrics of a run on some days."""

    model: str
    step: int
    dates: list[str]
    task: str
    """A key of `model.tasks.TASKS`."""
    tasks: Rows
    builds: dict[str, str] = {}
    """Day -> the build of its samples that was judged on."""
    chosen: dict[str, dict[str, str]] = {}
    """Objective -> row that was chosen on a training day -> which it is, in words."""

    def scope(self) -> dict[str, int]:
        """What it was judged on, in numbers: alike for evaluations that may be compared."""
        return {}

    def in_words(self, objective: str, row: str, name: str) -> str:
        """A row's name, with what was chosen for it."""
        which = self.chosen.get(objective, {}).get(row)
        return f"{name} ({which})" if which else name


class SliceMetrics(Document):
    """Metrics of the model on a part of the candidates."""

    candidates: int
    """With a mature label."""
    metrics: dict[str, Estimate]


class Importance(Document):
    """What shuffling a feature, or a whole group, costs."""

    group: str
    feature: str | None
    """None: all of the group."""
    drop: Estimate
    """GAUC less GAUC with it shuffled."""

    def in_words(self) -> str:
        """`candidates.price`, or `all of history`."""
        return f"{self.group}.{self.feature}" if self.feature else f"all of {self.group}"


class RankingEvaluation(Evaluation):
    """Metrics of a ranker: over every candidate of the days."""

    task: str = "ranking"
    samples: int
    candidates: int
    users: int
    slices: dict[str, dict[str, dict[str, SliceMetrics]]] = {}
    """Label -> dimension (`item`, `user`, `request`, `hour`) -> slice -> metrics of the model."""
    importance: dict[str, list[Importance]] = {}
    """Label -> features and groups, largest drop first; empty without `--importance`."""

    def scope(self) -> dict[str, int]:
        """Candidates and users."""
        return {"candidates": self.candidates, "users": self.users}


class RetrievalEvaluation(Evaluation):
    """Metrics of a retrieval model: a query a user and day, over the whole catalogue."""

    task: str = "retrieval"
    queries: int
    catalogue: int
    """Items in it."""

    def scope(self) -> dict[str, int]:
        """Queries and items."""
        return {"queries": self.queries, "items": self.catalogue}


class ProgressiveDay(Document):
    """A day that was learned, and the next that was judged."""

    trained: str
    evaluated: str
    steps: int
    ids: dict[str, int]
    """Ids that have a row after the day, by dynamic table."""
    task: str = "ranking"
    tasks: Rows


# ---------------------------------------------------------------------- files


def as_json(document: Document) -> dict[str, Any]:
    """Plain JSON values, in the order of the fields."""
    return document.model_dump(mode="json", by_alias=True)


def read_document(path: Path, kind: type[DocumentT]) -> DocumentT:
    """A document from its file.

    Raises:
        UserError: the file is missing, or doesn't hold one.
    """
    return parse_document(read_text(path), kind, path)


def parse_document(text: str, kind: type[DocumentT], path: Path) -> DocumentT:
    """A document from the text of a file.

    Raises:
        UserError: it doesn't hold one.
    """
    try:
        return kind.model_validate_json(json.dumps(checked(text)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path}: {where}: {first['msg']}; write it again with the command that made it") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}; write it again with the command that made it") from None


def read_text(path: Path) -> str:
    """The text of one of a run's files.

    Raises:
        UserError: it is missing.
    """
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text ({error.reason}); write it again with the command that made it") from None
    except FileNotFoundError:
        raise UserError(f"{path} is missing; is {path.parent} the --out folder of `genrank train`?") from None


def write_document(path: Path, document: Document, *, guarded: bool = False) -> None:
    """Atomically: a reader sees the old file or the new one.

    Args:
        guarded: with a checksum, for what decides what is read rather than what people and other programs read.
    """
    text = document.model_dump_json(by_alias=True, indent=1)
    write_atomically(path, (with_checksum(text) if guarded else text) + "\n")

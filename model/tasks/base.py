"""A task: what is minimised, what is measured, and how the measures are shown.

A model says which task it learns (`model.registry.ModelSpec.task`). The trainer asks the task for weights and losses of each batch and for
metrics on the way, `genrank evaluate` for the whole evaluation, terminal and page for words. One file a task, one entry in `model.tasks.TASKS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from torch import Tensor

from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.documents import Evaluation
from genrank.model.interface import Model
from genrank.model.losses import Weighted
from genrank.model.metrics import Estimate
from genrank.model.ranks import Ranks
from genrank.schemas.schema import Schema
from genrank.tokenization.batch import Batch

ModelT = TypeVar("ModelT", bound=Model)

Metrics = dict[str, dict[str, Estimate]]
"""Objective -> metric -> its value and interval."""


class Objective(NamedTuple):
    """One of the losses that are added up, where it is no label's."""

    name: str
    weight: float


class LoadedRun(NamedTuple):
    """A run that is evaluated."""

    folder: Path
    model: str
    """Its name."""
    step: int
    trained: Sequence[str]
    """The days that the run, and those it went on from, were trained on."""


class Task(ABC, Generic[ModelT]):
    """What models of one kind learn of samples of a schema.

    Type parameter: what a model of this task has besides `Model`'s.
    """

    name: ClassVar[str]
    """Of the task, in `ModelSpec.task` and in metrics.json."""
    headline: ClassVar[str]
    """The metric that early stopping watches and tables show first; larger is better."""
    headings: ClassVar[Mapping[str, str]] = {}
    """Metric -> its name in tables, in their order; others follow under their own name."""
    references: ClassVar[Mapping[str, str]] = {}
    """Row of metrics.json besides `model` -> its name in tables."""
    on_page: ClassVar[bool] = False
    """Whether `genrank report` draws it."""
    resampled: ClassVar[str] = "users"
    """What intervals are bootstrapped over."""
    page_notes: ClassVar[str] = ""
    """What the page says of the metrics."""
    evaluation: ClassVar[type[Evaluation]] = Evaluation
    """What metrics.json holds."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    # ------------------------------------------------------------------ training

    @property
    @abstractmethod
    def objectives(self) -> Sequence[Weighted]:
        """The losses that are added up, each by its weight."""

    def require_learnable(self, samples: Path, dates: Sequence[str]) -> None:
        """Refuse days that have nothing to learn from, before the first row is read.

        Raises:
            UserError: they have nothing.
        """

    @abstractmethod
    def weights(self, model: ModelT, batch: Batch) -> Tensor:
        """float64 [objectives]: what a batch's loss sums are divided by, before ranks add theirs."""

    @abstractmethod
    def loss_sums(self, output: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Per objective, the weighted sum of a batch's losses; scalars with a gradient.

        Args:
            output: what `Model.forward` made of the batch.
        """

    @abstractmethod
    def validate(self, model: ModelT, config: TrainConfig, samples: Path, ranks: Ranks, *, bf16: bool) -> Metrics:
        """Metrics on `config.eval_dates`, without intervals; every rank calls it and gets the same."""

    # ------------------------------------------------------------------ evaluation

    @abstractmethod
    def evaluate(
        self, model: ModelT, run: LoadedRun, config: EvaluateConfig, samples: Path, ranks: Ranks
    ) -> Evaluation:
        """Metrics of the model and of what it is compared with on `config.dates`, with intervals.

        Raises:
            UserError: the days hold nothing to judge on.
        """

    # ------------------------------------------------------------------ in words

    @classmethod
    def shown(cls, estimates: Mapping[str, Estimate]) -> list[str]:
        """A row's metrics in the order of a table, the headline of its kind first."""
        return [*(m for m in cls.headings if m in estimates), *(m for m in estimates if m not in cls.headings)]

    @classmethod
    def heading(cls, metric: str) -> str:
        """A metric's name in a table."""
        return cls.headings.get(metric, metric.upper())

    @classmethod
    def nothing_known(cls, objective: str, days: str) -> str:
        """What is said in a table's place where no metric is defined."""
        return f"{objective}: no metric is defined on {days}"


AnyTask = Task[Any]
"""A task, whatever its models."""

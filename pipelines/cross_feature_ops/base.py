"""How an operation of cross features is computed: what of its events is kept, and what a query gets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrank.pipelines.column_roles import NUMBERS, Column, Role
from genrank.pipelines.merge_scan import Int, Queries, Scan
from genrank.schemas import CrossFeature
from genrank.schemas.ids import MISSING_ID


class Trials(Protocol):
    """Counts all events of a log in the feature's window."""

    def __call__(self, log: str) -> Int:
        """Events of `log` in the window of each query, [n] int64."""
        ...


@dataclass(frozen=True)
class Question:
    """One feature's queries and the events at their keys, [n] rows."""

    feature: CrossFeature
    scan: Scan
    queries: Queries
    window: int
    """ms."""
    events: pa.Table
    """Rows of `scan`, in its order, as `cross_features.events_at_keys` and `tile` give them."""
    chosen: NDArray[np.bool_] | None
    """[n] events that meet `where`; None where all do."""
    value: Column | None
    """The column of `events` that keeps the feature's value."""
    at: Int
    """int64 [queries]: the moment each query asks as of, epoch ms."""
    trials: Trials

    def values(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """([n] the feature's value of each event, [n] whether it meets `where` and is there)."""
        assert self.value is not None
        values: NDArray[Any] = self.events.column(self.value.name).to_numpy()
        present = ~np.isnan(values) if self.value.role in NUMBERS else values != MISSING_ID
        return values, present if self.chosen is None else self.chosen & present


class Evaluation(ABC):
    """The computation of one operation, by the operation's name."""

    name: ClassVar[str]
    newest: ClassVar[Literal["time", "event"] | None] = None
    """What a tile keeps of its newest event: nothing, its time, or the event whole."""
    keyed_by_value: ClassVar[bool] = False
    """Whether tiles keep a row per different value instead of one for all."""

    def value_role(self, feature: CrossFeature) -> Role:
        """How the feature's `value` is kept."""
        return "number"

    def value_column(self, feature: CrossFeature) -> Column | None:
        """What its events hold; None for nothing."""
        return None if feature.value is None else Column(self.value_role(feature), feature.value)

    @abstractmethod
    def answer(self, question: Question) -> NDArray[Any]:
        """[queries] the statistic at each query; float64 or int64, stored as the feature says."""

    def saw_events(self, feature: CrossFeature, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether each stored value shows that there was an event: it differs from what the operation gives without one."""
        seen: NDArray[np.bool_] = values != MISSING_ID if values.dtype == np.int64 else ~np.isnan(values)
        return seen

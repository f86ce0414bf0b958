"""How an operation of cross features is computed: what of its events is kept, and what a query gets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrank.pipelines.column_roles import NUMBERS, Column, Role
from genrank.pipelines.exact_sums import Float
from genrank.pipelines.merge_scan import Bool, Int, Queries, Scan
from genrank.schemas import CrossFeature
from genrank.schemas.ids import MISSING_ID


class Trials(Protocol):
    """Counts all events of a log in the feature's window."""

    def __call__(self, log: str) -> Int:
        """Events of `log` in the window of each query, [n] int64."""
        ...


@dataclass(frozen=True)
class Question:
    """One feature's queries and the events at their keys, [n] rows.

    An operation takes its answer from `count`, `total`, `distinct`, `newest_time` and `newest_value` where they suffice, which online
    features answer without reading the events; others ask `scan`.
    """

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
        present = has_value(values, self.value)
        return values, present if self.chosen is None else self.chosen & present

    def count(self) -> Int:
        """[queries] events that meet `where`."""
        return self.scan.sum(self.queries, self.window, chosen=self.chosen)[0]

    def total(self) -> tuple[Int, Float]:
        """([queries] events that meet `where` and have a value, [queries] float64 sum of their values)."""
        values, chosen = self.values()
        return self.scan.sum(self.queries, self.window, values, chosen)

    def distinct(self) -> Int:
        """[queries] different values of the events that meet `where` and have one."""
        values, chosen = self.values()
        return self.scan.distinct(self.queries, self.window, values, chosen)

    def newest_time(self) -> tuple[Int, Bool]:
        """([queries] epoch ms of the newest event that meets `where`, [queries] whether there is one)."""
        row = self.scan.newest(self.queries, self.window, self.chosen)
        return np.append(self.events.column("ts").to_numpy(), 0)[row], row >= 0

    def newest_value(self) -> NDArray[Any]:
        """[queries] value of the newest event that meets `where` and has one: of several at the same time, of that with the greatest
        id; MISSING_ID or NaN where there is none.
        """
        assert self.value is not None
        values, chosen = self.values()
        row = self.scan.newest(self.queries, self.window, chosen)
        return np.append(values, missing_value(values, self.value))[row]


def has_value(values: NDArray[Any], column: Column) -> Bool:
    """[n] which of a column's values are there."""
    present: Bool = ~np.isnan(values) if column.role in NUMBERS else values != MISSING_ID
    return present


def missing_value(values: NDArray[Any], column: Column) -> NDArray[Any]:
    """[1] a column's missing value."""
    return np.array([np.nan if column.role in NUMBERS else MISSING_ID], values.dtype)


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

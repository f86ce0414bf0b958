"""Cross features of candidates from standing blocks: the batch build's own formulas, asked of an index instead of a scan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrank.pipelines import cross_features
from genrank.pipelines.column_roles import Column
from genrank.pipelines.columns import value_column
from genrank.pipelines.cross_feature_ops import Evaluation, Question, evaluation_of
from genrank.pipelines.cross_feature_ops.base import missing_value
from genrank.pipelines.cross_features import KeySet, beyond_float32
from genrank.pipelines.exact_sums import Float, Parts, added, between, rounded
from genrank.pipelines.merge_scan import Bool, Int, Queries, Scan, mix
from genrank.pipelines.online.standing import Block, Choice
from genrank.schemas import CrossFeature, Schema
from genrank.schemas.base import parse_duration

Blocks = Mapping[str, Sequence[Block]]
"""Log -> its events at the keys of a key set; none is empty."""


class AskedLog:
    """One log asked at keys and moments, [queries]: where they lie in each of its blocks, found once for all features.

    Args:
        blocks: the log's.
        keys: hashed keys.
        moments: epoch ms.
        windows: every window of the key set over the log, ms, ascending.
        empty: no row of theirs.
    """

    def __init__(
        self, blocks: Sequence[Block], keys: Int, moments: Int, windows: tuple[int, ...], empty: pa.Table
    ) -> None:
        self.keys, self.moments, self._longest, self._empty = keys, moments, windows[-1], empty
        edges = moments - np.array((0, *windows), np.int64)[:, None]
        self._edge = {window: at for at, window in enumerate(windows, 1)}
        self._blocks: list[tuple[Block, Int]] = []
        for block in blocks:
            codes = block.find(keys)
            self._blocks.append((block, block.pack(codes, edges)))

    def total(self, choice: Choice, window: int) -> tuple[Int, Parts]:
        """([queries] chosen events in the window, exact sums of their values)."""
        count = np.zeros(len(self.keys), np.int64)
        sums: list[Parts] = []
        for block, packed in self._blocks:
            index = block.counts(choice, window)
            entered = index.enter.searchsorted(packed[0])
            left = index.leave.searchsorted(packed[self._edge[window]], "right")
            count += entered
            count -= left
            if choice.value is not None:
                none = np.zeros_like(entered)
                sums += [between(index.entered, none, entered), between(index.left, left, none)]
        return count, added(*sums)

    def newest(self, choice: Choice, window: int, column: str | None) -> tuple[Int, Bool, NDArray[Any] | None]:
        """([queries] epoch ms of the newest chosen event in the window, whether there is one, its value of a column)."""
        ts = np.full(len(self.keys), np.iinfo(np.int64).min)
        id_ = ts
        value: NDArray[Any] | None = None
        for block, packed in self._blocks:
            index = block.newest(choice)
            if not len(index.enter):
                continue
            entered = index.enter.searchsorted(packed[0])
            row = index.best[np.maximum(entered - 1, 0)]
            own = block.ts[row]
            newer = (entered > 0) & (block.key[row] == self.keys)
            if value is not None or len(self._blocks) > 1:
                own_id = block.id[row]
                newer &= (own > ts) | ((own == ts) & (own_id > id_))
                id_ = np.where(newer, own_id, id_)
            ts = np.where(newer, own, ts)
            if column is not None:
                own_value = block.column(column)[row]
                value = own_value if value is None else np.where(newer, own_value, value)
        return ts, ts > self.moments - window, value

    @cached_property
    def rows(self) -> pa.Table:
        """Events that any window may show, for operations that read them."""
        keys = np.unique(self.keys)
        since, before = int(self.moments.min()) - self._longest, int(self.moments.max())
        parts = [block.of_keys(block.find(keys), since, before) for block, _ in self._blocks]
        return pa.concat_tables(parts).combine_chunks() if parts else self._empty

    @cached_property
    def scan(self) -> Scan:
        """`rows` as the build scans them."""
        return Scan(*(self.rows.column(name).to_numpy() for name in ("key", "ts", "available", "id")))

    @cached_property
    def queries(self) -> Queries:
        """The keys and moments as `scan` is asked."""
        return self.scan.at(self.keys, self.moments)


class FeaturePlan:
    """What of a cross feature depends on the schema alone."""

    def __init__(self, feature: CrossFeature) -> None:
        self.feature = feature
        self.evaluation: Evaluation = evaluation_of(feature)
        self.window = parse_duration(feature.window)
        self.at_start = feature.as_of == "window_start"
        self.value = value_column(feature)
        self.where = Column("flag", feature.where, sql=True).name if feature.where else None


class StandingQuestion(Question):
    """A question answered by an index; what an operation asks beyond it is read from the events at the keys."""

    def __init__(self, plan: FeaturePlan, asked: AskedLog, at: Int, trials: partial[Int]) -> None:
        self.__dict__.update(feature=plan.feature, window=plan.window, value=plan.value, at=at, trials=trials)
        self.__dict__.update(_where=plan.where, _asked=asked)

    _where: str | None
    _asked: AskedLog

    def count(self) -> Int:
        """As `Question.count`."""
        return self._asked.total(Choice(self._where), self.window)[0]

    def total(self) -> tuple[Int, Float]:
        """As `Question.total`."""
        count, sums = self._asked.total(Choice(self._where, self.value), self.window)
        return count, rounded(sums) if sums else np.zeros(len(count))

    def newest_time(self) -> tuple[Int, Bool]:
        """As `Question.newest_time`."""
        ts, seen, _ = self._asked.newest(Choice(self._where), self.window, None)
        return ts, seen

    def newest_value(self) -> NDArray[Any]:
        """As `Question.newest_value`."""
        assert self.value is not None
        _, seen, value = self._asked.newest(Choice(self._where, self.value), self.window, self.value.name)
        if value is None:
            value = np.zeros(len(self.at), np.int64 if self.value.role == "id" else np.float32)
        return np.where(seen, value, missing_value(value, self.value))

    @property
    def scan(self) -> Scan:  # type: ignore[override]
        """Of the events at the keys."""
        return self._asked.scan

    @property
    def queries(self) -> Queries:  # type: ignore[override]
        """As `scan` is asked."""
        return self._asked.queries

    @property
    def events(self) -> pa.Table:  # type: ignore[override]
        """Rows of `scan`."""
        return self._asked.rows

    @property
    def chosen(self) -> NDArray[np.bool_] | None:  # type: ignore[override]
        """Which of them meet `where`."""
        return None if self._where is None else self.events.column(self._where).to_numpy()


class CrossFeatures:
    """The cross features of one key set, compiled.

    Args:
        schema: their schema.
        partials: event log -> schema of its partials.
        key_set: what they share.
    """

    def __init__(self, schema: Schema, partials: Mapping[str, pa.Schema], key_set: KeySet) -> None:
        self.schema, self.key_set = schema, key_set
        self.logs = tuple(key_set.windows(schema))
        self._columns = cross_features.key_columns(key_set)
        self._plans = [FeaturePlan(feature) for feature in key_set.features]
        windows: dict[str, set[int]] = {log: set() for log in self.logs}
        for plan in self._plans:
            for log in filter(None, (plan.feature.source, plan.feature.per)):
                windows[log].add(plan.window)
        self._windows = {log: tuple(sorted(own)) for log, own in windows.items()}
        self._empty = {
            log: cross_features.events_at_keys(key_set, schema.event_log(log), partials[log].empty_table())
            for log in self.logs
        }

    def block(self, log: str, rows: pa.Table) -> Block | None:
        """A block of a log's partial rows, with what its features search; None where no row has the keys."""
        events = cross_features.events_at_keys(self.key_set, self.schema.event_log(log), rows)
        if not events.num_rows:
            return None
        block = Block(events)
        # Operations ask for what they need; asked once while it is made, it is there when a request comes.
        list(self.answers({log: [block]}, block.key[:1], block.ts[:1], block.ts[:1]))
        return block

    def answers(self, blocks: Blocks, keys: Int, ts: Int, start: Int) -> Iterator[tuple[CrossFeature, NDArray[Any]]]:
        """(feature, [queries] float64 or int64 value).

        Args:
            blocks: of `logs`; one that is left out has no events.
            keys: [queries] hashed keys.
            ts: [queries] epoch ms of the exposure.
            start: [queries] epoch ms at which its window starts.
        """
        asked: dict[tuple[str, bool], AskedLog] = {}

        def of(log: str, at_start: bool) -> AskedLog:
            if (log, at_start) not in asked:
                asked[log, at_start] = AskedLog(
                    blocks.get(log, ()), keys, start if at_start else ts, self._windows[log], self._empty[log]
                )
            return asked[log, at_start]

        def trials(plan: FeaturePlan, log: str) -> Int:
            return of(log, plan.at_start).total(Choice(), plan.window)[0]

        for plan in self._plans:
            at = start if plan.at_start else ts
            question = StandingQuestion(plan, of(plan.feature.source, plan.at_start), at, partial(trials, plan))
            yield plan.feature, plan.evaluation.answer(question)

    def keys(self, columns: Mapping[str, pa.Array], rows: int) -> Int:
        """[rows] hashed keys of exposures."""
        if not self._columns:
            return np.zeros(rows, np.int64)
        return mix(*(columns[name].to_numpy() for name in self._columns))


def stored(found: Sequence[tuple[CrossFeature, NDArray[Any]]]) -> dict[str, pa.Array]:
    """Feature -> [queries] its value as samples keep it.

    Raises:
        UserError: one doesn't fit.
    """
    values = {feature.name: pa.array(own.astype(np.int64)) for feature, own in found if feature.stored == "id"}
    numbers = [(feature, own) for feature, own in found if feature.stored != "id"]
    if numbers:
        of_all = np.stack([own for _, own in numbers])
        beyond = np.abs(of_all) > np.finfo(np.float32).max
        if beyond.any():
            raise beyond_float32(numbers[int(beyond.any(axis=1).argmax())][0])
        narrow = of_all.astype(np.float32)
        values |= {feature.name: pa.array(own) for (feature, _), own in zip(numbers, narrow, strict=True)}
    return values

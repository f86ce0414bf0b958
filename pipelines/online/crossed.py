"""Cross features of candidates from standing blocks: the batch build's own formulas, asked of an index instead of a scan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrank.pipelines import cross_features, list_keys
from genrank.pipelines.arrays import int64s
from genrank.pipelines.column_roles import Column
from genrank.pipelines.columns import value_column
from genrank.pipelines.cross_feature_ops import Evaluation, Question, evaluation_of
from genrank.pipelines.cross_feature_ops.base import missing_value
from genrank.pipelines.cross_features import KeySet, beyond_float32
from genrank.pipelines.exact_sums import Float, Parts, added, between, rounded
from genrank.pipelines.merge_scan import Bool, Int, Queries, Scan, mix
from genrank.pipelines.online.standing import Block, Choice, Counts
from genrank.schemas import CrossFeature, Schema
from genrank.schemas.base import parse_duration

Blocks = Mapping[str, Sequence[Block]]
"""Log -> its events at the keys of a key set; none is empty."""


_ALL = Choice()
_NEVER = np.iinfo(np.int64).min


class LogPlan:
    """What of a log's part in a key set depends on the schema alone.

    Args:
        windows: of the features over it, ms.
        empty: no row of its events at the keys.
    """

    def __init__(self, windows: set[int], empty: pa.Table) -> None:
        self.longest, self.empty = max(windows), empty
        ascending = sorted(windows)
        self.edge_of = {window: at for at, window in enumerate(ascending, 1)}
        """Window -> its position in `edges`."""
        self.edges = np.array([0, *ascending], np.int64)[:, None]
        """[1 + windows, 1] ms before a moment."""


class AskedLog:
    """One log asked at keys and moments, [queries]: where they lie in each of its blocks, found once for all features.

    Args:
        log: what is asked.
        blocks: its events.
        keys: hashed keys.
        moments: epoch ms.
    """

    def __init__(self, log: LogPlan, blocks: Sequence[Block], keys: Int, moments: Int) -> None:
        self.keys, self.moments, self._log = keys, moments, log
        edges = moments - log.edges
        self._blocks: list[tuple[Block, Int, Int]] = []
        for block in blocks:
            codes = block.find(keys)
            self._blocks.append((block, codes, block.pack(codes, edges)))
        self._entered: dict[int, Int] = {}

    def total(self, choice: Choice, window: int) -> tuple[Int, Parts]:
        """([queries] chosen events in the window, exact sums of their values)."""
        counts: list[Int] = []
        sums: list[Parts] = []
        for block, _, packed in self._blocks:
            index = block.counts(choice, window)
            entered, left = self._moved(index, packed, window)
            counts.append(entered - left)
            if choice.value is not None:
                none = np.zeros_like(entered)
                sums += [between(index.entered, none, entered), between(index.left, left, none)]
        return self._sum(counts), added(*sums)

    def distinct(self, choice: Choice, window: int) -> Int | None:
        """[queries] different values of chosen events in the window; None where several blocks hold a key's, which may be the same."""
        if len(self._blocks) > 1 and (np.sum([codes >= 0 for _, codes, _ in self._blocks], axis=0) > 1).any():
            return None
        counts = []
        for block, _, packed in self._blocks:
            entered, left = self._moved(block.distinct(choice, window), packed, window)
            counts.append(entered - left)
        return self._sum(counts)

    def _moved(self, index: Counts, packed: Int, window: int) -> tuple[Int, Int]:
        """[queries] how many of an index have entered and how many have left, from the first of all keys on."""
        entered = self._entered.get(id(index))
        if entered is None:
            entered = self._entered[id(index)] = index.enter.searchsorted(packed[0])
        return entered, index.leave.searchsorted(packed[self._log.edge_of[window]], "right")

    def _sum(self, counts: list[Int]) -> Int:
        return sum(counts[1:], counts[0]) if counts else np.zeros(len(self.keys), np.int64)

    def newest(self, choice: Choice, window: int, column: str | None) -> tuple[Int, Bool, NDArray[Any] | None]:
        """([queries] epoch ms of the newest chosen event in the window, whether there is one, its value of a column)."""
        ts, id_, value = np.full(len(self.keys), _NEVER), self.keys, None
        for block, _, packed in self._blocks:
            index = block.newest(choice)
            if not len(index.enter):
                continue
            row = index.enter.searchsorted(packed[0])
            row -= 1
            known = row >= 0
            row = index.best[row]  # A -1 finds some row, of no interest.
            known &= block.key[row] == self.keys
            own = np.where(known, block.ts[row], _NEVER)
            newer = own > ts
            if len(self._blocks) > 1:
                own_id = block.id[row]
                newer |= (own == ts) & (own_id > id_)
                id_ = np.where(newer, own_id, id_)
            if column is not None:
                own_value = block.column(column)[row]
                value = own_value if value is None else np.where(newer, own_value, value)
            ts = np.where(newer, own, ts)
        return ts, ts > self.moments - window, value

    @cached_property
    def rows(self) -> pa.Table:
        """Events that any window may show, for operations that read them."""
        keys = np.unique(self.keys)
        since, before = int(self.moments.min()) - self._log.longest, int(self.moments.max())
        parts = [block.of_keys(block.find(keys), since, before) for block, _, _ in self._blocks]
        return pa.concat_tables(parts).combine_chunks() if parts else self._log.empty

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
        self.choice = Choice(self.where)
        self.with_value = self.choice
        if self.value is not None:
            self.with_value = Choice(self.where, self.value)
        self.is_id = feature.stored == "id"


class StandingQuestion(Question):
    """A question answered by an index; what an operation asks beyond it is read from the events at the keys."""

    def __init__(self, plan: FeaturePlan, asked: AskedLog, at: Int, trials: partial[Int]) -> None:
        self.__dict__.update(feature=plan.feature, window=plan.window, value=plan.value, at=at, trials=trials)
        self.__dict__.update(_plan=plan, _asked=asked)

    _plan: FeaturePlan
    _asked: AskedLog

    def count(self) -> Int:
        """As `Question.count`."""
        return self._asked.total(self._plan.choice, self.window)[0]

    def total(self) -> tuple[Int, Float]:
        """As `Question.total`."""
        count, sums = self._asked.total(self._plan.with_value, self.window)
        return count, rounded(sums) if sums else np.zeros(len(count))

    def distinct(self) -> Int:
        """As `Question.distinct`."""
        found = self._asked.distinct(self._plan.with_value, self.window)
        return super().distinct() if found is None else found

    def newest_time(self) -> tuple[Int, Bool]:
        """As `Question.newest_time`."""
        ts, seen, _ = self._asked.newest(self._plan.choice, self.window, None)
        return ts, seen

    def newest_value(self) -> NDArray[Any]:
        """As `Question.newest_value`."""
        assert self.value is not None
        _, seen, value = self._asked.newest(self._plan.with_value, self.window, self.value.name)
        if value is None:
            value = np.zeros(len(self.at), np.int64 if self.value.role == "id" else np.float32)
        return np.where(seen, value, missing_value(value, self.value))

    @property
    def scan(self) -> Scan:
        """Of the events at the keys."""
        return self._asked.scan

    @property
    def queries(self) -> Queries:
        """As `scan` is asked."""
        return self._asked.queries

    @property
    def events(self) -> pa.Table:
        """Rows of `scan`."""
        return self._asked.rows

    @property
    def chosen(self) -> NDArray[np.bool_] | None:
        """Which of them meet `where`."""
        where = self._plan.where
        return None if where is None else self.events.column(where).to_numpy()


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
        self.key_columns = cross_features.key_columns(key_set)
        self._plans = [FeaturePlan(feature) for feature in key_set.features]
        windows: dict[str, set[int]] = {log: set() for log in self.logs}
        for plan in self._plans:
            for log in filter(None, (plan.feature.source, plan.feature.per)):
                windows[log].add(plan.window)
        self._logs = {}
        for log in self.logs:
            empty = cross_features.events_at_keys(key_set, schema.event_log(log), partials[log].empty_table())
            self._logs[log] = LogPlan(windows[log], empty)

    def block(self, log: str, rows: pa.Table) -> Block | None:
        """A block of a log's partial rows, with what its features search; None where no row has the keys."""
        events = cross_features.events_at_keys(self.key_set, self.schema.event_log(log), rows)
        if not events.num_rows:
            return None
        block = Block(events)
        # Operations ask for what they need; asked once while it is made, it is there when a request comes.
        list(self.answers({log: [block]}, block.key[:1], block.ts[:1], block.ts[:1]))
        return block

    def answers(self, blocks: Blocks, keys: Int, ts: Int, start: Int) -> Iterator[tuple[FeaturePlan, NDArray[Any]]]:
        """(feature, [queries] its value, float64 or int64).

        Args:
            blocks: of `logs`; one that is left out has no events.
            keys: [queries] hashed keys.
            ts: [queries] epoch ms of the exposure.
            start: [queries] epoch ms at which its window starts.
        """
        # Neighbours in an index are asked after each other, which finds them in the processor's cache.
        order = np.argsort(keys)
        keys, ts, start = keys[order], ts[order], start[order]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        asked: dict[tuple[str, bool], AskedLog] = {}

        def of(log: str, at_start: bool) -> AskedLog:
            if (log, at_start) not in asked:
                moments = start if at_start else ts
                asked[log, at_start] = AskedLog(self._logs[log], blocks.get(log, ()), keys, moments)
            return asked[log, at_start]

        def trials(plan: FeaturePlan, log: str) -> Int:
            return of(log, plan.at_start).total(_ALL, plan.window)[0]

        for plan in self._plans:
            at = start if plan.at_start else ts
            question = StandingQuestion(plan, of(plan.feature.source, plan.at_start), at, partial(trials, plan))
            yield plan, plan.evaluation.answer(question)[back]

    def of_lists(
        self, blocks: Blocks, columns: Mapping[str, pa.Array], ts: Int, start: Int
    ) -> Iterator[tuple[FeaturePlan, NDArray[Any]]]:
        """As `answers` where a key is a list, [exposures], by the key columns of the exposures."""
        own = {name: columns[name] for name in self.key_columns}
        rows = cross_features.at_keys(self.key_set, pa.table({"ts": ts, "start": start, **own}))
        keys, _ = cross_features.hashed_keys(self.key_set, rows)
        number = list_keys.keys_of(columns[self.key_set.list_column])
        for plan, answers in self.answers(blocks, keys, int64s(rows, "ts"), int64s(rows, "start")):
            yield plan, list_keys.reduced(plan.feature.reduction, answers.astype(np.float64), number)


class HashedKeys:
    """The keys of several key sets, hashed together: those with as many columns in one go; not of those with a list.

    Args:
        sets: the key sets.
    """

    def __init__(self, sets: Sequence[CrossFeatures]) -> None:
        self._alike: dict[int, list[int]] = {}
        """Number of columns -> positions of the key sets."""
        self._names: list[list[str]] = [[] if of.key_set.listed else of.key_columns for of in sets]
        for at, of in enumerate(sets):
            if not of.key_set.listed:
                self._alike.setdefault(len(of.key_columns), []).append(at)

    def of(self, columns: Mapping[str, pa.Array], rows: int) -> list[Int]:
        """[rows] hashed keys of exposures, of each key set."""
        values = {name: columns[name].to_numpy() for names in self._names for name in names}
        keys: list[Int] = [np.zeros(0, np.int64)] * len(self._names)
        for number, alike in self._alike.items():
            hashed = np.zeros((len(alike), rows), np.int64)
            if number:
                hashed = mix(*(np.stack([values[self._names[at][i]] for at in alike]) for i in range(number)))
            for at, own in zip(alike, hashed, strict=True):
                keys[at] = own
        return keys


def stored(found: Sequence[tuple[FeaturePlan, NDArray[Any]]]) -> dict[str, pa.Array]:
    """Feature -> [queries] its value as samples keep it.

    Raises:
        UserError: one doesn't fit.
    """
    values = {plan.feature.name: pa.array(own.astype(np.int64)) for plan, own in found if plan.is_id}
    numbers = [(plan.feature, own) for plan, own in found if not plan.is_id]
    if numbers:
        of_all = np.array([own for _, own in numbers], np.float64)
        beyond = np.abs(of_all) > np.finfo(np.float32).max
        if beyond.any():
            raise beyond_float32(numbers[int(beyond.any(axis=1).argmax())][0])
        narrow = of_all.astype(np.float32)
        values |= {feature.name: pa.array(own) for (feature, _), own in zip(numbers, narrow, strict=True)}
    return values

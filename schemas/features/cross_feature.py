"""A statistic of past events."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Literal

from pydantic import Field

from genrank.schemas.base import CANDIDATES, DAY_MS, Duration, Name, format_duration, parse_duration
from genrank.schemas.expression import columns, nearest
from genrank.schemas.features.base import Feature, Scope
from genrank.schemas.messages import and_, condition_mistakes, twice
from genrank.schemas.operations import Operation, OperationName, operation_names, operation_of
from genrank.schemas.source import EventLog
from genrank.schemas.source_meaning import Meaning, references_meaning, rows_meaning, sql_meaning
from genrank.schemas.stored import Stored
from genrank.schemas.table import Table
from genrank.schemas.transforms import Transform
from genrank.schemas.type_rules import ID_LISTS, IDS, Types, families, id_space, split

LONGEST_WINDOW_MS = 90 * DAY_MS
"""How far back the events of cross features are kept."""
MOST_HALF_LIVES = 64
"""How many half-lives a window may have: what is older weighs less than 2^-64."""

Reduction = Literal["mean", "sum", "max", "min"]
"""How the values at the keys of a list become one."""


class CrossFeature(Feature):
    """A statistic of past events at one key, point-in-time: as of each exposure's own millisecond, strictly before it.

    An exposure at t reads the events that were available strictly before t and happened inside the window, both ends excluded:
    `available < t` and `t - window < ts < t`. With `as_of="window_start"`, t is the start of the exposure's day.

    `keys` are columns of the exposure (`"user_id"`, `"item_id"`, `"items.category"`) that the events carry too (their own column
    of that name, or through the same snapshot). Empty keys: over all events.

    One of the keys may be a list of ids (`"items.topics"`): an event counts at each different id of its list, and what the op gives at each
    different id of the exposure's becomes one value by `reduce`, in which missing values are left out. A null or empty list is a key that
    was never seen.

    Ops: `count`; `rate` = (count of `where` + prior * strength) / (count of all + strength); `sum`, `mean`, `max`, `min`, `last` of `value`;
    `std` = population standard deviation of `value`; `decayed_count` and `decayed_sum` = sum of 2^(-(t - ts) / half_life), or of `value` times
    that; `recency` = seconds since the newest event; `distinct` = number of different `value`.
    Without any event: 0 for count, sum, distinct and the decayed ones; the prior for rate; missing for mean, max, min, std, last and recency.
    """

    kind: Literal["cross_feature"] = "cross_feature"
    op: OperationName
    source: Name
    """The event log counted; for `rate` the numerator's."""
    per: Name | None = None
    """`rate`: the denominator's event log (impressions). Without it, `where` over `source` is the numerator and all of
    `source` the denominator."""
    keys: tuple[str, ...] = ()
    window: Duration
    value: str | None = None
    """The event's column summed, averaged, kept or counted distinct; or a snapshot's (`"items.category"`)."""
    where: str | None = None
    """SQL condition on the event's columns and its snapshots'."""
    prior: float = Field(default=0.0, ge=0)
    strength: float = Field(default=0.0, ge=0)
    """Pseudo-count of the prior in `rate`."""
    reduce: Reduction | None = None
    """Of a key that is a list: how the values at its ids become one; default `mean`. `sum` is for operations that are 0 without events."""
    half_life: Duration | None = None
    """`decayed_count` and `decayed_sum`: after how long an event counts half. The window still bounds what is read, and may be 64 half-lives
    long: one of 30 leaves out less than a billionth of a steady stream."""
    as_of: Literal["exposure", "window_start"] = "exposure"
    """`window_start` is the cheaper snapshot: the statistic as of the day's start, one value for the whole day."""
    transform: Transform | None = None
    """How the number is encoded; default `Log1p()`, and `Dense()` for rates."""
    table: Table | None = None
    """`last` of an id: its table."""

    @property
    def operation(self) -> Operation:
        """What `op` names."""
        return operation_of(self.op)

    @property
    def reduction(self) -> Reduction:
        """`reduce`, the default resolved."""
        return self.reduce or "mean"

    # ------------------------------------------------------------------ what it reads

    @property
    def past_logs(self) -> tuple[str, ...]:
        """`source`, and `per` if given."""
        return (self.source, self.per) if self.per else (self.source,)

    @property
    def exposure_keys(self) -> tuple[str, ...]:
        """`keys`."""
        return self.keys

    def past_references(self, log: str) -> frozenset[str]:
        """Of `source`: the value and the columns of the condition."""
        if log != self.source:
            return frozenset()
        return frozenset([*([self.value] if self.value else []), *(columns(self.where) if self.where else ())])

    def lineage(self, group: str, scope: Scope) -> Iterator[tuple[str, Collection[str]]]:
        """The keys on both sides, the value and the condition."""
        for source in dict.fromkeys((scope.exposures_name, *self.past_logs)):
            yield source, self.keys
        yield (
            self.source,
            [*([self.value] if self.value is not None else []), *(columns(self.where) if self.where else ())],
        )

    # ------------------------------------------------------------------ how it is stored and encoded

    @property
    def stored(self) -> Stored:
        """As a number; `last` with a table as an id."""
        return "id" if self._kept_as_id else "number"

    @property
    def _kept_as_id(self) -> bool:
        return bool(self.operation.id_types and self.table)

    @property
    def shared_table(self) -> Table | None:
        """`table`."""
        return self.table

    @property
    def number_transform(self) -> Transform | None:
        """Of a number: `transform`, or the operation's own."""
        return None if self._kept_as_id else self.transform or self.operation.default_transform

    def samples_meaning(self, group: str, scope: Scope) -> Meaning:
        """Every argument, and what it reads of both sides."""
        logs = [scope.event_logs[name] for name in self.past_logs]
        exposures = scope.event_logs[scope.exposures_name]
        known = scope.snapshots
        listed = self._lists(scope.joined(exposures.columns))
        return {
            "op": self.op,
            "logs": [rows_meaning(log) for log in logs],
            "keys": sorted(
                [key, *(references_meaning(known, log, [key]) for log in (exposures, *logs))] for key in self.keys
            ),
            "window": self.window,
            "value": references_meaning(known, logs[0], [self.value]) if self.value else None,
            "where": sql_meaning(known, logs[0], self.where),
            "prior": self.prior,
            "strength": self.strength,
            "as_of": self.as_of,
            **({"half_life": self.half_life} if self.half_life else {}),
            **({"reduce": self.reduction} if listed else {}),
        }

    # ------------------------------------------------------------------ its mistakes

    def mistakes(self, at: str, group: str, scope: Scope) -> Iterator[str]:
        """Which events it counts, by which keys, and what of each."""
        if group != CANDIDATES:
            yield f"{at}: a cross feature is a statistic as of an exposure; declare it under candidates, also where only the user is its key"
            return
        operation, logs = self.operation, scope.event_logs
        window = parse_duration(self.window)
        if window > LONGEST_WINDOW_MS:
            yield f"{at}: window {self.window} is longer than the 90d of events that a day reads, the most there is; shorten it"
        if window == 0:
            yield f'{at}: window is 0, so no event is counted; write for example window="7d"'
        if self.per is not None and not operation.takes_per:
            yield f"{at}: {self.op} takes no `per`; drop it, or use {_ops(lambda o: o.takes_per, quoted=True)}"
        for name in dict.fromkeys((self.source, *([self.per] if self.per and operation.takes_per else []))):
            if name not in logs:
                yield f"{at}: source {scope.unknown_log(name)}"
                continue
            yield from self._key_mistakes(at, group, scope, logs[name])
        for name in twice(self.keys):
            yield f"{at}: keys name {name!r} twice"
        yield from self._reduce_mistakes(at, scope.offered(group))
        if self.source in logs:
            yield from self._value_mistakes(at, scope, logs[self.source])
            if self.where is not None:
                yield from condition_mistakes(f"{at}: where", self.where, scope.joined(logs[self.source].columns))
        if not operation.takes_prior and (self.prior or self.strength):
            yield f"{at}: prior and strength smooth a rate; {self.op} takes none"
        yield from self._half_life_mistakes(at, window)
        yield from operation.mistakes(at, self)
        if self.table and not operation.id_types:
            yield f"{at}: {self.op} is a number and takes no table; bucket it with transform=QuantileBuckets(...)"
        if self.table and self.transform:
            yield f"{at}: both table and transform are given; a table for an id, a transform for a number"

    def _half_life_mistakes(self, at: str, window: int) -> Iterator[str]:
        if not self.operation.takes_half_life:
            if self.half_life is not None:
                yield f"{at}: {self.op} takes no half_life; drop it, or use {_ops(lambda o: o.takes_half_life, quoted=True)}"
            return
        half_life = parse_duration(self.half_life) if self.half_life else 0
        if not half_life:
            yield f'{at}: {self.op} needs half_life=, after how long an event counts half; write for example half_life="1d"'
        elif window > MOST_HALF_LIVES * half_life:
            longest = format_duration(MOST_HALF_LIVES * half_life)
            yield f"{at}: window {self.window} is more than {MOST_HALF_LIVES} half-lives of {self.half_life}, and what is older counts nothing; shorten it to {longest}"

    def _lists(self, types: Types) -> list[str]:
        """Keys that are lists."""
        return [key for key in dict.fromkeys(self.keys) if types.get(key) in ID_LISTS]

    def _reduce_mistakes(self, at: str, types: Types) -> Iterator[str]:
        listed = self._lists(types)
        if len(listed) > 1:
            yield f"{at}: keys {and_(map(repr, listed))} are lists; one key at most may be, so count by one of them, or by a column of pairs"
        if not listed:
            if self.reduce is not None and all(key in types for key in self.keys):
                yield f"{at}: reduce={self.reduce!r} makes one value of those at the ids of a list, and no key is a list; drop it"
        elif self._kept_as_id:
            yield f"{at}: {self.op} with a table is an id for each id of {listed[0]!r}, and ids don't become one; drop the table, or count by another key"
        elif self.reduce == "sum" and self.operation.missing != "0":
            yield f"{at}: reduce='sum' adds up what is 0 without events, and {self.op} is {self.operation.missing}; use mean, max or min"

    def _key_mistakes(self, at: str, group: str, scope: Scope, log: EventLog) -> Iterator[str]:
        exposures = scope.event_logs.get(scope.exposures_name)
        if exposures is None:
            return
        ours = scope.offered(group)
        theirs = scope.joined(log.columns)
        for key in self.keys:
            if key not in ours:
                yield f"{at}: key {scope.unknown_column(group, key)}"
            elif key not in theirs:
                snapshot, _ = split(key)
                through = f" (nor {scope.snapshots[snapshot].key!r}, the key of {snapshot})" if snapshot else ""
                yield f"{at}: events of {log.name} have no column {key!r}{through}; add it to the source, or drop the key"
            elif ours[key] not in (*IDS, *ID_LISTS):
                yield f"{at}: key {key!r} is of type {ours[key]}; a key is of type int64, int32, bool or string, or a list of int64 or string"
            elif families([ours[key]]) != families([theirs[key]]):
                yield f"{at}: key {key!r} is {ours[key]} in {exposures.name} but {theirs[key]} in {log.name}: they would never meet"

    def _value_mistakes(self, at: str, scope: Scope, log: EventLog) -> Iterator[str]:
        operation, types = self.operation, scope.joined(log.columns)
        if operation.needs_value and self.value is None:
            yield f"{at}: {self.op} needs value=, a column of {log.name}"
        elif self.value is not None and not operation.needs_value:
            yield f"{at}: {self.op} takes no value; drop it, or use {_ops(lambda o: o.needs_value)}"
        elif self.value is not None and self.value not in types:
            yield f"{at}: value {self.value!r} is not a column of {log.name}{nearest(self.value, types)}"
        elif self.value is not None:
            type_ = types[self.value]
            if type_ not in (operation.id_types if self._kept_as_id else operation.value_types):
                remedy = (
                    "; give it a table to keep it as an id" if not self.table and type_ in operation.id_types else ""
                )
                yield f"{at}: {self.op} of {self.value!r}, which is of type {type_}{remedy}"
            elif self.table:
                yield from self.table.vocabulary.id_mistakes(at, self.value, text=type_ == "string")

    def id_space(self, group: str, scope: Scope) -> str | None:
        """Of its value's column."""
        log = scope.event_logs.get(self.source)
        return id_space(scope.joined(log.columns).get(self.value or "")) if log else None

    def advice(self) -> Iterator[str]:
        """Of its operation and transform, and a short window as of the day's start."""
        if self.as_of == "window_start" and parse_duration(self.window) < DAY_MS:
            yield (
                f"as of the day's start, a window of {self.window} is stale by up to a day; use as_of='exposure' or a longer window"
            )
        yield from self.operation.advice(self)
        if self.number_transform:
            for line in self.number_transform.advice(long_tail=self.operation.long_tail):
                yield f"{self.op} {line}" if line.startswith("has ") else line

    # ------------------------------------------------------------------ its words

    def value_in_words(self) -> str:
        """`rate of clicks over exposures by user_id and items.category in 30d`."""
        of = f" of {self.value}" if self.value else ""
        over = f" over {self.per}" if self.per else ""
        where = f" where {self.where}" if self.where else ""
        by = f" by {' and '.join(self.keys)}" if self.keys else " over all users"
        smoothed = self.operation.takes_prior and self.strength
        prior = f", towards {self.prior:g} with strength {self.strength:g}" if smoothed else ""
        halved = f", halved every {self.half_life}" if self.half_life else ""
        reduced = f", {self.reduce} over the list" if self.reduce else ""
        when = ", as of the day's start" if self.as_of == "window_start" else ""
        return f"{self.op}{of} {'in' if of else 'of'} {self.source}{over}{where}{by} in {self.window}{halved}{prior}{when}{reduced}"


def _ops(having: Callable[[Operation], bool], *, quoted: bool = False) -> str:
    """`sum, mean, max, min, last or distinct`; quoted, `op='rate'`."""
    names = [f"op={name!r}" if quoted else name for name in operation_names() if having(operation_of(name))]
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))

"""What a change of the schema costs: nothing, a retraining that starts from the checkpoint, or a rebuild of samples.

    for change in diff(old, new):
        print(change)

    candidates.clicks_7d: window 7d -> 30d | rebuild: candidates.clicks_7d of every day
    table items: capacity 1000 -> 2000 | retrain: 1,002 rows carry over, 1,000 new ones start fresh

What costs is decided by `derive.fingerprints`, so it can't disagree with the fingerprints: there is a rebuild among the changes exactly if
samples of `old` don't serve `new`, and a retraining exactly if the model fingerprints differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from genrank.schemas.base import CANDIDATES, USER
from genrank.schemas.derive.fingerprints import model_meaning, samples_meaning
from genrank.schemas.derive.tables import logical_tables
from genrank.schemas.errors import UserError
from genrank.schemas.features import Feature
from genrank.schemas.schema import Schema
from genrank.schemas.source import EventLog, Snapshot
from genrank.schemas.source_meaning import Meaning
from genrank.schemas.table import LogicalTable
from genrank.schemas.transforms import Transform

Cost = Literal["nothing", "retrain", "rebuild"]
COSTS: tuple[Cost, ...] = ("rebuild", "retrain", "nothing")
"""Dearest first."""


@dataclass(frozen=True)
class Change:
    """One difference between two schemas."""

    where: str
    """`candidates.price`, `table items`, `label buy`, `source clicks`, `sequence history`, `candidates`, `user`, `training`."""
    what: str
    cost: Cost
    consequence: str
    """What is rebuilt, what carries over, or why it costs nothing."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what} | {self.cost}: {self.consequence}"


def diff(old: Schema, new: Schema) -> list[Change]:
    """Every change, the dearest first; empty if the fingerprints agree. A feature that is renamed is removed and added."""
    if old.fingerprint == new.fingerprint:
        return []  # such as keys in another order
    costs = _Costs(old, new)
    changes = [
        *_fields("schema", old, new, costs, ("name", "utc_offset"), {"utc_offset": "days"}),
        *_sources(old, new, costs),
        *_fields(USER, old.user, new.user, costs, ("tokens", "token_groups")),
        *_sequences(old, new, costs),
        *_fields(CANDIDATES, old.candidates, new.candidates, costs, _own(new.candidates, "features")),
        *_features(old, new, costs),
        *_tables(old, new),
        *_labels(old, new, costs),
        *_fields("training", old.training, new.training, costs, _own(new.training)),
    ]
    changes += costs.unexplained()
    return sorted(dict.fromkeys(changes), key=lambda change: COSTS.index(change.cost))


def compatible_samples(old: Schema, new: Schema) -> list[str]:
    """Why samples built with `old` don't serve `new`, a reason a line; empty if they do.

    They serve if every column that `new` stores is among those of `old` and means the same: its own declaration, and which rows of
    which sources count. Fewer features, another vocabulary, dim, bucketing, table or training view need no rebuild.
    """
    stored, wanted = samples_meaning(old), samples_meaning(new)
    return [
        f"{part} is not in the samples" if part not in stored else f"{part} means something else in the samples"
        for part in _to_rebuild(stored, wanted)
    ]


def require_samples(old: Schema, new: Schema, where: str) -> None:
    """UserError that begins with `where` and says what changed, unless samples built with `old` serve `new`."""
    if compatible_samples(old, new):
        message = in_one_line([change for change in diff(old, new) if change.cost == "rebuild"])
        raise UserError(
            f"{where} were built with a schema of other meaning ({message}); build them again, or train with that one"
        )


def in_one_line(changes: list[Change], most: int = 5) -> str:
    """The first of the changes, for an error's one line; `genrank schema diff` shows all."""
    message = "; ".join(f"{change.where}: {change.what}" for change in changes[:most])
    return message + (f"; and {len(changes) - most} more" if len(changes) > most else "")


def carried_rows(old: LogicalTable, new: LogicalTable) -> int | None:
    """How many rows of a table keep their ids' weights under the new declaration, from row 0 up.

    None if the table has to start afresh (`--reset-table`), because rows are of another width or ids would meet other ids' rows.
    """
    before, after = old.vocabulary, new.vocabulary
    if old.dim != new.dim or before.kind != after.kind:
        return None
    return old.rows if before.carries_over(after) else None


# ---------------------------------------------------------------------- what costs


class _Costs:
    """Which parts of samples and model differ, and which of them a change has explained."""

    def __init__(self, old: Schema, new: Schema) -> None:
        self.stored, self.wanted = samples_meaning(old), samples_meaning(new)
        self.rebuild = _to_rebuild(self.stored, self.wanted)
        before, after = model_meaning(old), model_meaning(new)
        self.retrain = [part for part in sorted({*before, *after}) if before.get(part) != after.get(part)]
        self.reported: set[tuple[Cost, str]] = set()

    def of(self, part: str) -> Cost:
        """What a change of this part costs."""
        if part in self.rebuild:
            self.reported |= {("rebuild", part), ("retrain", part)}
            return "rebuild"
        if part in self.retrain:
            self.reported.add(("retrain", part))
            return "retrain"
        return "nothing"

    def reading(self, source: str) -> list[str]:
        """Stored parts to rebuild that read a source."""
        return [
            part for part in self.rebuild if f'"{source}"' in json.dumps([self.wanted[part], self.stored.get(part)])
        ]

    def explain(self, parts: list[str]) -> None:
        self.reported |= {("rebuild", part) for part in parts}

    def unexplained(self) -> Iterator[Change]:
        """Parts that differ only through another, such as a label given one whose window changed."""
        for part in self.rebuild:
            if ("rebuild", part) not in self.reported:
                yield Change(part, "rests on what changed", "rebuild", _days(part))
        for part in self.retrain:
            if ("retrain", part) not in self.reported and not part.startswith("table "):
                yield Change(
                    part, "rests on what changed", "retrain", "its dense layers start fresh; every table carries over"
                )


def _to_rebuild(stored: Meaning, wanted: Meaning) -> list[str]:
    def serves(part: str) -> bool:
        have, want = stored.get(part), wanted[part]
        if isinstance(have, dict) and "max_values" in have and want.get("max_values", 0) <= have["max_values"]:
            have, want = have | {"max_values": 0}, want | {"max_values": 0}  # the reader keeps the first so many
        return bool(have == want)

    return [part for part in wanted if not serves(part)]


def _days(part: str) -> str:
    if part == "days":
        return "every day, whole: days begin at another moment"
    whole = "." not in part
    return f"{'every column of ' if whole else ''}{part} of every day"


# ---------------------------------------------------------------------- changes, declaration by declaration

_COSTLESS: dict[str, str] = {
    "name": "a name has no meaning",
    "path": "where rows lie, not what they mean; the next build compares the files themselves",
    "catalog": "where rows lie, not what they mean; the next build compares the files themselves",
    "partition": "where rows lie, not what they mean",
    "max_quarantine_rate": "the next build's gate uses it",
    "post_exposure": "a rule for declarations; nothing is stored of it",
    "columns": "no feature reads the columns that changed",
    "weight": "the loss of the next training step uses it",
    "positive_weight": "the loss of the next training step uses it",
    "view": "a view the reader makes of the same samples",
    "session_gap": "a view the reader makes of the same samples",
    "initializer": "only rows that are still to come start so",
    "optimizer": "the next training step uses it",
    "vocabulary": "decides about rows that are still to come",
}
_SOURCE_MEANING = (
    "rename",
    "columns",
    "valid",
    "user",
    "time",
    "time_unit",
    "arrival",
    "delay",
    "lateness",
    "dedup",
    "key",
    "max_age",
    "kind",
)


def _fields(
    where: str,
    old: BaseModel,
    new: BaseModel,
    costs: _Costs,
    names: tuple[str, ...],
    parts: Mapping[str, str] | None = None,
) -> Iterator[Change]:
    for name in names:
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        part = (parts or {}).get(name, where.removeprefix("sequence "))
        cost = "nothing" if name in _COSTLESS else costs.of(part)
        yield Change(where, _changed(name, before, after), cost, _consequence(cost, name, part))


def _consequence(cost: Cost, field: str, part: str) -> str:
    if cost == "rebuild":
        return _days(part)
    if cost == "retrain":
        return f"the dense layers of {part} start fresh; every table carries over"
    return _COSTLESS.get(field, "nothing that is stored or learned depends on it")


def _sources(old: Schema, new: Schema, costs: _Costs) -> Iterator[Change]:
    before, after = ({source.name: source for source in schema.sources} for schema in (old, new))
    for name in sorted({*before, *after}):
        where = f"source {name}"
        if name not in after:
            yield Change(where, "removed", "nothing", "samples keep what was read of it")
        elif name not in before:
            yield Change(where, "added", "nothing", "it costs what reads it")
        else:
            yield from _source(where, before[name], after[name], costs)


def _source(where: str, old: EventLog | Snapshot, new: EventLog | Snapshot, costs: _Costs) -> Iterator[Change]:
    for field in dict.fromkeys((*type(old).model_fields, *type(new).model_fields)):
        before, after = getattr(old, field, None), getattr(new, field, None)
        if before == after or field == "description":
            continue
        parts = costs.reading(new.name) if field in _SOURCE_MEANING else []
        if parts:
            costs.explain(parts)
            groups = [part for part in parts if "." not in part]
            named = groups or parts
            message = ", ".join(_days(part).removesuffix(" of every day") for part in named) + " of every day"
            yield Change(where, _changed(field, before, after), "rebuild", message)
        else:
            yield Change(where, _changed(field, before, after), "nothing", _consequence("nothing", field, where))


def _sequences(old: Schema, new: Schema, costs: _Costs) -> Iterator[Change]:
    before, after = ({s.name: s for s in schema.sequences} for schema in (old, new))
    for name in sorted({*before, *after}):
        where = f"sequence {name}"
        if name not in after:
            costs.of(name), costs.of("groups")
            yield Change(
                where,
                "removed",
                "retrain",
                "samples may keep it; its dense layers are dropped, shared tables carry over",
            )
        elif name not in before:
            costs.of("groups")
            yield Change(where, "added", costs.of(name), _days(name))
        else:
            yield from _fields(
                where, before[name], after[name], costs, _own(after[name], "features", "name", "type_dim")
            )
    order = [[s.name for s in schema.histories if s.name in before and s.name in after] for schema in (old, new)]
    if order[0] != order[1]:
        yield Change(
            "sequences",
            f"order {order[0]} -> {order[1]}",
            costs.of("groups"),
            "tokens stand in another order; every table carries over",
        )


def _features(old: Schema, new: Schema, costs: _Costs) -> Iterator[Change]:
    before, after = dict(old.groups()), dict(new.groups())
    for group in dict.fromkeys((*before, *after)):
        olds: dict[str, Feature] = {f.name: f for f in before.get(group, ())}
        news: dict[str, Feature] = {f.name: f for f in after.get(group, ())}
        for name in dict.fromkeys((*olds, *news)):
            part = f"{group}.{name}"
            if name not in news:
                costs.of(part), costs.of(group)
                yield Change(
                    part,
                    "removed",
                    "retrain",
                    "samples may keep it; its inputs are dropped, every other weight carries over",
                )
            elif name not in olds:
                cost = costs.of(part)
                fresh = "its inputs start fresh, every other weight carries over"
                yield Change(part, "added", cost, f"{_days(part)}; {fresh}" if cost == "rebuild" else fresh)
            else:
                yield from _feature(part, olds[name], news[name], costs)


def _feature(part: str, old: Feature, new: Feature, costs: _Costs) -> Iterator[Change]:
    if old.kind != new.kind:
        yield Change(part, f"{old.kind} -> {new.kind}", cost := costs.of(part), _feature_consequence(cost, part))
        return
    for field in type(new).model_fields:
        before, after = getattr(old, field), getattr(new, field)
        if before == after or field in ("description", "owner", "vocabulary", "dim"):
            continue  # a vocabulary of its own is reported as a table
        if field == "table" and before and after and before.name == after.name:
            continue
        cost = costs.of(part)
        message = _feature_consequence(cost, part)
        if (
            isinstance(before, Transform)
            and isinstance(after, Transform)
            and cost == "retrain"
            and before.moves_rows(after)
        ):
            message = f"its table starts afresh: --reset-table {part}"
        yield Change(part, _changed(field, before, after), cost, message)


def _feature_consequence(cost: Cost, part: str) -> str:
    if cost == "rebuild":
        return _days(part)
    return (
        "its inputs start fresh, every other weight carries over"
        if cost == "retrain"
        else "the same samples and weights serve"
    )


def _tables(old: Schema, new: Schema) -> Iterator[Change]:
    before, after = ({table.name: table for table in logical_tables(schema)} for schema in (old, new))
    for name in sorted({*before, *after}):
        where = f"table {name}"
        if name not in after:
            yield Change(where, "removed", "retrain", f"its {before[name].rows:,} rows are dropped")
        elif name not in before:
            yield Change(where, "added", "retrain", f"its {after[name].rows:,} rows start fresh")
        else:
            yield from _table(where, before[name], after[name])


def _table(where: str, old: LogicalTable, new: LogicalTable) -> Iterator[Change]:
    rows = carried_rows(old, new)
    for field in ("dim", "vocabulary"):
        before, after = getattr(old, field), getattr(new, field)
        if before == after:
            continue
        # Such as admission and eviction.
        only_policy = field == "vocabulary" and old.vocabulary.model_meaning() == new.vocabulary.model_meaning()
        if only_policy:
            message, cost = _COSTLESS["vocabulary"], "nothing"
        elif rows is None:
            message, cost = f"it starts afresh: --reset-table {old.name}", "retrain"
        else:
            message, cost = f"{rows:,} rows carry over, {new.rows - rows:,} new ones start fresh", "retrain"
        yield Change(where, _changed(field, before, after), "nothing" if cost == "nothing" else "retrain", message)
    if old.optimizer.kind != new.optimizer.kind:
        message = f"it starts afresh: --reset-table {old.name}"
        yield Change(where, f"optimizer {old.optimizer.kind} -> {new.optimizer.kind}", "retrain", message)
    for field in ("initializer", "optimizer"):
        before, after = getattr(old, field), getattr(new, field)
        if before != after and not (field == "optimizer" and before.kind != after.kind):
            yield Change(where, _changed(field, before, after), "nothing", _COSTLESS[field])


def _labels(old: Schema, new: Schema, costs: _Costs) -> Iterator[Change]:
    before, after = ({label.name: label for label in schema.labels} for schema in (old, new))
    for name in sorted({*before, *after}):
        where, part = f"label {name}", f"labels.{name}"
        if name not in after:
            costs.of(part)
            yield Change(
                where, "removed", "retrain", "samples may keep it; its head is dropped, every other weight carries over"
            )
        elif name not in before:
            costs.explain([f"{part}_oracle"])
            yield Change(where, "added", costs.of(part), f"{part} of every day; its head starts fresh")
        else:
            parts = {"oracle": f"{part}_oracle"}
            names = _own(after[name], "name")
            yield from _fields(where, before[name], after[name], costs, names, dict.fromkeys(names, part) | parts)


# ---------------------------------------------------------------------- words


def _own(declaration: BaseModel, *but: str) -> tuple[str, ...]:
    return tuple(name for name in type(declaration).model_fields if name not in but)


def _changed(field: str, before: object, after: object) -> str:
    """`window 7d -> 30d`; of declarations and dicts, only what differs."""
    if isinstance(before, BaseModel) and type(before) is type(after):
        pairs = {name: (getattr(before, name), getattr(after, name)) for name in type(before).model_fields}
        return ", ".join(_changed(name, a, b) for name, (a, b) in pairs.items() if a != b)
    if isinstance(before, dict) and isinstance(after, dict):
        message = [
            f"{k} {_short(before.get(k))} -> {_short(after.get(k))}"
            for k in dict.fromkeys((*before, *after))
            if before.get(k) != after.get(k)
        ]
        return f"{field}: " + ", ".join(message[:4]) + (", ..." if len(message) > 4 else "")
    return f"{field} {_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    if isinstance(value, BaseModel):
        name = getattr(value, "name", None)
        text = str(name) if name else f"{type(value).__name__}({value})"
    elif isinstance(value, tuple):
        text = f"[{', '.join(_short(item) for item in value)}]"
    else:
        text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""What a row of each token group offers, and what each feature reads of it.

A reference is `column` (of the row itself) or `snapshot.column` (joined where the row has a column named as the snapshot's key).

| group | its row | own columns |
|---|---|---|
| `user` | the user at the window's start | the user column |
| a sequence | an event, or a change point | those of its event log; for a change point the changed column |
| `candidates` | an exposure | those known when it was shown: all but post-exposure and oracle columns |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from genrank.schemas import expression
from genrank.schemas.base import ColumnType
from genrank.schemas.features import Categorical, CrossFeature, Feature, HashedCross, MultiValued, Numeric, Sql, TimeGap
from genrank.schemas.group import CANDIDATES, USER, ChangePoints, Events
from genrank.schemas.source import EventLog, Snapshot

if TYPE_CHECKING:
    from genrank.schemas.schema import Schema

Types = Mapping[str, ColumnType]


def event_logs(schema: Schema) -> dict[str, EventLog]:
    """Event logs by name."""
    return {source.name: source for source in schema.sources if isinstance(source, EventLog)}


def snapshots(schema: Schema) -> dict[str, Snapshot]:
    """Snapshots by name."""
    return {source.name: source for source in schema.sources if isinstance(source, Snapshot)}


def joined(schema: Schema, own: Types) -> dict[str, ColumnType]:
    """Own columns, and those of every snapshot whose key is one of them as `snapshot.column`."""
    types = dict(own)
    for name, snapshot in snapshots(schema).items():
        if snapshot.key in own:
            types |= {f"{name}.{column}": type_ for column, type_ in snapshot.columns.items()}
    return types


def hidden_from_candidates(schema: Schema) -> dict[str, str]:
    """Columns of the exposures that no feature of a candidate may read, each with the reason."""
    log = event_logs(schema).get(schema.candidates.source)
    reasons = dict.fromkeys(log.post_exposure if log else (), "is known only after the exposure")
    if log and log.arrival:
        reasons[log.arrival] = "is when the row became readable, after the exposure"
    reasons |= {label.column: f"is the label {label.name!r}" for label in schema.labels if label.column}
    reasons |= {label.oracle: f"is the oracle of {label.name!r}" for label in schema.labels if label.oracle}
    return reasons


def rows(schema: Schema, group: str) -> list[tuple[str, dict[str, ColumnType]]]:
    """(source name, what its rows offer to a feature) for every kind of row in a token group."""
    logs, states = event_logs(schema), snapshots(schema)
    exposures = logs.get(schema.candidates.source)
    if group == CANDIDATES:
        hidden = hidden_from_candidates(schema)
        own = {c: t for c, t in exposures.columns.items() if c not in hidden} if exposures else {}
        return [(schema.candidates.source, joined(schema, own))]
    if group == USER:
        user = exposures.user if exposures else ""
        own = {user: exposures.columns[user]} if exposures and user in exposures.columns else {}
        return [(schema.candidates.source, joined(schema, own))]
    found: list[tuple[str, dict[str, ColumnType]]] = []
    for event in next((s.events for s in schema.sequences if s.name == group), ()):
        if isinstance(event, Events) and event.source in logs:
            found.append((event.source, joined(schema, logs[event.source].columns)))
        types = states[event.source].columns if isinstance(event, ChangePoints) and event.source in states else {}
        if isinstance(event, ChangePoints) and (type_ := types.get(event.column)):
            found.append((event.source, {event.column: type_, f"{event.source}.{event.column}": type_}))
    return found


def offered(schema: Schema, group: str) -> dict[str, ColumnType]:
    """What a feature of the group may read. A reference that only some of a sequence's sources offer is missing elsewhere."""
    types: dict[str, ColumnType] = {}
    for _, own in rows(schema, group):
        types = own | types
    return types


def column_of(feature: Feature) -> str | None:
    """The one reference a plain feature reads; None for derived ones, cross features and SQL."""
    if isinstance(feature, Categorical | MultiValued | Numeric):
        return feature.column or feature.name
    return feature.column if isinstance(feature, TimeGap) else None


def reads(feature: Feature) -> tuple[str, ...]:
    """Every reference the feature reads of its own row. ValueError if its SQL doesn't parse."""
    if isinstance(feature, Sql):
        return expression.columns(feature.expression)
    column = column_of(feature)
    return (column,) if column else ()


def lineage(schema: Schema) -> dict[tuple[str, str], list[str]]:
    """(source, column) -> who reads it: features (`candidates.price`), `label click`, `sequence history`, `candidates`.

    A joined reference reads the snapshot's column and, to find it, the key on both sides. What only says which rows there are
    (user, times, dedup, valid) isn't told.
    """
    found: dict[tuple[str, str], list[str]] = {}
    known = snapshots(schema)

    def note(reader: str, source: str, references: Iterable[str | None]) -> None:
        for reference in references:
            if reference is None:
                continue
            snapshot, column = split(reference)
            homes = [(source, column)]
            if snapshot in known and snapshot != source:
                key = known[snapshot].key
                homes = [(snapshot, column), (snapshot, key), (source, key)]
            for home in homes:
                readers = found.setdefault(home, [])
                if reader not in readers:
                    readers.append(reader)

    def sql(text: str | None) -> tuple[str, ...]:
        return expression.columns(text) if text else ()

    exposures = schema.candidates.source
    note(CANDIDATES, exposures, [schema.candidates.item, schema.candidates.request])
    for sequence in schema.sequences:
        for event in sequence.events:
            read = sql(event.where) if isinstance(event, Events) else (event.column,)
            note(f"sequence {sequence.name}", event.source, read)
    for group, features in schema.groups():
        for feature in features:
            reader = f"{group}.{feature.name}"
            if isinstance(feature, CrossFeature):
                for source in dict.fromkeys((exposures, feature.source, *([feature.per] if feature.per else []))):
                    note(reader, source, feature.keys)
                note(reader, feature.source, [feature.value, *sql(feature.where)])
                continue
            for home, part in _parts(schema, group, feature):
                for source, own in rows(schema, home):
                    note(reader, source, [reference for reference in reads(part) if reference in own])
    for label in schema.labels:
        reader = f"label {label.name}"
        note(reader, exposures, [label.column, label.oracle])
        if label.source:
            note(reader, exposures, label.on)
            note(reader, label.source, [*label.on, label.value, *sql(label.where)])
    return found


def _parts(schema: Schema, group: str, feature: Feature) -> list[tuple[str, Feature]]:
    """(group, feature) of the features a crossed one is made of; any other is its own."""
    if not isinstance(feature, HashedCross):
        return [(group, feature)]
    known = {f"{home}.{f.name}": (home, f) for home, features in schema.groups() for f in features}
    return [known[name if name in known else f"{group}.{name}"] for name in feature.of]


def split(reference: str) -> tuple[str | None, str]:
    """(snapshot or None, column)."""
    snapshot, _, column = reference.rpartition(".")
    return snapshot or None, column


def families(types: Iterable[ColumnType]) -> set[str]:
    """Types up to width: ids of int32 and int64 columns are the same ids."""
    widths = {"int32": "int", "int64": "int", "float32": "float", "float64": "float"}
    return {widths.get(type_, type_) for type_ in types}

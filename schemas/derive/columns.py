"""What a row of each token group offers, and what each feature reads of it.

A reference is `column` (of the row itself) or `snapshot.column` (joined where the row has a column named as the snapshot's key).

| group | its row | own columns |
|---|---|---|
| `user` | the user at the window's start | the user column |
| a sequence | an event, or a change point | those of its event log; for a change point the changed column |
| `candidates` | an exposure | those known when it was shown: all but post-exposure and oracle columns |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

from genrank.schemas.base import CANDIDATES, USER, ColumnType
from genrank.schemas.declaration import SchemaDeclaration
from genrank.schemas.expression import nearest
from genrank.schemas.features import Feature
from genrank.schemas.group import ChangePoints, Events
from genrank.schemas.messages import and_
from genrank.schemas.source import EventLog, Snapshot
from genrank.schemas.type_rules import Types, split


def event_logs(schema: SchemaDeclaration) -> dict[str, EventLog]:
    """Event logs by name."""
    return {source.name: source for source in schema.sources if isinstance(source, EventLog)}


def snapshots(schema: SchemaDeclaration) -> dict[str, Snapshot]:
    """Snapshots by name."""
    return {source.name: source for source in schema.sources if isinstance(source, Snapshot)}


def joined(schema: SchemaDeclaration, own: Types) -> dict[str, ColumnType]:
    """Own columns, and those of every snapshot whose key is one of them as `snapshot.column`."""
    types = dict(own)
    for name, snapshot in snapshots(schema).items():
        if snapshot.key in own:
            types |= {f"{name}.{column}": type_ for column, type_ in snapshot.columns.items()}
    return types


def hidden_from_candidates(schema: SchemaDeclaration) -> dict[str, str]:
    """Columns of the exposures that no feature of a candidate may read, each with the reason."""
    log = event_logs(schema).get(schema.candidates.source)
    reasons = dict.fromkeys(log.post_exposure if log else (), "is known only after the exposure")
    if log and log.arrival:
        reasons[log.arrival] = "is when the row became readable, after the exposure"
    reasons |= {label.column: f"is the label {label.name!r}" for label in schema.labels if label.column}
    reasons |= {label.oracle: f"is the oracle of {label.name!r}" for label in schema.labels if label.oracle}
    return reasons


def rows(schema: SchemaDeclaration, group: str) -> list[tuple[str, dict[str, ColumnType]]]:
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


def offered(schema: SchemaDeclaration, group: str) -> dict[str, ColumnType]:
    """What a feature of the group may read. A reference that only some of a sequence's sources offer is missing elsewhere."""
    types: dict[str, ColumnType] = {}
    for _, own in rows(schema, group):
        types = own | types
    return types


class SchemaScope:
    """A schema, as far as its features ask about it (`features.Scope`)."""

    def __init__(self, schema: SchemaDeclaration) -> None:
        self.schema = schema
        self._rows: dict[str, list[tuple[str, dict[str, ColumnType]]]] = {}

    @cached_property
    def event_logs(self) -> dict[str, EventLog]:
        """Event logs by name."""
        return event_logs(self.schema)

    @cached_property
    def snapshots(self) -> dict[str, Snapshot]:
        """Snapshots by name."""
        return snapshots(self.schema)

    @property
    def exposures_name(self) -> str:
        """The name of the log whose rows are ranked."""
        return self.schema.candidates.source

    @cached_property
    def _features(self) -> dict[str, dict[str, Feature]]:
        return {group: {feature.name: feature for feature in features} for group, features in self.schema.groups()}

    def features(self, group: str) -> Mapping[str, Feature]:
        """Features of a group by name."""
        return self._features[group]

    def rows(self, group: str) -> list[tuple[str, dict[str, ColumnType]]]:
        """As `rows`."""
        if group not in self._rows:
            self._rows[group] = rows(self.schema, group)
        return self._rows[group]

    def offered(self, group: str) -> Types:
        """As `offered`."""
        types: dict[str, ColumnType] = {}
        for _, own in self.rows(group):
            types = own | types
        return types

    def joined(self, own: Types) -> Types:
        """As `joined`."""
        return joined(self.schema, own)

    def unknown_log(self, name: str) -> str:
        """What to say of a source that is no event log."""
        if name in self.snapshots:
            return f"{name!r} is a snapshot; name an event log{nearest(name, self.event_logs)}"
        return f"{name!r} is unknown{nearest(name, self.event_logs)}"

    def request_mistakes(self, at: str) -> Iterator[str]:
        """Without a request, or with only some of it kept, there is nothing to compare with."""
        candidates = self.schema.candidates
        if candidates.request is None:
            yield f"{at}: candidates are compared within their request; give Candidates(request=...) the column of its id"
        if candidates.negative_keep_rate < 1:
            yield (
                f"{at}: with negative_keep_rate {candidates.negative_keep_rate:g} samples hold every positive of a request and "
                "only part of the rest, so a comparison would give the label away; set negative_keep_rate to 1"
            )

    def unknown_column(self, group: str, reference: str) -> str:
        """What to say of a reference that a group's features can't read."""
        snapshot, column = split(reference)
        known = self.snapshots
        sources = list(dict.fromkeys(source for source, _ in self.rows(group)))
        if group == CANDIDATES and reference in (hidden := hidden_from_candidates(self.schema)):
            return (
                f"column {reference!r} {hidden[reference]}: no feature of a candidate may read it; count past ones with a cross "
                "feature, or read it in a sequence"
            )
        if snapshot in known and column in known[snapshot].columns:
            has = " or ".join(sources) if group != USER else "the user group"
            return f"column {reference!r} can't be joined: {has} has no column {known[snapshot].key!r}, the key of {snapshot}"
        if snapshot and snapshot not in known:
            return f"column {reference!r}: there is no snapshot {snapshot!r}{nearest(snapshot, known)}"
        if snapshot:
            return f"column {column!r} is not in {snapshot}{nearest(column, known[snapshot].columns)}"
        where = and_(sources) if group != USER else "the user group"
        return f"column {reference!r} is not in {where}{nearest(reference, set(self.offered(group)))}"

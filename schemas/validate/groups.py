"""Mistakes of what is ranked and of what is remembered: candidates and sequences."""

from __future__ import annotations

from collections.abc import Iterator

from genrank.schemas.base import CANDIDATES, USER, parse_duration
from genrank.schemas.declaration import SchemaDeclaration
from genrank.schemas.derive.columns import SchemaScope, event_logs, hidden_from_candidates, joined, snapshots
from genrank.schemas.derive.tables import event_names
from genrank.schemas.expression import nearest
from genrank.schemas.group import ChangePoints, Events
from genrank.schemas.messages import and_, condition_mistakes, twice


def candidate_mistakes(schema: SchemaDeclaration) -> Iterator[str]:
    """Of the exposures that are ranked."""
    candidates, logs = schema.candidates, event_logs(schema)
    if candidates.source not in logs:
        yield f"candidates: source {SchemaScope(schema).unknown_log(candidates.source)}"
        return
    log = logs[candidates.source]
    hidden = hidden_from_candidates(schema)
    for role, column in (("item", candidates.item), ("request", candidates.request)):
        if column is None:
            continue
        if column not in log.columns:
            yield f"candidates: {role} column {column!r} is not in {log.name}{nearest(column, log.columns)}"
        elif log.columns[column] not in ("int32", "int64", "string"):
            yield f"candidates: {role} column {column!r} is of type {log.columns[column]}; an id is of type int64, int32 or string"
        elif column in hidden:
            yield f"candidates: {role} column {column!r} {hidden[column]}; candidates need one known when it was shown"
    if candidates.negative_keep_rate < 1 and not any(label.kind == "binary" for label in schema.labels):
        yield (
            f"candidates: negative_keep_rate {candidates.negative_keep_rate} without a binary label: nothing says what a "
            "negative is; set it to 1 or add a binary label"
        )


def token_group_mistakes(schema: SchemaDeclaration) -> Iterator[str]:
    """Of the groups of features that make tokens: every feature in one of them."""
    for group, declared, features in (
        (USER, schema.user.token_groups, schema.user.features),
        (CANDIDATES, schema.candidates.token_groups, schema.candidates.features),
    ):
        have = [feature.name for feature in features]
        named = [name for each in declared for name in each.features]
        for name in twice(each.name for each in declared):
            yield f"{group}: two token_groups are called {name!r}; rename one"
        for name in dict.fromkeys(named):
            if name not in have:
                yield f"{group}: token_groups name {name!r}, which is not a feature of {group}{nearest(name, have)}"
        for name in twice(named):
            yield f"{group}: token_groups name {name!r} twice; a feature is part of one token"
        if declared and (left := [name for name in have if name not in named]):
            yield f"{group}: no token group has {and_(left)}; add each to one, or a group for them"


def sequence_mistakes(schema: SchemaDeclaration) -> Iterator[str]:
    """Of sequences and the events they merge."""
    realtime = [sequence.name for sequence in schema.sequences if sequence.scope == "realtime"]
    if len(realtime) > 1:
        yield f"sequences {and_(realtime)} are both of scope realtime; merge them: one sequence takes events of several sources"
    for sequence in schema.sequences:
        at = f"sequence {sequence.name}"
        for name in twice(event_names(sequence)):
            yield f"{at}: two events are called {name!r}; distinguish them with name="
        for event in sequence.events:
            yield from _events(schema, at, event) if isinstance(event, Events) else _changes(schema, at, event)
        for name in sequence.interleave:
            names = [feature.name for feature in sequence.features]
            if name not in names:
                yield f"{at}: interleave {name!r} is not a feature of it{nearest(name, names)}"
        for name in twice(sequence.interleave):
            yield f"{at}: interleave names {name!r} twice"
        if parse_duration(sequence.lookback) == 0:
            yield f'{at}: lookback is 0, so nothing is kept; write for example lookback="90d"'


def _events(schema: SchemaDeclaration, at: str, event: Events) -> Iterator[str]:
    log = event_logs(schema).get(event.source)
    if log is None:
        yield f"{at}: source {SchemaScope(schema).unknown_log(event.source)}"
    elif event.where is not None:
        yield from condition_mistakes(
            f"{at}: where of {event.name or event.source}", event.where, joined(schema, log.columns)
        )


def _changes(schema: SchemaDeclaration, at: str, change: ChangePoints) -> Iterator[str]:
    known, exposures = snapshots(schema), event_logs(schema).get(schema.candidates.source)
    if change.source in event_logs(schema):
        yield f"{at}: ChangePoints of {change.source!r}, an event log; use Events(source={change.source!r}), or name a snapshot keyed by the user"
    elif change.source not in known:
        yield f"{at}: ChangePoints of unknown source {change.source!r}{nearest(change.source, known)}"
    else:
        snapshot = known[change.source]
        if exposures and snapshot.key != exposures.user:
            yield (
                f"{at}: ChangePoints of {change.source!r}, which is keyed by {snapshot.key!r}, not by the user ({exposures.user!r}); "
                "a user's sequence takes change points of the user's own attributes"
            )
        if change.column not in snapshot.columns:
            yield f"{at}: ChangePoints column {change.column!r} is not in {change.source}{nearest(change.column, snapshot.columns)}"

"""What a schema may say but had better not: each with the place, the reason and the remedy."""

from __future__ import annotations

from collections.abc import Iterator

from genrank.schemas import expression
from genrank.schemas.base import CANDIDATES, DAY_MS, parse_duration
from genrank.schemas.derive.columns import SchemaScope
from genrank.schemas.derive.lineage import lineage
from genrank.schemas.derive.sizes import sizes
from genrank.schemas.derive.tables import logical_tables, table_name
from genrank.schemas.features import Feature
from genrank.schemas.group import ChangePoints, Events
from genrank.schemas.schema import Schema
from genrank.schemas.source import EventLog, Snapshot
from genrank.schemas.table import LogicalTable
from genrank.schemas.type_rules import split

LARGE_BYTES = 64 * 2**30
"""Weights and optimizer state beyond what one accelerator of today holds."""


def lint(schema: Schema) -> list[str]:
    """Advice, one line each; none of it stops a build."""
    return list(
        dict.fromkeys([*_leaks(schema), *_unused(schema), *_features(schema), *_tables(schema), *_shape(schema)])
    )


# ---------------------------------------------------------------------- leaks


def _leaks(schema: Schema) -> Iterator[str]:
    exposures = schema.exposures
    for label in schema.labels:
        for role, column in (("column", label.column), ("oracle", label.oracle)):
            if column and column not in exposures.post_exposure:
                yield (
                    f"label {label.name}: {role} {column!r} is not among post_exposure of {exposures.name}; add it, so that no feature can "
                    "come to read it when the label goes"
                )
    for log in schema.sources:
        if not isinstance(log, EventLog) or not log.post_exposure or log.arrival or parse_duration(log.delay):
            continue
        for reader, read in _past_readers(schema, log.name):
            known_later = [column for column in read if column in log.post_exposure]
            if known_later:
                yield (
                    f"{reader}: it reads {known_later[0]!r} of past {log.name} as if known at the exposure itself; give {log.name} the "
                    "`arrival` column, or the `delay` after which outcomes are written"
                )


def _past_readers(schema: Schema, log: str) -> Iterator[tuple[str, set[str]]]:
    """(who, columns of the log read) for whatever looks at its past events."""
    for feature in schema.candidates.features:
        yield f"{CANDIDATES}.{feature.name}", set(feature.past_references(log))
    for sequence in schema.sequences:
        events = [event for event in sequence.events if isinstance(event, Events) and event.source == log]
        for event in events:
            yield f"sequence {sequence.name}", set(expression.columns(event.where)) if event.where else set()
        if events:
            for feature in sequence.features:
                yield f"{sequence.name}.{feature.name}", set(feature.references())


# ---------------------------------------------------------------------- what nobody reads


def _unused(schema: Schema) -> Iterator[str]:
    read = lineage(schema)
    entered = {event.source for sequence in schema.sequences for event in sequence.events}
    counted = {name for _, features in schema.groups() for feature in features for name in feature.past_logs}
    for source in schema.sources:
        if source.name not in {name for name, _ in read} | entered | counted:
            yield f"source {source.name}: nothing reads it; drop it, and builds no longer wait for its days"
            continue
        plumbing = {reference for condition in source.valid for reference in expression.columns(condition)}
        if isinstance(source, Snapshot):
            plumbing.add(source.key)
        else:
            plumbing |= {source.user, source.time, source.arrival or "", *source.dedup, *source.post_exposure}
        idle = [column for column in source.columns if (source.name, column) not in read and column not in plumbing]
        if idle:
            yield f"source {source.name}: nothing reads {', '.join(idle)}; fewer columns to keep make a faster build"
    for sequence in schema.sequences:
        for event in sequence.events:
            if isinstance(event, ChangePoints) and not any(
                event.column in f.references() or f"{event.source}.{event.column}" in f.references()
                for f in sequence.features
            ):
                yield (
                    f"sequence {sequence.name}: no feature reads {event.column!r}, so its change points say that it changed, not to what; "
                    f'add a feature with column="{event.column}"'
                )
            if isinstance(event, Events):
                own = SchemaScope(schema).joined(schema.event_log(event.source).columns)
                if not any(set(f.references()) & set(own) for f in sequence.features):
                    yield f"sequence {sequence.name}: no feature reads {event.source}: its events are tokens of their type and time alone"


# ---------------------------------------------------------------------- features


def _features(schema: Schema) -> Iterator[str]:
    for group, features in schema.groups():
        for feature in features:
            for line in feature.advice():
                yield f"{group}.{feature.name}: {line}"


# ---------------------------------------------------------------------- tables


def _tables(schema: Schema) -> Iterator[str]:
    spaces: dict[tuple[str, str], dict[str, str]] = {}
    scope = SchemaScope(schema)
    for group, features in schema.groups():
        for feature in features:
            reference, table = feature.column_reference, table_name(group, feature)
            if not feature.is_id or reference is None or table is None:
                continue
            for name, own in scope.rows(group):
                if reference in own:
                    snapshot, column = split(reference)
                    spaces.setdefault((snapshot or name, column), {}).setdefault(table, f"{group}.{feature.name}")
    for (source, column), tables in spaces.items():
        if len(tables) > 1:
            users = ", ".join(f"{user} in {table}" for table, user in tables.items())
            yield f"{source}.{column}: the same ids are learned {len(tables)} times ({users}); share one table, or mean it"
    for logical in logical_tables(schema):
        where = f"table {logical.name}"
        if logical.dim % 4:
            multiple = logical.dim + 4 - logical.dim % 4
            yield f"{where}: dim {logical.dim} is no multiple of 4, the width GPU lookups move at once; use {multiple}"
        values = logical.vocabulary.size
        declared = any(feature.is_id for feature in _users(schema, logical))
        if declared and logical.vocabulary.is_closed and values < logical.dim / 4:
            yield f"{where}: {values} values in {logical.dim} dimensions; {-(-values // 4) * 4} are plenty"
        for line in logical.vocabulary.advice():
            yield f"{where}: {line}"


def _users(schema: Schema, table: LogicalTable) -> list[Feature]:
    return [f for group, features in schema.groups() for f in features if f"{group}.{f.name}" in table.features]


# ---------------------------------------------------------------------- shape


def _shape(schema: Schema) -> Iterator[str]:
    size = sizes(schema)
    if size.weight_bytes + size.optimizer_bytes > LARGE_BYTES:
        gib = (size.weight_bytes + size.optimizer_bytes) / 2**30
        largest = max(size.tables, key=lambda table: table.weight_bytes)
        yield f"tables take {gib:,.0f} GiB with their optimizer state, {largest.name} most; shard them over several GPUs, or shrink it"
    if not schema.sequences:
        yield "no sequence: the model sees statistics, not what the user did; declare EventSequence(name='history', ...)"
    elif not schema.histories:
        yield "no history: what happened before today is invisible but for statistics; declare an EventSequence of scope history"
    if schema.candidates.request is None:
        yield "candidates: without `request`, a user's exposures of a day are one request, and the request view is the user_day view"
    for label in schema.labels:
        if label.source and label.kind == "binary" and parse_duration(label.window) > 7 * DAY_MS:
            yield f"label {label.name}: days are trainable only once {label.window} have passed; a shorter window learns from fresher days"

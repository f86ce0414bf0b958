"""Mistakes of sources: where they are read, what of, and which columns play which role."""

from __future__ import annotations

from collections.abc import Iterator
from string import Formatter

from genrank.schemas.declaration import SchemaDeclaration
from genrank.schemas.derive.columns import event_logs
from genrank.schemas.expression import nearest
from genrank.schemas.messages import and_, condition_mistakes, twice
from genrank.schemas.source import EventLog, Snapshot
from genrank.schemas.type_rules import IDS, TIMES, families


def source_mistakes(schema: SchemaDeclaration) -> Iterator[str]:
    """Of every source."""
    for source in schema.sources:
        at, known = source.name, source.columns
        if source.path and source.catalog:
            yield f"{at}: both path and catalog are given; keep the one that is read"
        if not source.path and not source.catalog:
            yield f'{at}: neither path nor catalog is given; write path="{at}/dt={{dt}}" or catalog="db.{at}"'
        if source.path:
            yield from _path(at, source.path)
        if not known:
            yield f"{at}: no columns; declare those genrank reads, with their types"
            continue
        for column in source.rename:
            if column not in known:
                yield f"{at}: rename of unknown column {column!r}{nearest(column, known)}"
        physical = [source.physical(column) for column in known]
        for column in twice(physical):
            both = [c for c in known if source.physical(c) == column]
            yield f"{at}: columns {and_(both)} are both read from {column!r}; drop one rename"
        yield from _defaults(source)
        for condition in source.valid:
            yield from condition_mistakes(f"{at}: valid", condition, known)
        if isinstance(source, EventLog):
            yield from _event_log(schema, source)
        elif source.key not in known:
            yield f"{at}: key {source.key!r} is not in columns{nearest(source.key, known)}"
        elif known[source.key] not in IDS:
            yield f"{at}: key {source.key!r} is of type {known[source.key]}; a key is of type int64, int32 or string"


def _defaults(source: EventLog | Snapshot) -> Iterator[str]:
    at, known = source.name, source.columns
    must = [source.user, source.time] if isinstance(source, EventLog) else [source.key]
    for column, value in source.defaults.items():
        if column not in known:
            yield f"{at}: default of unknown column {column!r}{nearest(column, known)}"
        elif column in must:
            yield f"{at}: column {column!r} says whose a row is or when it happened, so it has no default; every file must hold it"
        elif value is not None and not _fits(value, known[column]):
            yield f"{at}: default {value!r} of column {column!r} is no {known[column]}; write one, or None for missing"


def _fits(value: bool | int | float | str, declared: str) -> bool:
    if declared in ("int32", "int64"):
        bound = 2**31 if declared == "int32" else 2**63
        return isinstance(value, int) and not isinstance(value, bool) and -bound <= value < bound
    if declared in ("float32", "float64"):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, {"bool": bool, "string": str}.get(declared, ()))


def _path(at: str, path: str) -> Iterator[str]:
    try:
        fields = {name for _, name, _, _ in Formatter().parse(path) if name is not None}
    except ValueError as error:
        yield f"{at}: path {path!r} is not a template ({error}); write it with {{dt}} alone in braces"
        return
    if "dt" not in fields:
        yield f'{at}: path {path!r} has no {{dt}}; write "{path.rstrip("/")}/dt={{dt}}": a day is read from its own directory'
    for name in sorted(fields - {"dt"}):
        yield f"{at}: path {path!r} has an unknown placeholder {{{name}}}; only {{dt}} is filled in"


def _event_log(schema: SchemaDeclaration, log: EventLog) -> Iterator[str]:
    at, known = log.name, log.columns
    for role, column in (("user", log.user), ("time", log.time), ("arrival", log.arrival)):
        if column is not None and column not in known:
            yield f"{at}: {role} column {column!r} is not in columns{nearest(column, known)}"
        elif column is not None and role != "user" and known[column] not in (*TIMES, "int32"):
            yield (
                f"{at}: {role} column {column!r} is of type {known[column]}, not a time; declare it timestamp, or int64 and "
                "its time_unit"
            )
    for role, listed in (("dedup", log.dedup), ("post_exposure", log.post_exposure)):
        for column in listed:
            if column not in known:
                yield f"{at}: {role} column {column!r} is not in columns{nearest(column, known)}"
    if log.user in known:
        exposures = event_logs(schema).get(schema.candidates.source)
        user = known[log.user]
        if user not in IDS or user == "bool":
            yield f"{at}: user column {log.user!r} is of type {user}; a user id is of type int64, int32 or string"
        elif exposures and exposures.user in exposures.columns:
            asked = exposures.columns[exposures.user]
            if families([user]) != families([asked]):
                yield (
                    f"{at}: user column {log.user!r} is of type {user}, but {exposures.name}.{exposures.user} is {asked}: they "
                    "would never meet; declare one type"
                )

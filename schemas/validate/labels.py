"""Mistakes of labels: what answers an exposure, when, and in which chain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from genrank.schemas.base import parse_duration
from genrank.schemas.declaration import SchemaDeclaration
from genrank.schemas.derive.columns import SchemaScope, event_logs, joined
from genrank.schemas.expression import nearest
from genrank.schemas.label import Label
from genrank.schemas.messages import and_, condition_mistakes
from genrank.schemas.source import EventLog
from genrank.schemas.type_rules import NUMBERS, families

_TWICE = (
    'for a condition on the exposure\'s own row declare its files a second time, outcomes = {name}.replace(name="outcomes"), and '
    'write source="outcomes", where="...", window="1ms"'
)
"""How an exposure's own columns answer it through a condition: as events that happen in its millisecond."""


def label_mistakes(schema: SchemaDeclaration) -> Iterator[str]:
    """Of every label."""
    labels = {label.name: label for label in schema.labels}
    exposures = event_logs(schema).get(schema.candidates.source)
    for label in schema.labels:
        at = f"label {label.name}"
        if label.column and label.source:
            yield f"{at}: both column and source are given; a column of the exposure, or events of another log"
        elif not label.column and not label.source:
            yield f"{at}: neither column nor source; name a column of the exposures, or the event log that answers them"
        elif label.column and exposures:
            yield from _column_label(at, label, exposures)
        elif label.source and exposures:
            yield from _event_label(schema, at, label, exposures)
        if label.oracle and exposures:
            if label.oracle not in exposures.columns:
                yield f"{at}: oracle {label.oracle!r} is not in {exposures.name}{nearest(label.oracle, exposures.columns)}"
            elif exposures.columns[label.oracle] not in ("float32", "float64"):
                yield f"{at}: oracle {label.oracle!r} is of type {exposures.columns[label.oracle]}; a probability is a float"
        if label.value_transform and label.kind != "value":
            yield f"{at}: value_transform is of a value label; drop it, or set kind='value'"
        yield from _given(at, label, labels)


def _column_label(at: str, label: Label, exposures: EventLog) -> Iterator[str]:
    column = label.column or ""
    if column not in exposures.columns:
        if column.isidentifier():
            yield f"{at}: column {column!r} is not in {exposures.name}{nearest(column, exposures.columns)}"
        else:
            yield f"{at}: column {column!r} is not a column but a condition; {_TWICE.format(name=exposures.name)}"
    elif exposures.columns[column] not in NUMBERS:
        yield f"{at}: column {column!r} is of type {exposures.columns[column]}; a label is a number or a bool"
    for field in ("where", "value"):
        if getattr(label, field) is not None:
            yield f"{at}: {field} reads events of a source, not a column; drop it, or {_TWICE.format(name=exposures.name)}"
    if label.attribution != "every":
        yield f"{at}: attribution chooses among exposures of one event; with column= drop it"


def _event_label(schema: SchemaDeclaration, at: str, label: Label, exposures: EventLog) -> Iterator[str]:
    source = label.source or ""
    log = event_logs(schema).get(source)
    if log is None:
        yield f"{at}: source {SchemaScope(schema).unknown_log(source)}"
        return
    if source == exposures.name:
        yield f"{at}: source is the exposures themselves; use column= for a 0/1 column of theirs, or {_TWICE.format(name=exposures.name)}"
    if parse_duration(label.window) == 0:
        yield f'{at}: window is 0, so no event of {source} can follow in time; write for example window="1d"'
    if not label.on:
        yield f"{at}: on is empty, so every event would match every exposure; name the columns that must be equal"
    for column in label.on:
        missing = [f.name for f in (exposures, log) if column not in f.columns]
        if missing:
            known = set(exposures.columns) & set(log.columns)
            yield f"{at}: on column {column!r} is not in {and_(missing)}{nearest(column, known)}"
        elif families([exposures.columns[column]]) != families([log.columns[column]]):
            yield (
                f"{at}: on column {column!r} is {exposures.columns[column]} in {exposures.name} but {log.columns[column]} in "
                f"{log.name}: they would never meet"
            )
    types = joined(schema, log.columns)
    if label.where is not None:
        yield from condition_mistakes(f"{at}: where", label.where, types)
    if label.kind == "value" and label.value is None:
        yield f"{at}: kind='value' needs value=, the column of {source} that is summed"
    elif label.kind == "binary" and label.value is not None:
        yield f"{at}: a binary label takes no value; drop it, or set kind='value'"
    elif label.value is not None and label.value not in types:
        yield f"{at}: value {label.value!r} is not in {source}{nearest(label.value, types)}"
    elif label.value is not None and types[label.value] not in NUMBERS:
        yield f"{at}: value {label.value!r} is of type {types[label.value]}; only numbers are summed"


def _given(at: str, label: Label, labels: Mapping[str, Label]) -> Iterator[str]:
    if label.given is None:
        return
    if label.given not in labels:
        others = set(labels) - {label.name}
        yield f"{at}: given {label.given!r} is not a label{nearest(label.given, others)}"
        return
    if labels[label.given].kind != "binary":
        yield f"{at}: given {label.given!r} is a value; a label is given a binary one"
    chain = [label.name]
    while (after := labels[chain[-1]].given) in labels:
        assert after is not None
        if after in chain:
            yield f"{at}: given goes in a circle: {' -> '.join([*chain, after])}"
            return
        chain.append(after)

"""Who reads which column of which source."""

from __future__ import annotations

from collections.abc import Iterable

from genrank.schemas import expression
from genrank.schemas.base import CANDIDATES
from genrank.schemas.declaration import SchemaDeclaration
from genrank.schemas.derive.columns import SchemaScope
from genrank.schemas.group import Events
from genrank.schemas.type_rules import split


def lineage(schema: SchemaDeclaration) -> dict[tuple[str, str], list[str]]:
    """(source, column) -> who reads it: features (`candidates.price`), `label click`, `sequence history`, `candidates`.

    A joined reference reads the snapshot's column and, to find it, the key on both sides. What only says which rows there are
    (user, times, dedup, valid) isn't reported.
    """
    found: dict[tuple[str, str], list[str]] = {}
    scope = SchemaScope(schema)
    known = scope.snapshots

    def note(reader: str, source: str, references: Iterable[str | None]) -> None:
        for reference in references:
            if reference is None:
                continue
            snapshot, column = split(reference)
            cells = [(source, column)]
            if snapshot in known and snapshot != source:
                key = known[snapshot].key
                cells = [(snapshot, column), (snapshot, key), (source, key)]
            for cell in cells:
                readers = found.setdefault(cell, [])
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
            for source, references in feature.lineage(group, scope):
                note(reader, source, references)
    for label in schema.labels:
        reader = f"label {label.name}"
        note(reader, exposures, [label.column, label.oracle])
        if label.source:
            note(reader, exposures, label.on)
            note(reader, label.source, [*label.on, label.value, *sql(label.where)])
    return found

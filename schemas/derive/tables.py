"""Schema -> logical embedding tables: every table that some feature looks a row up in, implicit ones included.

| looked up by | table | vocabulary |
|---|---|---|
| feature with `table` | the shared one, under its own name | the table's |
| feature with `vocabulary` and `dim` | `<group>.<feature>` | the feature's |
| number in fixed or quantile buckets | `<group>.<feature>` | Identity(number of buckets) |
| time part | `<group>.<feature>` | Identity(number of its values) |
| event type of a sequence | `<sequence>.type` | Enumerated(names of its events) |

Dense, log and AutoDis numbers look nothing up: their parameters belong to the dense model.
"""

from __future__ import annotations

from genrank.schemas.declaration import SchemaDeclaration
from genrank.schemas.features import Feature
from genrank.schemas.group import EventSequence
from genrank.schemas.table import LogicalTable
from genrank.schemas.vocabularies import Enumerated

TYPE = "type"
"""The implicit feature of every sequence: which of its `events` a token is."""


def logical_tables(schema: SchemaDeclaration) -> list[LogicalTable]:
    """Every logical table of the schema, by name."""
    tables: dict[str, LogicalTable] = {}
    for group, features in schema.groups():
        sequence = next((s for s in schema.sequences if s.name == group), None)
        found = [own for feature in features if (own := feature.looked_up(group))]
        if sequence is not None:
            names = Enumerated(values=event_names(sequence))
            found.append(LogicalTable(f"{group}.{TYPE}", (f"{group}.{TYPE}",), sequence.type_dim, names))
        for own in found:
            users = tables[own.name].features if own.name in tables else ()
            tables[own.name] = LogicalTable(
                own.name, users + own.features, own.dim, own.vocabulary, own.initializer, own.optimizer
            )
    return sorted(tables.values(), key=lambda table: table.name)


def table_name(group: str, feature: Feature) -> str | None:
    """The logical table in which a feature of the group looks rows up; None for numbers that are not bucketed."""
    table = feature.looked_up(group)
    return table.name if table else None


def event_names(sequence: EventSequence) -> tuple[str, ...]:
    """The types of a sequence's events, in declaration order: the stored `type` is a position in this."""
    return tuple(event.type_name for event in sequence.events)

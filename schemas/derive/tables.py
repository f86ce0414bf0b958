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

from typing import TYPE_CHECKING

from genrank.schemas.features import (
    Categorical,
    CrossFeature,
    Feature,
    HashedCross,
    MultiValued,
    Numeric,
    Sql,
    TimeGap,
    TimePart,
)
from genrank.schemas.group import Events, EventSequence
from genrank.schemas.table import LogicalTable
from genrank.schemas.transforms import Dense, FixedBuckets, Log1p, QuantileBuckets, Transform
from genrank.schemas.vocabularies import Enumerated, Identity

if TYPE_CHECKING:
    from genrank.schemas.schema import Schema

TIME_PART_VALUES = {"hour": 24, "weekday": 7, "hour_of_week": 168, "day_of_month": 31, "month": 12}
"""Number of values of each time part, each counted from 0 (`day_of_month` and `month` too)."""

TYPE = "type"
"""The implicit feature of every sequence: which of its `events` a token is."""


def logical_tables(schema: Schema) -> list[LogicalTable]:
    """Every logical table of the schema, by name."""
    tables: dict[str, LogicalTable] = {}
    for group, features in schema.groups():
        sequence = next((s for s in schema.sequences if s.name == group), None)
        found = [own for feature in features if (own := _looked_up(group, feature))]
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
    table = _looked_up(group, feature)
    return table.name if table else None


def transform_of(feature: Feature) -> Transform | None:
    """How a number is encoded, defaults resolved; None for features that are not numbers."""
    if isinstance(feature, Numeric | TimeGap):
        return feature.transform
    if isinstance(feature, CrossFeature):
        if feature.op == "last" and feature.table:
            return None
        return feature.transform or (Dense() if feature.op == "rate" else Log1p())
    if isinstance(feature, Sql) and not (feature.table or feature.vocabulary):
        return feature.transform or Log1p()
    return None


def event_names(sequence: EventSequence) -> tuple[str, ...]:
    """The types of a sequence's events, in declaration order: the stored `type` is a position in this."""
    return tuple(e.name or (e.source if isinstance(e, Events) else e.column) for e in sequence.events)


def _looked_up(group: str, feature: Feature) -> LogicalTable | None:
    """The table a feature reads, with itself as the only user."""
    own = f"{group}.{feature.name}"
    if isinstance(feature, TimePart):
        return LogicalTable(own, (own,), feature.dim, Identity(size=TIME_PART_VALUES[feature.part]))
    if isinstance(feature, Categorical | MultiValued | HashedCross | CrossFeature | Sql) and feature.table:
        table = feature.table
        return LogicalTable(table.name, (own,), table.dim, table.vocabulary, table.initializer, table.optimizer)
    if isinstance(feature, Categorical | MultiValued | HashedCross | Sql) and feature.vocabulary and feature.dim:
        return LogicalTable(own, (own,), feature.dim, feature.vocabulary)
    transform = transform_of(feature)
    if isinstance(transform, FixedBuckets):
        return LogicalTable(own, (own,), transform.dim, Identity(size=len(transform.boundaries) + 1))
    if isinstance(transform, QuantileBuckets):
        return LogicalTable(own, (own,), transform.dim, Identity(size=transform.buckets))
    return None

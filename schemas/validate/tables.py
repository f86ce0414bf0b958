"""Mistakes of shared tables: features that disagree about one, or that would mix ids of different meanings in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from genrank.schemas.derive import columns
from genrank.schemas.derive.columns import event_logs, joined, offered
from genrank.schemas.features import CrossFeature, Feature, HashedCross, Sql
from genrank.schemas.messages import and_, short
from genrank.schemas.table import Table
from genrank.schemas.type_rules import ID_LISTS, IDS, table_of

if TYPE_CHECKING:
    from genrank.schemas.schema import Schema


def table_mistakes(schema: Schema) -> Iterator[str]:
    """Of tables that several features name."""
    users: dict[str, list[tuple[str, Feature, Table]]] = {}
    for group, features in schema.groups():
        for feature in features:
            if table := table_of(feature):
                users.setdefault(table.name, []).append((group, feature, table))
    for name, found in users.items():
        first_group, first, table = found[0]
        for group, feature, other in found[1:]:
            for field in ("dim", "vocabulary", "initializer", "optimizer"):
                mine, theirs = getattr(table, field), getattr(other, field)
                if mine != theirs:
                    yield (
                        f"table {name}: {first_group}.{first.name} gives it {field} {short(mine)}, {group}.{feature.name} "
                        f"{short(theirs)}; share one Table object, or name two tables"
                    )
        spaces: dict[str, str] = {}
        for group, feature, _ in found:
            if space := _id_space(schema, group, feature):
                spaces.setdefault(space, f"{group}.{feature.name}")
        if len(spaces) > 1:
            told = [f"{space} of {user}" for space, user in spaces.items()]
            yield f"table {name}: it would mix {and_(told)}: equal ids that mean different things; name two tables"


def _id_space(schema: Schema, group: str, feature: Feature) -> str | None:
    """What kind of id a feature looks up with; None where a mistake is told elsewhere."""
    if isinstance(feature, HashedCross):
        return "crossed ids"
    type_: str | None
    if isinstance(feature, CrossFeature):
        log = event_logs(schema).get(feature.source)
        type_ = joined(schema, log.columns).get(feature.value or "") if log else None
    elif isinstance(feature, Sql):
        type_ = feature.type
    else:
        type_ = offered(schema, group).get(columns.column_of(feature) or "")
    if type_ not in (*IDS, *ID_LISTS):
        return None
    return "strings" if "string" in str(type_) else "integers"

"""Mistakes of shared tables: features that disagree about one, or that would mix ids of different meanings in it."""

from __future__ import annotations

from collections.abc import Iterator

from genrank.schemas.declaration import SchemaDeclaration
from genrank.schemas.derive.columns import SchemaScope
from genrank.schemas.features import Feature
from genrank.schemas.messages import and_, short
from genrank.schemas.table import Table


def table_mistakes(schema: SchemaDeclaration) -> Iterator[str]:
    """Of tables that several features name."""
    scope = SchemaScope(schema)
    users: dict[str, list[tuple[str, Feature, Table]]] = {}
    for group, features in schema.groups():
        for feature in features:
            if table := feature.shared_table:
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
            if space := feature.id_space(group, scope):
                spaces.setdefault(space, f"{group}.{feature.name}")
        if len(spaces) > 1:
            mixed = [f"{space} of {user}" for space, user in spaces.items()]
            yield f"table {name}: it would mix {and_(mixed)}: equal ids that mean different things; name two tables"

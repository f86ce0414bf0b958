"""Mistakes of features: what they read, whether it is of a type they can encode, and how they encode it. Each kind knows its own."""

from __future__ import annotations

from collections.abc import Iterator

from genrank.schemas.declaration import SchemaDeclaration
from genrank.schemas.derive.columns import SchemaScope


def feature_mistakes(schema: SchemaDeclaration) -> Iterator[str]:
    """Of every feature of every group."""
    scope = SchemaScope(schema)
    for group, features in schema.groups():
        for feature in features:
            at = f"{group}.{feature.name}"
            yield from feature.mistakes(at, group, scope)
            yield from feature.encoding_mistakes(at)

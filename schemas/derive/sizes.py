"""How large a schema's samples and tables are at most, before any is built."""

from __future__ import annotations

from dataclasses import dataclass

from genrank.schemas.base import CANDIDATES, USER
from genrank.schemas.declaration import SchemaDeclaration
from genrank.schemas.derive.sample_schema import leaves
from genrank.schemas.derive.tables import logical_tables
from genrank.schemas.features import Feature
from genrank.schemas.table import LogicalTable


@dataclass(frozen=True)
class GroupSize:
    """One token group of a sample at its full length."""

    group: str
    features: int
    stored: int
    """Features that are stored; the others are derived when read."""
    rows: int
    """Users (1), events or candidates."""
    tokens: int
    bytes: int
    """Uncompressed; lists of ids at their `max_values`."""


@dataclass(frozen=True)
class Sizes:
    """What one sample and all tables take at most."""

    groups: tuple[GroupSize, ...]
    tables: tuple[LogicalTable, ...]

    @property
    def tokens(self) -> int:
        """Tokens of a sample in which every list is full."""
        return sum(group.tokens for group in self.groups)

    @property
    def sample_bytes(self) -> int:
        """Uncompressed bytes of such a sample."""
        return sum(group.bytes for group in self.groups)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all embedding weights."""
        return sum(table.weight_bytes for table in self.tables)

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of the optimizer's state of all tables."""
        return sum(table.optimizer_bytes for table in self.tables)


def sizes(schema: SchemaDeclaration) -> Sizes:
    """Sizes at full length, group by group in token order."""
    stored: dict[str, int] = {}
    widths: dict[str, int] = {}
    for leaf in leaves(schema):
        feature = next(f for f in dict(schema.groups())[leaf.group] if f.name == leaf.name)
        stored[leaf.group] = stored.get(leaf.group, 0) + 1
        widths[leaf.group] = widths.get(leaf.group, 0) + _width(leaf.stored, feature)
    found = []
    for group, features in schema.groups():
        rows, per_row, own = _shape(schema, group, len(features))
        found.append(
            GroupSize(
                group, len(features), stored.get(group, 0), rows, rows * per_row, rows * (widths.get(group, 0) + own)
            )
        )
    return Sizes(tuple(found), tuple(logical_tables(schema)))


def _shape(schema: SchemaDeclaration, group: str, features: int) -> tuple[int, int, int]:
    """(rows, tokens a row, bytes a row that the sample keeps beside the features)."""
    if group == USER:
        return 1, (features if schema.user.tokens == "feature" else min(features, 1)), 0
    if group == CANDIDATES:
        labels = sum(8 + 4 * (label.oracle is not None) for label in schema.labels)
        seen = 4 if schema.realtime else 0
        return schema.candidates.max_candidates, 1, 24 + labels + seen
    sequence = next(s for s in schema.sequences if s.name == group)
    return sequence.max_length, 1 + len(sequence.interleave), 12 + (12 if sequence.scope == "realtime" else 0)


def _width(stored: str, feature: Feature) -> int:
    if stored == "ids":
        return 8 * max(feature.list_limit, 1) + 4
    if stored == "vector":
        return 4 * feature.vector_length + 4
    return 4 if stored == "number" else 8

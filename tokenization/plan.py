"""The plan: which logical tables share one physical table, and which feature looks its rows up where.

Logical tables that agree on (dim, static or dynamic, optimizer, initialiser) are stacked into one merged table, so that a
batch needs one fused lookup per merged table instead of one per feature. Each logical table owns a row range; a dynamic one
also owns a key space, (its position, id), in the id map before the merged table: no bit of an id is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from genrank.schemas.derive.tables import TYPE, logical_tables, table_name
from genrank.schemas.errors import UserError
from genrank.schemas.schema import USER, Schema
from genrank.schemas.table import Initializer, LogicalTable, SparseOptimizer
from genrank.schemas.transforms import Transform

MAX_ROWS = 2**31 - 1
"""Rows of one merged table at most: fbgemm's and Triton's row arithmetic stays in range."""


@dataclass(frozen=True)
class MergedTable:
    """Logical tables stacked into one physical table of float32 [rows, dim]."""

    name: str
    members: tuple[LogicalTable, ...]
    starts: tuple[int, ...]
    """First physical row of each member."""

    @property
    def dim(self) -> int:
        """Width of a row."""
        return self.members[0].dim

    @property
    def rows(self) -> int:
        """Physical rows."""
        return self.starts[-1] + self.members[-1].rows

    @property
    def dynamic(self) -> bool:
        """Whether ids get rows as training meets them."""
        return self.members[0].dynamic

    @property
    def optimizer(self) -> SparseOptimizer:
        """How rows are learned, the same for every member."""
        return self.members[0].optimizer

    @property
    def initializer(self) -> Initializer:
        """How rows start, the same for every member."""
        return self.members[0].initializer

    @property
    def weight_bytes(self) -> int:
        """Bytes of the float32 weights."""
        return sum(table.weight_bytes for table in self.members)

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of the optimizer's state."""
        return sum(table.optimizer_bytes for table in self.members)

    def range_of(self, logical: str) -> tuple[int, int]:
        """[first, last + 1) physical row of a logical table; KeyError if it isn't a member."""
        for table, start in zip(self.members, self.starts, strict=True):
            if table.name == logical:
                return start, start + table.rows
        raise KeyError(logical)


@dataclass(frozen=True)
class Lookup:
    """A feature that reads rows of a table."""

    group: str
    feature: str
    table: str
    """The logical table."""
    merged: str
    position: int
    """Of the logical table among the merged table's members."""
    start: int
    """Its first physical row."""
    dim: int
    pooling: str | None
    """`sum` or `mean` over the values of a multi-valued feature; None for one value."""


@dataclass(frozen=True)
class Plan:
    """Logical tables of a schema, how they are merged, and every lookup."""

    schema: Schema
    tables: tuple[MergedTable, ...]
    lookups: tuple[Lookup, ...]
    """In token order, merged table by merged table within a group, features by name."""

    @cached_property
    def by_name(self) -> dict[str, MergedTable]:
        """Merged tables by name."""
        return {table.name: table for table in self.tables}

    @cached_property
    def logical(self) -> dict[str, tuple[LogicalTable, MergedTable]]:
        """Logical table and the merged table it lies in, by the logical table's name."""
        return {member.name: (member, table) for table in self.tables for member in table.members}

    def start_of(self, logical: str) -> int:
        """First physical row of a logical table in its merged table."""
        return self.logical[logical][1].range_of(logical)[0]

    def readers_of(self, logical: str) -> list[tuple[Lookup, int]]:
        """The lookups that read a logical table, each with its position among its group's lookups of one value."""
        return [
            (lookup, at)
            for group in dict.fromkeys(lookup.group for lookup in self.lookups)
            for at, lookup in enumerate(sorted(self.lookups_of(group), key=lambda each: each.pooling is not None))
            if lookup.table == logical
        ]

    def lookups_of(self, group: str) -> list[Lookup]:
        """The lookups of one token group."""
        return [lookup for lookup in self.lookups if lookup.group == group]


def make_plan(schema: Schema, *, merge: bool = True) -> Plan:
    """The merged-table plan of a schema.

    Args:
        schema: what declares the features and their tables.
        merge: False keeps every logical table by itself: the baseline that benchmarks and tests compare with.

    Raises:
        UserError: a merged table would have more rows than `MAX_ROWS`.
    """
    classes: dict[object, list[LogicalTable]] = {}
    for table in logical_tables(schema):
        classes.setdefault(merge_key(table) if merge else table.name, []).append(table)
    merged: list[MergedTable] = []
    taken: dict[str, int] = {}
    for members in sorted(classes.values(), key=lambda m: (m[0].dim, m[0].dynamic, m[0].name)):
        starts, rows = [], 0
        for member in members:
            starts.append(rows)
            rows += member.rows
        if rows > MAX_ROWS:
            largest = max(members, key=lambda table: table.rows)
            raise UserError(
                f"tables of dim {members[0].dim} have {rows:,} rows together, more than {MAX_ROWS:,}; "
                f"lower the size of {largest.name} ({largest.rows:,} rows) or give it another dim"
            )
        name = f"d{members[0].dim}" + ("_dynamic" if members[0].dynamic else "")
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            name = f"{name}_{taken[name]}"
        merged.append(MergedTable(name, tuple(members), tuple(starts)))
    return Plan(schema, tuple(merged), tuple(_lookups(schema, merged)))


def tokens_per_row(schema: Schema, group: str) -> int:
    """Tokens that one row of a group becomes: a user, an event, a candidate."""
    if group == USER:
        features = len(schema.user.features)
        return features if schema.user.tokens == "feature" else min(features, 1)
    sequence = next((s for s in schema.sequences if s.name == group), None)
    return 1 + len(sequence.interleave) if sequence else 1


def input_width(transform: Transform) -> int:
    """Columns of a token's input that a transform makes without a lookup: its `dim`, or a value and its missing flag; 0 with buckets."""
    if transform.table_shape is not None:
        return 0
    width: int = getattr(transform, "dim", 2)
    return width


def merge_key(table: LogicalTable) -> tuple[object, ...]:
    """What two logical tables must agree on to be merged. Every table is float32, so the dtype always agrees."""
    return table.dim, table.dynamic, table.optimizer, table.initializer


def _lookups(schema: Schema, merged: list[MergedTable]) -> list[Lookup]:
    where = {member.name: (table, position) for table in merged for position, member in enumerate(table.members)}
    order = {table.name: i for i, table in enumerate(merged)}
    found: list[Lookup] = []
    for group, features in schema.groups():
        names = [(f.name, table_name(group, f), f.list_pooling) for f in features]
        if any(s.name == group for s in schema.sequences):
            names.append((TYPE, f"{group}.{TYPE}", None))
        own = []
        for feature, logical, pooling in names:
            if logical is None:
                continue
            table, position = where[logical]
            own.append(
                Lookup(group, feature, logical, table.name, position, table.starts[position], table.dim, pooling)
            )
        found += sorted(own, key=lambda lookup: (order[lookup.merged], lookup.feature))
    return found

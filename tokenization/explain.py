"""The merged-table plan explained: what is merged and why, what isn't and why not, bytes, tokens, FLOPs, and what looks wrong."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from genrank.schemas.derive.columns import offered
from genrank.schemas.schema import CANDIDATES, USER, Schema
from genrank.schemas.table import LogicalTable
from genrank.tokenization.plan import MergedTable, Plan, input_width, merge_key, tokens_per_row

if TYPE_CHECKING:
    from genrank.tokenization.id_statistics import ObservedIds

KEY_PARTS = ("dim", "vocabulary", "optimizer", "initialiser")
FEW_IDS = 20
"""Distinct ids below which nothing is said of what two features have in common."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True)


class MemberRows(_Document):
    """A logical table inside a merged one."""

    name: str
    first_row: int
    """First physical row."""
    rows: int
    read_by: tuple[str, ...]
    """`<group>.<feature>` of every reader."""


class TableSize(_Document):
    """A merged table."""

    name: str
    members: tuple[MemberRows, ...]
    rows: int
    dim: int
    weight_bytes: int
    optimizer_bytes: int
    why: str
    """What its members have in common."""


class NotMerged(_Document):
    """Two merged tables that stay apart."""

    tables: tuple[str, str]
    why: str


class TableBytes(_Document):
    """Bytes of all tables."""

    weights: int
    optimizer: int
    ranks: tuple[int, ...]
    """Of both, per rank, with every table split by rows."""


class GroupTokens(_Document):
    """Tokens of one token group in the largest sample."""

    per_row: int
    rows: int
    most: int


class ForwardFlops(_Document):
    """Forward FLOPs of the largest sample: two per multiply-add."""

    projection: float
    encoder: float

    @property
    def total(self) -> float:
        """Both."""
        return self.projection + self.encoder


class PlanExplanation(_Document):
    """What `genrank schema explain` and the report show."""

    summary: str
    tables: tuple[TableSize, ...]
    not_merged: tuple[NotMerged, ...]
    bytes: TableBytes
    tokens: dict[str, GroupTokens]
    """By token group."""
    flops: ForwardFlops
    warnings: tuple[str, ...]
    """What is legal and probably not meant, with the remedy."""


def explain(
    plan: Plan,
    *,
    world_size: int = 1,
    d_model: int = 64,
    blocks: int = 2,
    observed: Mapping[str, ObservedIds] | None = None,
) -> PlanExplanation:
    """The plan as a document; `tokenization.present.plan` shows it in a terminal.

    Args:
        plan: the merged tables and their lookups.
        world_size: ranks that the tables are sharded over row-wise.
        d_model: width of the encoder that the FLOPs are counted for.
        blocks: its depth.
        observed: `<group>.<feature>` -> the ids that samples hold (`tokenization.id_statistics.observe_ids`): for warnings of sizes.
    """
    tables = plan.tables
    weights, states = sum(t.weight_bytes for t in tables), sum(t.optimizer_bytes for t in tables)
    members = sum(len(t.members) for t in tables)
    tokens = {name: _tokens(plan.schema, name) for name, _ in plan.schema.groups()}
    total = sum(each.most for each in tokens.values())
    flops = _flops(plan, tokens, d_model, blocks)
    return PlanExplanation(
        summary=(
            f"{len(plan.lookups)} lookups into {members} logical tables, merged into {len(tables)}: "
            f"{sum(t.rows for t in tables):,} rows, {readable_bytes(weights + states)} with optimizer state; "
            f"at most {total:,} tokens and {flops.total / 1e9:.2f} GFLOP forward a sample "
            f"(d_model {d_model}, {blocks} blocks)"
        ),
        tables=tuple(map(_size, tables)),
        not_merged=tuple(
            NotMerged(tables=(a.name, b.name), why=_why_not(a, b)) for a, b in itertools.combinations(tables, 2)
        ),
        bytes=TableBytes(weights=weights, optimizer=states, ranks=_per_rank(plan, world_size)),
        tokens=tokens,
        flops=flops,
        warnings=tuple(plan_warnings(plan, observed or {})),
    )


def plan_warnings(plan: Plan, observed: Mapping[str, ObservedIds]) -> list[str]:
    """What is legal and probably not meant: one line each, with the remedy."""
    columns = _id_columns(plan.schema)
    found = [
        warning
        for table, _ in plan.logical.values()
        for warning in (*_mixed_types(table, columns), *_observed_warnings(table, observed))
    ]
    return found + _columns_in_several_tables(plan, columns)


# ---------------------------------------------------------------------- warnings


def _mixed_types(table: LogicalTable, columns: Mapping[str, tuple[str, str]]) -> list[str]:
    types = {columns[key][1] for key in table.features if key in columns}
    if len(types) < 2:
        return []
    return [
        f"table {table.name} is read by string and by integer columns ({', '.join(table.features)}): "
        "strings are hashed, so the same id gets two rows; give one of them a table of its own"
    ]


def _observed_warnings(table: LogicalTable, observed: Mapping[str, ObservedIds]) -> list[str]:
    read = {key: observed[key] for key in table.features if key in observed and len(observed[key])}
    if not read:
        return []
    found = []
    for (one, a), (two, b) in itertools.combinations(read.items(), 2):
        if min(len(a), len(b)) >= FEW_IDS and not len(np.intersect1d(a.ids, b.ids)):
            found.append(
                f"table {table.name} is read by {one} (ids {a.range}) and {two} (ids {b.range}), which have none in common: "
                "give one of them a table of its own, unless they are to meet later"
            )
    # Imports torch, which whoever counted the ids has imported; a plan without samples is explained without it.
    from genrank.tokenization.vocabularies import vocabulary_rows

    distinct = len(functools.reduce(np.union1d, [each.ids for each in read.values()]))
    rows = vocabulary_rows(table.vocabulary)
    return found + rows.size_warnings(table.name, table.vocabulary, read, distinct)


def _columns_in_several_tables(plan: Plan, columns: Mapping[str, tuple[str, str]]) -> list[str]:
    table_of = {f"{lookup.group}.{lookup.feature}": lookup.table for lookup in plan.lookups}
    by_column: dict[str, dict[str, list[str]]] = {}
    for key, (column, _) in columns.items():
        by_column.setdefault(column, {}).setdefault(table_of[key], []).append(key)
    found = []
    for column, tables in by_column.items():
        if len(tables) > 1:
            readers = "; ".join(f"{table} (read by {', '.join(keys)})" for table, keys in tables.items())
            found.append(
                f"ids of {column} live in {len(tables)} tables: {readers}; "
                "what one learns the other doesn't know: declare one Table and name it in each, unless that is meant"
            )
    return found


# ---------------------------------------------------------------------- parts of the document


def _size(table: MergedTable) -> TableSize:
    return TableSize(
        name=table.name,
        members=tuple(
            MemberRows(name=member.name, first_row=start, rows=member.rows, read_by=member.features)
            for member, start in zip(table.members, table.starts, strict=True)
        ),
        rows=table.rows,
        dim=table.dim,
        weight_bytes=table.weight_bytes,
        optimizer_bytes=table.optimizer_bytes,
        why=_why(table),
    )


def _why(table: MergedTable) -> str:
    _, *shared = _key(table)
    return f"alone in its class: {', '.join(shared)}" if len(table.members) == 1 else f"equal dim, {', '.join(shared)}"


def _why_not(a: MergedTable, b: MergedTable) -> str:
    differ = [f"{part} {x} and {y}" for part, x, y in zip(KEY_PARTS, _key(a), _key(b), strict=True) if x != y]
    return "; ".join(differ) or "merging is off"


def _key(table: MergedTable) -> tuple[str, str, str, str]:
    """`merge_key` in words."""
    dim, dynamic, _, _ = merge_key(table.members[0])
    optimizer, initializer = table.optimizer, table.initializer
    rate = f" x{optimizer.lr_scale:g}" if optimizer.lr_scale != 1 else ""
    decay = f" decay {optimizer.weight_decay:g}" if optimizer.weight_decay else ""
    spread = ", ".join(f"{v:g}" for k, v in initializer.model_dump().items() if k != "kind")
    return (
        str(dim),
        "dynamic" if dynamic else "static",
        f"{optimizer.kind}{rate}{decay}",
        f"{initializer.kind}({spread})" if spread else initializer.kind,
    )


def _per_rank(plan: Plan, world_size: int) -> tuple[int, ...]:
    """Bytes of weights and optimizer state per rank when every merged table is split by rows, as torchrec splits them."""
    per_rank = [0] * world_size
    for table in plan.tables:
        block = -(-table.rows // world_size)
        for rank in range(world_size):
            rows = max(0, min(block, table.rows - rank * block))
            per_rank[rank] += rows * (table.weight_bytes + table.optimizer_bytes) // table.rows
    return tuple(per_rank)


def _tokens(schema: Schema, group: str) -> GroupTokens:
    sequence = next((s for s in schema.sequences if s.name == group), None)
    rows = 1 if group == USER else sequence.max_length if sequence else schema.candidates.max_candidates
    per_row = tokens_per_row(schema, group)
    return GroupTokens(per_row=per_row, rows=rows, most=rows * per_row)


def _flops(plan: Plan, tokens: Mapping[str, GroupTokens], d_model: int, blocks: int) -> ForwardFlops:
    """Forward FLOPs of the largest sample: two per multiply-add; attention counts the pairs that MTGR's rule lets see each other."""
    projection = 2.0 * d_model * sum(_width(plan, group) * each.rows for group, each in tokens.items())
    realtime = plan.schema.realtime.name if plan.schema.realtime else None
    r = tokens[realtime].most if realtime else 0
    c = tokens[CANDIDATES].most
    total = sum(each.most for each in tokens.values())
    known = total - r - c
    pairs = known * known + r * (known + r / 2) + c * (known + r + 1)
    # U, Q, K, V and the output: five d x d products a token; scores and their product with V: two of d a pair.
    encoder = blocks * (2.0 * 5 * d_model**2 * total + 2.0 * 2 * d_model * pairs)
    return ForwardFlops(projection=projection, encoder=encoder)


def _width(plan: Plan, group: str) -> int:
    transforms = [feature.number_transform for feature in dict(plan.schema.groups())[group]]
    inputs = sum(input_width(transform) for transform in transforms if transform)
    inputs += sum(feature.vector_length for feature in dict(plan.schema.groups())[group])
    return inputs + sum(lookup.dim for lookup in plan.lookups_of(group))


def _id_columns(schema: Schema) -> dict[str, tuple[str, str]]:
    """`<group>.<feature>` -> (reference, "string" or "integer") of every embedded id that is a column as it is."""
    found = {}
    for group, features in schema.groups():
        types = offered(schema, group)
        for feature in features:
            reference = feature.column_reference
            if reference and feature.stored in ("id", "ids"):
                kind = "string" if "string" in types.get(reference, "int64") else "integer"
                found[f"{group}.{feature.name}"] = (reference, kind)
    return found


def readable_bytes(size: float) -> str:
    """`1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"

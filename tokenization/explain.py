"""The plan, told: what is merged and why, what isn't and why not, bytes, tokens, FLOPs, and what looks wrong."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from genrank.schemas.columns import offered
from genrank.schemas.feature import Categorical, MultiValued
from genrank.schemas.schema import CANDIDATES, USER, Schema
from genrank.schemas.tables import transform_of
from genrank.schemas.vocabulary import Dynamic, Hashed, Identity
from genrank.tokenization.plan import MergedTable, Plan, merge_key, tokens_per_row

if TYPE_CHECKING:
    from genrank.tokenization.id_statistics import ObservedIds

COLUMNS = ["table", "logical tables", "rows", "dim", "bytes", "optimizer bytes", "why"]
KEY_PARTS = ("dim", "vocabulary", "optimizer", "initialiser")
FEW_IDS = 20
"""Distinct ids below which nothing is said of what two features have in common."""
CROWDED = 0.5
"""Ids per row above which a hashed table is reported: at one id per two rows every fifth id shares its row."""


def explain(
    plan: Plan,
    *,
    world_size: int = 1,
    d_model: int = 64,
    blocks: int = 2,
    observed: Mapping[str, ObservedIds] | None = None,
) -> dict[str, Any]:
    """What `genrank schema explain` and the report show, as plain data.

    Args:
        world_size: ranks that the tables are sharded over row-wise.
        d_model, blocks: width and depth of the encoder that the FLOPs are counted for.
        observed: `<group>.<feature>` -> the ids that samples hold (`tokenization.id_statistics.observe_ids`): for lints of sizes.
    """
    tables = plan.tables
    weights, states = sum(t.weight_bytes for t in tables), sum(t.optimizer_bytes for t in tables)
    members = sum(len(t.members) for t in tables)
    tokens = {name: _tokens(plan.schema, name) for name, _ in plan.schema.groups()}
    total = sum(each["most"] for each in tokens.values())
    flops = _flops(plan, tokens, d_model, blocks)
    return {
        "summary": (
            f"{len(plan.lookups)} lookups into {members} logical tables, merged into {len(tables)}: "
            f"{sum(t.rows for t in tables):,} rows, {readable_bytes(weights + states)} with optimizer state; "
            f"at most {total:,} tokens and {flops['total'] / 1e9:.2f} GFLOP forward a sample "
            f"(d_model {d_model}, {blocks} blocks)"
        ),
        "columns": COLUMNS,
        "rows": [_row(table) for table in tables],
        "merges": [
            {
                "table": table.name,
                "members": [
                    {"name": m.name, "first_row": start, "rows": m.rows, "read_by": list(m.features)}
                    for m, start in zip(table.members, table.starts, strict=True)
                ],
            }
            for table in tables
        ],
        "refusals": [{"tables": [a.name, b.name], "why": _why_not(a, b)} for a, b in itertools.combinations(tables, 2)],
        "bytes": {"weights": weights, "optimizer": states, "ranks": _per_rank(plan, world_size)},
        "tokens": {"groups": tokens, "most": total},
        "flops": flops,
        "lints": lints(plan, observed or {}),
    }


def render(told: Mapping[str, Any]) -> Any:
    """The same for a terminal: a rich renderable."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    style: dict[str, Any] = {"title_justify": "left", "header_style": "bold", "box": box.SIMPLE_HEAD, "pad_edge": False}
    merged = Table(title="Merged tables", **style)
    for column in ("table", "rows", "dim", "bytes", "optimizer bytes"):
        merged.add_column(column, justify="left" if column == "table" else "right")
    members = Table(title="What is in them", show_lines=True, **style)
    members.add_column("table", no_wrap=True)
    members.add_column("logical tables")
    for name, logical, rows, dim, weights, states, why in told["rows"]:
        merged.add_row(name, f"{rows:,}", str(dim), readable_bytes(weights), readable_bytes(states))
        members.add_row(name, f"{logical}\n[dim]{why}[/]")
    groups = Table(title="Tokens a sample", **style)
    for column in ("group", "tokens a row", "rows at most", "tokens at most"):
        groups.add_column(column, justify="left" if column == "group" else "right")
    for name, each in told["tokens"]["groups"].items():
        groups.add_row(name, str(each["per_row"]), f"{each['rows']:,}", f"{each['most']:,}")
    parts: list[Any] = [Text(told["summary"]), Text(), merged, members]
    if told["refusals"]:
        refused = Table(title="Not merged", **style)
        refused.add_column("tables")
        refused.add_column("why")
        for each in told["refusals"]:
            refused.add_row(" and ".join(each["tables"]), each["why"])
        parts.append(refused)
    parts.append(groups)
    if len(told["bytes"]["ranks"]) > 1:
        parts.append(Text("bytes per rank: " + ", ".join(map(readable_bytes, told["bytes"]["ranks"]))))
    parts += [Text(f"warning: {lint}", style="yellow") for lint in told["lints"]]
    return Group(*parts)


def lints(plan: Plan, observed: Mapping[str, ObservedIds]) -> list[str]:
    """What is legal and probably not meant: one line each, with the remedy."""
    found = []
    kinds = _id_columns(plan.schema)
    for name, (table, _) in plan.logical.items():
        types = {kinds[key][1] for key in table.features if key in kinds}
        if len(types) > 1:
            found.append(
                f"table {name} is read by string and by integer columns ({', '.join(table.features)}): "
                "strings are hashed, so the same id gets two rows; give one of them a table of its own"
            )
        read = {key: observed[key] for key in table.features if key in observed and len(observed[key])}
        seen = len(functools.reduce(np.union1d, [each.ids for each in read.values()], np.zeros(0, np.int64)))
        vocabulary = table.vocabulary
        for (one, a), (two, b) in itertools.combinations(read.items(), 2):
            if min(len(a), len(b)) >= FEW_IDS and not len(np.intersect1d(a.ids, b.ids)):
                found.append(
                    f"table {name} is read by {one} (ids {a.range}) and {two} (ids {b.range}), which have none in common: "
                    "give one of them a table of its own, unless they are to meet later"
                )
        if isinstance(vocabulary, Identity):
            for key, each in read.items():
                beyond = int(((each.ids < 0) | (each.ids >= vocabulary.size)).sum())
                if beyond:
                    found.append(
                        f"table {name} has rows for 0..{vocabulary.size - 1:,} and {key} holds {each.range}: {beyond:,} of "
                        f"{len(each):,} ids read the unknown row; raise the size, or use Hashed or Dynamic"
                    )
        if isinstance(vocabulary, Dynamic) and seen > vocabulary.capacity:
            found.append(
                f"table {name} has capacity for {vocabulary.capacity:,} ids and {seen:,} were seen: rows will be evicted "
                "while still in use; raise the capacity or admit_after"
            )
        if isinstance(vocabulary, Hashed) and seen > CROWDED * vocabulary.size:
            found.append(
                f"table {name} hashes {seen:,} ids into {vocabulary.size:,} rows: "
                f"{_sharing(seen, vocabulary.size):.0%} of them share a row; raise the size or use Dynamic"
            )
    by_column: dict[str, dict[str, list[str]]] = {}
    for key, (column, _) in kinds.items():
        table_of = next(lookup.table for lookup in plan.lookups if f"{lookup.group}.{lookup.feature}" == key)
        by_column.setdefault(column, {}).setdefault(table_of, []).append(key)
    for column, tables in by_column.items():
        if len(tables) > 1:
            told = "; ".join(f"{table} (read by {', '.join(keys)})" for table, keys in tables.items())
            found.append(
                f"ids of {column} live in {len(tables)} tables: {told}; "
                "what one learns the other doesn't know: declare one Table and name it in each, unless that is meant"
            )
    return found


# ---------------------------------------------------------------------- pieces


def _row(table: MergedTable) -> list[Any]:
    names = ", ".join(member.name for member in table.members)
    return [table.name, names, table.rows, table.dim, table.weight_bytes, table.optimizer_bytes, _why(table)]


def _why(table: MergedTable) -> str:
    said = dict(zip(KEY_PARTS, _key(table), strict=True))
    told = f"{said['vocabulary']}, {said['optimizer']}, {said['initialiser']}"
    if len(table.members) == 1:
        return f"alone in its class: {told}"
    return f"equal dim, {told}"


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


def _per_rank(plan: Plan, world_size: int) -> list[int]:
    """Bytes of weights and optimizer state per rank when every merged table is split by rows, as torchrec splits them."""
    per_rank = [0] * world_size
    for table in plan.tables:
        block = -(-table.rows // world_size)
        for rank in range(world_size):
            rows = max(0, min(block, table.rows - rank * block))
            per_rank[rank] += rows * (table.weight_bytes + table.optimizer_bytes) // table.rows
    return per_rank


def _tokens(schema: Schema, group: str) -> dict[str, int]:
    sequence = next((s for s in schema.sequences if s.name == group), None)
    rows = 1 if group == USER else sequence.max_length if sequence else schema.candidates.max_candidates
    per_row = tokens_per_row(schema, group)
    return {"per_row": per_row, "rows": rows, "most": rows * per_row}


def _flops(plan: Plan, tokens: Mapping[str, Mapping[str, int]], d_model: int, blocks: int) -> dict[str, float]:
    """Forward FLOPs of the largest sample: two per multiply-add; attention counts the pairs that MTGR's rule lets see each other."""
    projection = 2.0 * d_model * sum(_width(plan, group) * each["rows"] for group, each in tokens.items())
    realtime = plan.schema.realtime.name if plan.schema.realtime else None
    r = tokens[realtime]["most"] if realtime else 0
    c = tokens[CANDIDATES]["most"]
    total = sum(each["most"] for each in tokens.values())
    known = total - r - c
    pairs = known * known + r * (known + r / 2) + c * (known + r + 1)
    # U, Q, K, V and the output: five d x d products a token; scores and their product with V: two of d a pair.
    encoder = blocks * (2.0 * 5 * d_model**2 * total + 2.0 * 2 * d_model * pairs)
    return {"projection": projection, "encoder": encoder, "total": projection + encoder}


def _width(plan: Plan, group: str) -> int:
    numbers = 0
    for feature in dict(plan.schema.groups())[group]:
        transform = transform_of(feature)
        if transform is not None and transform.kind in ("dense", "log"):
            numbers += 2
        elif transform is not None and transform.kind == "autodis":
            numbers += transform.dim
    return numbers + sum(lookup.dim for lookup in plan.lookups_of(group))


def _id_columns(schema: Schema) -> dict[str, tuple[str, str]]:
    """`<group>.<feature>` -> (reference, "string" or "integer") of every embedded id that is a column as it is."""
    found = {}
    for group, features in schema.groups():
        types = offered(schema, group)
        for feature in features:
            if isinstance(feature, Categorical | MultiValued):
                reference = feature.column or feature.name
                kind = "string" if "string" in types.get(reference, "int64") else "integer"
                found[f"{group}.{feature.name}"] = (reference, kind)
    return found


def _sharing(ids: int, rows: int) -> float:
    """Expected share of ids that share their row with another."""
    return float(1 - (1 - 1 / rows) ** (ids - 1))


def readable_bytes(size: float) -> str:
    """`1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"

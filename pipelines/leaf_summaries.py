"""A file of samples, summarized leaf by leaf while its rows are in memory; summaries merge (`sample_statistics`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from genrank.pipelines.cross_feature_ops import evaluation_of
from genrank.pipelines.cross_features import key_sets
from genrank.pipelines.messages import LeafSummary
from genrank.pipelines.sample_columns import LABELS, TS, weight_of
from genrank.schemas import Schema
from genrank.schemas.derive.sample_schema import leaves
from genrank.schemas.ids import MISSING_ID
from genrank.schemas.schema import CANDIDATES, USER

SAMPLE = 512
"""Numbers kept of each leaf and file, evenly spread; each stands for its share of the file's."""
COUNTED = 1 << 18
"""Ids counted of each leaf and file at most, evenly spread."""
TOP = 64
"""Most frequent ids kept."""


def summarize(table: pa.Table, schema: Schema, day: int) -> Iterator[LeafSummary]:
    """A row per leaf of a file of samples: features, lengths of lists, and labels where they are mature."""
    if not table.num_rows:
        return
    table = table.combine_chunks()
    groups = {
        name: table.column(name).chunk(0)
        for name in table.column_names
        if pa.types.is_struct(table.schema.field(name).type)
    }
    for leaf in leaves(schema):
        column = groups[leaf.group].field(leaf.name)
        values = column if leaf.group == USER else column.flatten()
        if leaf.stored == "ids":
            lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
            yield _number(day, f"{leaf.group}.{leaf.name}.length", lengths)
            yield _id(day, f"{leaf.group}.{leaf.name}", values.flatten().to_numpy())
        elif leaf.stored == "id":
            yield _id(day, f"{leaf.group}.{leaf.name}", values.to_numpy())
        else:
            number = values.to_numpy().astype(np.float64)
            yield _number(day, f"{leaf.group}.{leaf.name}", np.where(number == MISSING_ID, np.nan, number))
    for name in (CANDIDATES, *(sequence.name for sequence in schema.sequences)):
        lengths = pc.list_value_length(groups[name].field(TS)).to_numpy(zero_copy_only=False)
        yield _number(day, f"{name}.length", lengths)
    for label in schema.labels:
        leaves_of = (label.name, weight_of(label.name))
        value, weight = (groups[LABELS].field(leaf).flatten().to_numpy() for leaf in leaves_of)
        yield _number(day, f"labels.{label.name}", np.where(weight > 0, value, np.nan), weight)
    for key_set in key_sets(schema):
        leaves_ = {feature: groups[CANDIDATES].field(feature.name).flatten() for feature in key_set.features}
        found = np.any(
            [evaluation_of(feature).saw_events(feature, values.to_numpy()) for feature, values in leaves_.items()],
            axis=0,
        )
        by = f" by {', '.join(key_set.keys)}" if key_set.keys else ""
        name = f"candidates → {', '.join(sorted(key_set.windows(schema)))}{by}"
        yield from join_summaries(day, {name: (int(found.sum()), len(found))})


def join_summaries(day: int, joins: Mapping[str, tuple[int, int]]) -> Iterator[LeafSummary]:
    """A row per join, from its name -> (rows that found a partner, rows that asked)."""
    for name, (found, asked) in joins.items():
        yield LeafSummary(day, name, "join", count=asked, missing=asked - found)


def _number(day: int, leaf: str, values: NDArray[Any], weights: NDArray[Any] | None = None) -> LeafSummary:
    present = ~np.isnan(values)
    known = values[present].astype(np.float64)
    share = np.ones(len(known)) if weights is None else weights[present].astype(np.float64)
    step = max(1, -(-len(known) // SAMPLE))
    kept = known[step // 2 :: step] if len(known) else known
    return LeafSummary(
        day,
        leaf,
        "number",
        count=len(values),
        missing=int((~present).sum()),
        total=float((known * share).sum()),
        low=float(known.min()) if len(known) else None,
        high=float(known.max()) if len(known) else None,
        values=kept.tolist(),
        weights=[float(share.sum()) / max(1, len(kept))] * len(kept),
    )


def _id(day: int, leaf: str, values: NDArray[Any]) -> LeafSummary:
    missing = int((values == MISSING_ID).sum())
    step = max(1, -(-len(values) // COUNTED))
    ids, counts = np.unique(values[::step], return_counts=True)
    counts, ids = counts[ids != MISSING_ID], ids[ids != MISSING_ID]
    top = np.lexsort((ids, -counts))[:TOP]
    return LeafSummary(
        day,
        leaf,
        "id",
        count=len(values),
        missing=missing,
        distinct=len(ids),
        ids=ids[top].tolist(),
        id_counts=(counts[top] * float(step)).tolist(),
    )

"""A file of samples, summarized leaf by leaf; summaries merge (`sample_statistics`).

A moment (`TimeGap` of a column) is summarized as what the model reads, the seconds from it to its row's own time, as leaf
`gap(candidates.item_age)`: epoch times only grow. Lengths of lists are leaves of their own, `len(history)`. No feature has such a name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from genrank.pipelines.cross_feature_ops import evaluation_of
from genrank.pipelines.cross_features import key_sets
from genrank.pipelines.merge_scan import mix
from genrank.pipelines.messages import LeafSummary
from genrank.pipelines.sample_columns import LABELS, TS, WINDOW_START, weight_of
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
SKETCH = 1024
"""Smallest hashes of different ids kept of each leaf and file: the number of different ids of any files together is exact below
this, and estimated above it with a standard error of 1 / sqrt(SKETCH - 2), 3 % (the KMV sketch: Bar-Yossef et al., RANDOM 2002)."""


def gap_of(feature: str) -> str:
    """The leaf of the seconds since a feature's moment."""
    return f"gap({feature})"


def length_of(group: str) -> str:
    """The leaf of the lengths of a group's lists, or of a feature's (`candidates.tags`)."""
    return f"len({group})"


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
            yield _number(day, length_of(f"{leaf.group}.{leaf.name}"), lengths)
            yield _id(day, f"{leaf.group}.{leaf.name}", values.flatten().to_numpy())
        elif leaf.stored == "vector":
            yield _number(day, f"{leaf.group}.{leaf.name}", _norms(values))
        elif leaf.stored == "id":
            yield _id(day, f"{leaf.group}.{leaf.name}", values.to_numpy())
        elif leaf.stored == "time":
            own = table.column(WINDOW_START) if leaf.group == USER else groups[leaf.group].field(TS).flatten()
            yield _number(day, gap_of(f"{leaf.group}.{leaf.name}"), _seconds_since(values.to_numpy(), own.to_numpy()))
        else:
            yield _number(day, f"{leaf.group}.{leaf.name}", values.to_numpy())
    for name in (CANDIDATES, *(sequence.name for sequence in schema.sequences)):
        lengths = pc.list_value_length(groups[name].field(TS)).to_numpy(zero_copy_only=False)
        yield _number(day, length_of(name), lengths)
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
    present = ~np.isnan(values) if values.dtype.kind == "f" else np.ones(len(values), np.bool_)
    missing = len(values) - int(np.count_nonzero(present))
    known = (values[present] if missing else values).astype(np.float64, copy=False)
    if weights is None:
        total, share = float(known.sum()), float(len(known))
    else:
        own = weights[present].astype(np.float64)
        total, share = float((known * own).sum()), float(own.sum())
    step = max(1, -(-len(known) // SAMPLE))
    kept = known[step // 2 :: step] if len(known) else known
    return LeafSummary(
        day,
        leaf,
        "number",
        count=len(values),
        missing=missing,
        total=total,
        low=float(known.min()) if len(known) else None,
        high=float(known.max()) if len(known) else None,
        values=kept.tolist(),
        weights=[share / max(1, len(kept))] * len(kept),
    )


def _seconds_since(moments: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.float64]:
    """From each moment to its row's time (the user's: to the window's start); NaN where there is no moment."""
    missing = moments == MISSING_ID
    seconds: NDArray[np.float64] = (own - np.where(missing, own, moments)).astype(np.float64) / 1000
    return np.where(missing, np.nan, seconds)


def _norms(vectors: pa.ListArray) -> NDArray[np.float64]:
    """Euclidean norms; NaN where a vector is missing."""
    lengths = pc.list_value_length(vectors).to_numpy(zero_copy_only=False).astype(np.int64)
    squares = np.zeros(len(lengths))
    np.add.at(
        squares, np.repeat(np.arange(len(lengths)), lengths), vectors.flatten().to_numpy().astype(np.float64) ** 2
    )
    norms: NDArray[np.float64] = np.where(lengths > 0, np.sqrt(squares), np.nan)
    return norms


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
        sketch=_smallest_hashes(ids),
        counted=-(-len(values) // step),
        ids=ids[top].tolist(),
        id_counts=(counts[top] * float(step)).tolist(),
    )


def _smallest_hashes(ids: NDArray[np.int64]) -> list[int]:
    """Of different ids, ascending."""
    hashes = mix(ids)
    kept = np.partition(hashes, SKETCH - 1)[:SKETCH] if len(hashes) > SKETCH else hashes
    smallest: list[int] = np.sort(kept).tolist()
    return smallest

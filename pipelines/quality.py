"""The quality gate: nothing is published that breaks an invariant of the sample contract.

Tasks count violations per file while the rows are in memory; Great Expectations then judges the counts, so a day of any size is
gated in seconds and the verdict names the invariant, the file and the number of rows.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genrank.pipelines.merge_scan import Int
from genrank.schemas import Schema, UserError
from genrank.schemas.derive.sample_schema import arrow_schema
from genrank.schemas.schema import CANDIDATES

INVARIANTS = {
    "contract": "the file has the contract's Arrow schema, without nulls",
    "window": "window_end follows window_start, and sample ids are unique",
    "lengths": "lists of one group have one length",
    "candidates_in_window": "every candidate was exposed inside its window, in time order",
    "some_candidate": "every sample has a candidate",
    "history_before_window": "every history event happened before its window",
    "realtime_in_window": "every realtime event became available inside its window, in that order",
    "candidate_sees": "candidate_sees counts the realtime events available strictly before the exposure",
    "realtime_sees": "realtime_sees counts the realtime events available strictly before the event",
    "labels": "binary labels are 0 or 1; weights are finite and not negative",
    "max_length": "no sequence or candidate list is longer than the schema allows",
}


def violations(table: pa.Table, schema: Schema, day: int) -> pa.Table:
    """One row: samples that break each invariant, computed from the stored values alone."""
    table = table.combine_chunks()
    broken = dict.fromkeys(INVARIANTS, 0)
    expected = arrow_schema(schema)
    broken["contract"] = int(not table.schema.equals(expected)) + sum(_nulls(column) for column in table.columns)
    start, end = (table.column(name).to_numpy() for name in ("window_start", "window_end"))
    broken["window"] = int((end <= start).sum()) + table.num_rows - pc.count_distinct(table.column("sample_id")).as_py()
    groups = {
        name: _group(table, name)
        for name in expected.names
        if pa.types.is_struct(expected.field(name).type) and name != "user"
    }
    candidates = groups[CANDIDATES]
    length, sample, ts = candidates.lengths, candidates.sample, candidates.values["ts"]
    broken["lengths"] = sum(group.ragged for name, group in groups.items() if name != "mask")
    broken["lengths"] += int((groups["labels"].lengths != length).sum())
    late_or_early = (ts < start[sample]) | (ts >= end[sample])
    backwards = (sample[1:] == sample[:-1]) & (ts[1:] < ts[:-1])
    broken["candidates_in_window"] = int(late_or_early.sum() + backwards.sum())
    broken["some_candidate"] = int((length == 0).sum())
    broken["max_length"] = int((length > schema.candidates.max_candidates).sum())
    for sequence in schema.sequences:
        group = groups[sequence.name]
        broken["max_length"] += int((group.lengths > sequence.max_length).sum())
        if sequence.scope == "history":
            broken["history_before_window"] += int((group.values["ts"] >= start[group.sample]).sum())
            continue
        seen = group.values["available"]
        outside = (seen < start[group.sample]) | (seen >= end[group.sample])
        unordered = (group.sample[1:] == group.sample[:-1]) & (seen[1:] < seen[:-1])
        broken["realtime_in_window"] = int(outside.sum() + unordered.sum())
        mask = table.column("mask").combine_chunks()
        told, own = (_leaf(mask, name) for name in ("candidate_sees", "realtime_sees"))
        if len(told[1]) != len(ts) or len(own[1]) != len(seen):
            broken["lengths"] += 1
            continue
        broken["candidate_sees"] = int((told[1] != _earlier(group, seen, sample, ts)).sum())
        broken["realtime_sees"] = int((own[1] != _earlier(group, seen, group.sample, seen)).sum())
    labels = groups["labels"].values
    for label in schema.labels:
        value, weight = labels[label.name], labels[f"{label.name}_weight"]
        if label.kind == "binary":
            broken["labels"] += int(((value != 0) & (value != 1)).sum())
        broken["labels"] += int((~np.isfinite(weight) | (weight < 0)).sum())
    return pa.table({"day": [day], "samples": [table.num_rows], **{name: [count] for name, count in broken.items()}})


class _Group:
    """A struct of lists: values of its number leaves, one length per sample."""

    def __init__(self, struct: pa.StructArray) -> None:
        leaves = {field.name: _leaf(struct, field.name) for field in struct.type}
        self.lengths: Int = next(iter(leaves.values()))[0]
        self.ragged = sum(int((lengths != self.lengths).sum()) for lengths, _ in leaves.values())
        self.values = {name: values for name, (_, values) in leaves.items() if values is not None}
        self.sample: Int = np.repeat(np.arange(len(self.lengths)), self.lengths)


def _group(table: pa.Table, name: str) -> _Group:
    return _Group(_chunk(table.column(name)))


def _chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    combined = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined


def _leaf(struct: pa.StructArray, name: str) -> tuple[Int, Any]:
    lists = _chunk(struct).field(name)
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    values = lists.flatten()
    return lengths, None if pa.types.is_list(values.type) else values.to_numpy(zero_copy_only=False)


def _earlier(group: _Group, seen: Int, sample: Int, moments: Int) -> Int:
    """Realtime events of the sample available strictly before each moment: counted by sorting, not as the builder does."""
    rows, moment_rows = len(seen), len(moments)
    which = np.concatenate([np.zeros(moment_rows, np.int64), np.ones(rows, np.int64)])
    order = np.lexsort((which, np.concatenate([moments, seen]), np.concatenate([sample, group.sample])))
    is_event = order >= moment_rows
    running = np.cumsum(is_event)
    begins = np.concatenate([[0], np.cumsum(group.lengths)])
    out = np.empty(moment_rows, np.int64)
    asked = ~is_event
    out[order[asked]] = running[asked]
    counted: Int = out - begins[sample]
    return counted


def _nulls(column: pa.ChunkedArray) -> int:
    def count(array: pa.Array) -> int:
        total: int = array.null_count
        if pa.types.is_struct(array.type):
            return total + sum(count(array.field(i)) for i in range(array.type.num_fields))
        if pa.types.is_list(array.type):
            return total + count(array.flatten())
        return total

    return sum(count(chunk) for chunk in column.chunks)


def gate(checks: pa.Table, rates: dict[tuple[str, str], tuple[float, float]]) -> None:
    """Judge what was built.

    Args:
        checks: `violations` of every file.
        rates: (source, day) -> (share of rows quarantined, the schema's limit).

    Raises:
        UserError: naming each invariant that is broken, where, and by how many rows.
    """
    import pandas as pd

    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    for name in ("great_expectations", "posthog"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import great_expectations as gx
    import great_expectations.expectations as gxe

    frame = checks.to_pandas()
    limits = pd.DataFrame(
        [
            {"source": s, "day": d, "rate": rate, "excess": max(0.0, rate - limit)}
            for (s, d), (rate, limit) in rates.items()
        ],
        columns=["source", "day", "rate", "excess"],
    )
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = gx.data_context.types.base.ProgressBarsConfig(globally=False)
    source = context.data_sources.add_pandas("samples")
    failed = []
    for name, data, columns in (("checks", frame, list(INVARIANTS)), ("quarantine", limits, ["excess"])):
        suite = gx.ExpectationSuite(name=name)
        for column in columns:
            suite.add_expectation(gxe.ExpectColumnValuesToBeBetween(column=column, min_value=0, max_value=0))
        batch = (
            source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all").get_batch({"dataframe": data})
        )
        result = batch.validate(suite)
        failed += [r.expectation_config.kwargs["column"] for r in result.results if not r.success]
    if "excess" in failed:
        for row in limits[limits.excess > 0].itertuples():
            limit = rates[row.source, row.day][1]
            raise UserError(
                f"source {row.source!r}: {row.rate:.1%} of {row.day}'s rows are quarantined, more than max_quarantine_rate"
                f" {limit:.1%}; nothing was published. The rows and reasons lie in quarantine/dt={row.day}"
            )
    if failed:
        told = "; ".join(f"{INVARIANTS[name]} ({int(frame[name].sum())} broken)" for name in failed)
        raise UserError(f"quality gate: {told}; nothing was published")

"""The quality gate: nothing is published that breaks an invariant of the sample contract.

Tasks count violations per file while the rows are in memory; Great Expectations then judges the counts, so a day of any size is
gated in seconds and the verdict names the invariant and the number of rows.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genrank.pipelines.arrays import single_array
from genrank.pipelines.merge_scan import Int
from genrank.pipelines.messages import InvariantReport
from genrank.pipelines.sample_columns import (
    AVAILABLE,
    CANDIDATE_SEES,
    LABELS,
    MASK,
    REALTIME_SEES,
    SAMPLE_ID,
    TS,
    WINDOW_END,
    WINDOW_START,
    weight_of,
)
from genrank.schemas import Schema, UserError
from genrank.schemas.derive.sample_schema import arrow_schema
from genrank.schemas.schema import CANDIDATES, USER

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


def violations(table: pa.Table, schema: Schema, day: int) -> InvariantReport:
    """How many samples of a file break each invariant, computed from the stored values alone."""
    table = table.combine_chunks()
    broken = dict.fromkeys(INVARIANTS, 0)
    expected = arrow_schema(schema)
    broken["contract"] = int(not table.schema.equals(expected)) + sum(_nulls(column) for column in table.columns)
    start, end = (table.column(name).to_numpy() for name in (WINDOW_START, WINDOW_END))
    broken["window"] = int((end <= start).sum()) + table.num_rows - pc.count_distinct(table.column(SAMPLE_ID)).as_py()
    groups = {
        name: _group(table, name)
        for name in expected.names
        if pa.types.is_struct(expected.field(name).type) and name != USER
    }
    candidates = groups[CANDIDATES]
    length, sample, ts = candidates.lengths, candidates.sample, candidates.values[TS]
    broken["lengths"] = sum(group.ragged for name, group in groups.items() if name != MASK)
    broken["lengths"] += int((groups[LABELS].lengths != length).sum())
    late_or_early = (ts < start[sample]) | (ts >= end[sample])
    backwards = (sample[1:] == sample[:-1]) & (ts[1:] < ts[:-1])
    broken["candidates_in_window"] = int(late_or_early.sum() + backwards.sum())
    broken["some_candidate"] = int((length == 0).sum())
    broken["max_length"] = int((length > schema.candidates.max_candidates).sum())
    for sequence in schema.sequences:
        group = groups[sequence.name]
        broken["max_length"] += int((group.lengths > sequence.max_length).sum())
        if sequence.scope == "history":
            broken["history_before_window"] += int((group.values[TS] >= start[group.sample]).sum())
            continue
        seen = group.values[AVAILABLE]
        outside = (seen < start[group.sample]) | (seen >= end[group.sample])
        unordered = (group.sample[1:] == group.sample[:-1]) & (seen[1:] < seen[:-1])
        broken["realtime_in_window"] = int(outside.sum() + unordered.sum())
        mask = single_array(table.column(MASK))
        by_candidate, by_event = (_leaf(mask, name) for name in (CANDIDATE_SEES, REALTIME_SEES))
        if len(by_candidate[1]) != len(ts) or len(by_event[1]) != len(seen):
            broken["lengths"] += 1
            continue
        broken["candidate_sees"] = int((by_candidate[1] != _earlier(group, seen, sample, ts)).sum())
        broken["realtime_sees"] = int((by_event[1] != _earlier(group, seen, group.sample, seen)).sum())
    labels = groups[LABELS].values
    for label in schema.labels:
        value, weight = labels[label.name], labels[weight_of(label.name)]
        if label.kind == "binary":
            broken["labels"] += int(((value != 0) & (value != 1)).sum())
        broken["labels"] += int((~np.isfinite(weight) | (weight < 0)).sum())
    return InvariantReport(day, table.num_rows, {name: int(count) for name, count in broken.items()})


class _Group:
    """A struct of lists: values of its number leaves, one length per sample."""

    def __init__(self, struct: pa.StructArray) -> None:
        leaves = {field.name: _leaf(struct, field.name) for field in struct.type}
        self.lengths: Int = next(iter(leaves.values()))[0]
        self.ragged = sum(int((lengths != self.lengths).sum()) for lengths, _ in leaves.values())
        self.values = {name: values for name, (_, values) in leaves.items() if values is not None}
        self.sample: Int = np.repeat(np.arange(len(self.lengths)), self.lengths)


def _group(table: pa.Table, name: str) -> _Group:
    return _Group(single_array(table.column(name)))


def _leaf(struct: pa.StructArray, name: str) -> tuple[Int, Any]:
    lists = single_array(struct).field(name)
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


class QuarantineRate(NamedTuple):
    """Share of a source's rows of one day that were quarantined, and the schema's limit."""

    source: str
    dt: str
    rate: float
    limit: float
    reasons: Mapping[str, int]
    """Reason -> rows."""

    @property
    def why(self) -> str:
        """The most frequent reasons, with their rows."""
        worst = sorted(self.reasons.items(), key=lambda reason: (-reason[1], reason[0]))
        more = f" and {len(worst) - 3} more reasons" if len(worst) > 3 else ""
        return ", ".join(f"{rows:,} {reason}" for reason, rows in worst[:3]) + more

    @property
    def excess(self) -> float:
        """By how much the limit is passed."""
        return max(0.0, self.rate - self.limit)


def gate(checks: Sequence[InvariantReport], rates: Sequence[QuarantineRate]) -> None:
    """Judge what was built.

    Args:
        checks: `violations` of every file.
        rates: of every source and day.

    Raises:
        UserError: naming each invariant that is broken, where, and by how many rows.
    """
    import pandas as pd

    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    for name in ("great_expectations", "posthog"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.expectations.core.expect_column_values_to_be_between import (
        ExpectColumnValuesToBeBetween,
    )

    frame = pd.DataFrame([check.broken for check in checks], columns=list(INVARIANTS))
    limits = pd.DataFrame({"excess": [rate.excess for rate in rates]}, dtype=float)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_pandas("samples")
    failed = []
    for name, data, columns in (("checks", frame, list(INVARIANTS)), ("quarantine", limits, ["excess"])):
        suite = gx.ExpectationSuite(name=name)
        for column in columns:
            suite.add_expectation(ExpectColumnValuesToBeBetween(column=column, min_value=0, max_value=0))
        batch = (
            source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all").get_batch({"dataframe": data})
        )
        result = batch.validate(suite)
        failed += [
            r.expectation_config.kwargs["column"] for r in result.results if r.expectation_config and not r.success
        ]
    if "excess" in failed:
        worst = next(rate for rate in rates if rate.excess > 0)
        raise UserError(
            f"source {worst.source!r}: {worst.rate:.1%} of {worst.dt}'s rows are quarantined, more than max_quarantine_rate"
            f" {worst.limit:.1%} ({worst.why}); nothing was published. The rows and reasons lie in quarantine/dt={worst.dt}"
        )
    if failed:
        broken = "; ".join(f"{INVARIANTS[name]} ({int(frame[name].sum())} broken)" for name in failed)
        raise UserError(f"quality gate: {broken}; nothing was published")

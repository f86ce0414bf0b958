"""Labels: what happened after an exposure, as far as it was known at `as_of`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrank.pipelines.arrays import int64s
from genrank.pipelines.column_roles import Column
from genrank.pipelines.exact_sums import grouped, rounded, split
from genrank.pipelines.merge_scan import Int, following, last_before, mix
from genrank.schemas import Label, Schema, UserError
from genrank.schemas.base import parse_duration
from genrank.schemas.ids import MISSING_ID
from genrank.schemas.local_days import LocalDays

Float = NDArray[np.float32]
Load = Callable[[str, list[str]], pa.Table]
"""(log, columns) -> rows of its partials around the day, of this bucket's users."""


class Labels(NamedTuple):
    """One task's value and weight per exposure, and the true probability where the world knows it."""

    value: NDArray[np.float32]
    weight: Float
    oracle: Float | None


def label_exposures(
    schema: Schema, exposures: pa.Table, as_of: int, load: Load, landed: Mapping[str, frozenset[int]]
) -> dict[str, Labels]:
    """Task -> labels of `exposures` (rows of the exposures' partial of one day).

    The weight is 1 where the label is mature: its window, and that of the label it is given, closed strictly before `as_of`, and
    every day that the window touches is among the landed ones of the logs it is matched in (`landed`: log -> days).
    Elsewhere it is 0. A conditional label is positive only where the label it is given is.
    """
    found: dict[str, Labels] = {}
    for label in _givens_first(schema):
        ts = int64s(exposures, "ts")
        value, known = _observed(schema, label, exposures, as_of, load)
        mature = known & (ts + parse_duration(label.window) < as_of)
        for log in logs_of(schema, label):
            mature &= _covered(landed[log], ts, parse_duration(label.window), schema.local_days)
        if label.given:
            given = found[label.given]
            value = np.where(given.value > 0, value, np.float32(0))
            mature &= given.weight > 0
        oracle = exposures.column(Column("number", label.oracle).name).to_numpy() if label.oracle else None
        found[label.name] = Labels(value.astype(np.float32), mature.astype(np.float32), oracle)
    return found


def logs_of(schema: Schema, label: Label) -> tuple[str, ...]:
    """Logs whose rows within its window decide a label: its own, and with attribution to the last exposure the exposures too."""
    if not label.source:
        return ()
    return (label.source, *((schema.candidates.source,) if label.attribution == "last" else ()))


def _covered(landed: frozenset[int], ts: Int, window: int, local_days: LocalDays) -> NDArray[np.bool_]:
    """Whether every day from each `ts` to the end of its window has landed."""
    days = np.array(sorted(landed), np.int64)
    first, last = local_days.days(ts), local_days.days(ts + window)
    there: NDArray[np.bool_] = np.searchsorted(days, last, "right") - np.searchsorted(days, first) == last - first + 1
    return there


def _observed(
    schema: Schema, label: Label, exposures: pa.Table, as_of: int, load: Load
) -> tuple[Float, NDArray[np.bool_]]:
    """(value of each exposure, whether it could be read at all)."""
    if label.column:
        value = exposures.column(Column("number", label.column).name).to_numpy()
        known = ~np.isnan(value)
        value = np.where(known, value, np.float32(0))
        return ((value != 0).astype(np.float32) if label.kind == "binary" else value), known
    assert label.source is not None
    everything = np.ones(exposures.num_rows, np.bool_)
    on = [Column("id", key).name for key in label.on]
    columns = on + ([Column("flag", label.where, sql=True).name] if label.where else [])
    amount = Column("amount", label.value).name if label.value else None
    events = load(label.source, [*columns, *([amount] if amount else [])])
    chosen = int64s(events, "arrived") < as_of
    if label.where:
        chosen &= events.column(Column("flag", label.where, sql=True).name).to_numpy()
    amounts = events.column(amount).to_numpy() if amount else np.ones(events.num_rows)
    chosen &= ~np.isnan(amounts)
    keys, present = _keys(events, on)
    rows = np.flatnonzero(chosen & present)
    keys, ts = keys[rows], int64s(events, "ts")[rows]
    values = amounts[rows]
    window = parse_duration(label.window)
    at_keys, at_present = _keys(exposures, on)
    if label.attribution == "every":
        count, total = following(keys, ts, values, at_keys, int64s(exposures, "ts"), window)
    else:
        count, total = _to_the_last(schema, on, keys, ts, values, exposures, window, load)
    count, total = np.where(at_present, count, 0), np.where(at_present, total, 0)
    if label.kind == "binary":
        return (count > 0).astype(np.float32), everything
    if (np.abs(total) > np.finfo(np.float32).max).any():
        raise UserError(
            f"label {label.name!r}: a sum of {label.value} is beyond float32 (3.4e38); give the column a larger unit"
        )
    return total.astype(np.float32), everything


def _to_the_last(
    schema: Schema,
    on: list[str],
    keys: Int,
    ts: Int,
    values: NDArray[np.float64],
    exposures: pa.Table,
    window: int,
    load: Load,
) -> tuple[Int, NDArray[np.float64]]:
    """Each event counts for the last exposure at or before it, of whatever day, if that lies within the window."""
    shown = load(schema.candidates.source, [*on, "id"])
    shown_keys, present = _keys(shown, on)
    rows = np.flatnonzero(present)
    shown_ts, shown_id = int64s(shown, "ts")[rows], int64s(shown, "id")[rows]
    to = last_before(shown_keys[rows], shown_ts, shown_id, keys, ts)
    hit = np.flatnonzero((to >= 0) & (ts - np.append(shown_ts, 0)[to] <= window))
    credited = shown_id[to[hit]]
    own = int64s(exposures, "id")
    order = np.argsort(own, kind="stable")
    at = np.searchsorted(own[order], credited)
    inside = (at < len(own)) & (own[order][np.minimum(at, len(own) - 1)] == credited)
    row = order[at[inside]]
    count = np.zeros(len(own), np.int64)
    np.add.at(count, row, 1)
    return count, rounded(grouped(split(values[hit][inside]), row, len(own)))


def _keys(table: pa.Table, on: list[str]) -> tuple[Int, NDArray[np.bool_]]:
    columns = [int64s(table, name) for name in on]
    present = np.ones(table.num_rows, np.bool_)
    for column in columns:
        present &= column != MISSING_ID
    return mix(int64s(table, "u"), *columns), present


def _givens_first(schema: Schema) -> list[Label]:
    """Labels ordered so that one comes after the label it is given."""
    by_name = {label.name: label for label in schema.labels}
    ordered: dict[str, Label] = {}

    def visit(label: Label) -> None:
        if label.name not in ordered:
            if label.given:
                visit(by_name[label.given])
            ordered[label.name] = label

    for label in sorted(schema.labels, key=lambda label: label.name):
        visit(label)
    return list(ordered.values())

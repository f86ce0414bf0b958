"""What a caller gives as exposures about to happen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import TypeAlias, TypeGuard

import pyarrow as pa

from genrank.pipelines.merge_scan import Int
from genrank.pipelines.sources import times_of
from genrank.schemas import EventLog, Schema, UserError
from genrank.schemas.base import ARROW_TYPES

Exposures: TypeAlias = pa.Table | Mapping[str, object]
"""A row a candidate: a table, or a mapping of a column to its values or to one value for all candidates."""


def exposures_of(log: EventLog, given: Exposures) -> pa.Table:
    """As a table.

    Raises:
        UserError: no candidate, lists of different lengths, or a value that is none of its column's type.
    """
    table = given if isinstance(given, pa.Table) else _table(log, given)
    if not table.num_rows:
        raise UserError("a request has no exposure; give at least one candidate")
    return table


def moments(schema: Schema, exposures: pa.Table) -> Int:
    """[n] epoch ms of exposures.

    Raises:
        UserError: one has no time.
    """
    log = schema.exposures
    if log.time not in exposures.column_names:
        raise UserError(f"a request's exposures have no column {log.time}, their time")
    ms = times_of(log, exposures.column(log.time)).values
    if ms.null_count:
        raise UserError(f"a request's exposure has no time in column {log.time}")
    found: Int = ms.to_numpy()
    return found


def day_of(schema: Schema, times: Int) -> int:
    """The schema's day in which all moments lie.

    Raises:
        UserError: they lie in several.
    """
    first, last = schema.local_days.days(times[[times.argmin(), times.argmax()]]).tolist()
    if first != last:
        raise UserError("a request's exposures are of several users or days; make a request of each")
    return int(first)


def _table(log: EventLog, given: Mapping[str, object]) -> pa.Table:
    lengths: dict[str, int] = {}
    for name, values in given.items():
        if name not in log.columns:
            raise UserError(f"log {log.name!r} has no column {name!r}; it has {', '.join(log.columns)}")
        if _is_column(values, log.columns[name]):
            lengths[name] = len(values)
    rows = next(iter(lengths.values()), 1)
    if uneven := next((name for name, length in lengths.items() if length != rows), None):
        raise UserError(f"{uneven} has {lengths[uneven]} values and {next(iter(lengths))} {rows}; give one a candidate")
    columns = {}
    for name, values in given.items():
        type_ = ARROW_TYPES[log.columns[name]]
        try:
            if name in lengths:
                columns[name] = values if isinstance(values, pa.Array) else pa.array(values, type_)
            else:
                columns[name] = pa.repeat(pa.scalar(values, type_), rows)
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError, ValueError) as error:
            raise UserError(f"column {name} is declared {log.columns[name]}: {error}") from error
    return pa.table(columns)


def _is_column(values: object, declared: str) -> TypeGuard[Sized]:
    """Whether it is one value a candidate."""
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        return hasattr(values, "__len__") and not isinstance(values, str | bytes)
    if declared.startswith("list<"):
        return any(value is None or (not isinstance(value, str) and hasattr(value, "__len__")) for value in values)
    return True

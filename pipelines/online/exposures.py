"""A request's exposures as the build would normalize them, in a few calls a column.

What depends on the schema alone is sorted out once: which columns are the exposure's own, which are looked up in a snapshot, and which SQL
reads nothing but one snapshot, so that its value of every key is there before a request asks. A row that any check stops is left to the
build's own `Normalizer`, which gives the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl
import pyarrow as pa

from genrank.pipelines.arrays import single_array, to_polars
from genrank.pipelines.column_roles import NUMBERS, Column
from genrank.pipelines.columns import (
    compute,
    cross_features,
    feature_column,
    fill,
    key_column,
    owner,
    references,
    store,
)
from genrank.pipelines.merge_scan import Int
from genrank.pipelines.online.conditions import bounds_of, surely_met
from genrank.pipelines.online.snapshots import SnapshotDays
from genrank.schemas import Schema, UserError
from genrank.schemas.base import ARROW_TYPES, DAY_MS, parse_duration
from genrank.schemas.conversion import FIRST_MS, convert, epoch_ms

Make = Callable[[pa.Table], pa.Array]
"""Rows of a snapshot's partial -> a value of each."""


@dataclass(frozen=True)
class Shown:
    """Exposures of one day, [n] rows."""

    user: pa.Array
    """As declared."""
    u: Int
    """Hashed."""
    ts: Int
    """Epoch ms."""
    columns: Mapping[str, pa.Array]
    """Columns of the exposures' partial that requests need, by name."""


class ExposureReader:
    """Reads raw exposures.

    Args:
        schema: whose candidates they are.
        columns: of the exposures' partials.
        snapshots: by name.
    """

    def __init__(self, schema: Schema, columns: tuple[Column, ...], snapshots: Mapping[str, SnapshotDays]) -> None:
        self._schema, self._log, self._snapshots = schema, schema.exposures, snapshots
        self._days = schema.local_days
        log = self._log
        self._user, self._item = Column("id", log.user), Column("id", schema.candidates.item)
        asked = {column for feature in schema.candidates.features if (column := feature_column(feature))}
        asked |= {key_column(schema, key) for feature in cross_features(schema) for key in feature.keys}
        asked |= {self._item} | ({Column("id", schema.candidates.request)} if schema.candidates.request else set())
        self._own: list[tuple[Column, str, str, bool]] = []
        """(column, its name, the log's column, whether requests have it) of those that are one of the log's."""
        self._joined: list[tuple[str, str, Make]] = []
        """(name, snapshot, what makes it of the snapshot's rows)."""
        self._looked_up: list[tuple[Column, str, str, Make]] = []
        """(column, name, snapshot, what makes it) of SQL over one snapshot alone."""
        self._evaluated: list[Column] = []
        """Other SQL."""
        for column in columns:
            if column not in asked and column.role not in NUMBERS:
                continue
            of = {found[0].name for name in references(column) if (found := owner(schema, log, name))}
            snapshot = next(iter(of)) if len(of) == 1 and of != {log.name} else None
            if column.sql and snapshot and all(owner(schema, log, name) for name in references(column)):
                self._looked_up.append((column, column.name, snapshot, partial(self._every_key, column)))
            elif column.sql:
                self._evaluated.append(column)
            elif snapshot:
                found = owner(schema, log, column.expression)
                assert found
                kept = Column(column.role, found[1], limit=column.limit).name
                self._joined.append((column.name, snapshot, partial(_filled, column, kept)))
            else:
                own = column.expression.removeprefix(f"{log.name}.")
                self._own.append((column, column.name, own, column in asked))
        self._read: dict[Column, tuple[tuple[str, str, str], ...]] = {}
        """Column -> `_sources`, of those that were evaluated."""
        self._valid = [(Column("flag", text, sql=True), bounds_of(log, text)) for text in log.valid]
        self._lateness = parse_duration(log.lateness) + DAY_MS + schema.local_days.spread

    def _sources(self, column: Column) -> Iterator[tuple[str, str, str]]:
        """(reference, source, its column) of what a column reads."""
        for name in references(column):
            if found := owner(self._schema, self._log, name):
                yield name, found[0].name, found[1]

    def read(self, raw: pa.Table, ts: Int, day: int) -> Shown | None:
        """Exposures of a day; None where the build would quarantine one.

        Args:
            raw: declared columns; those that are missing are null.
            ts: [n] their moments, epoch ms.
            day: the schema's.
        """
        log = self._log
        declared: dict[str, pa.Array] = {}
        for name in log.columns:
            if name in raw.column_names:
                converted = convert(single_array(raw.column(name)), log.columns[name])
                if converted.misfits:
                    return None
                declared[name] = converted.values
        for name in (log.user, self._item.expression):
            if name not in declared or declared[name].null_count:
                return None
        if log.arrival in declared:
            arrived = epoch_ms(declared[log.arrival], log.time_unit)
            late = arrived.values.fill_null(FIRST_MS).to_numpy() - ts > self._lateness
            if arrived.misfits or late.any():
                return None
        columns = self._columns(declared, raw.num_rows, day)
        if columns is None:
            return None
        u = columns.get(self._user.name)
        if u is None:
            u = store(declared[log.user], self._user)
        return Shown(declared[log.user], u.to_numpy(), ts, columns)

    def _columns(self, declared: Mapping[str, pa.Array], rows: int, day: int) -> dict[str, pa.Array] | None:
        columns: dict[str, pa.Array] = {}
        for column, name, own, asked in self._own:
            if own in declared:
                columns[name] = store(declared[own], column)
            elif asked:
                columns[name] = store(pa.nulls(rows, ARROW_TYPES[self._log.columns[own]]), column)
        places: dict[str, pa.Array] = {}
        for name, snapshot, make in self._joined:
            at = self._at(snapshot, declared, rows, day, places)
            columns[name] = self._snapshots[snapshot].as_of(day).padded(name, make).take(at)
        evaluated = list(self._evaluated)
        for column, name, snapshot, make in self._looked_up:
            at = self._at(snapshot, declared, rows, day, places)
            try:
                columns[name] = self._snapshots[snapshot].as_of(day).padded(name, make).take(at)
            except UserError:  # Of a key that perhaps nobody asks about.
                evaluated.append(column)
        checks = [check for check, bounds in self._valid if not surely_met(bounds, declared)]
        if checks or evaluated:
            frame = self._frame([*checks, *evaluated], declared, rows, day, places)
            found = compute(frame, self._log, (*checks, *evaluated))
            if not all(found.pop(check.name).true_count == rows for check in checks):
                return None
            columns |= found
        numbers = [own.to_numpy() for own in columns.values() if pa.types.is_floating(own.type)]
        if numbers and (np.abs(np.concatenate(numbers)) > np.finfo(np.float32).max).any():
            return None
        return columns

    def _at(
        self, snapshot: str, declared: Mapping[str, pa.Array], rows: int, day: int, places: dict[str, pa.Array]
    ) -> pa.Array:
        """Where the rows' keys lie in a snapshot."""
        if snapshot not in places:
            held = self._snapshots[snapshot]
            key = held.snapshot.key
            array = declared[key] if key in declared else pa.nulls(rows, ARROW_TYPES[self._log.columns[key]])
            ids = store(array, Column("id", key)).to_numpy()
            places[snapshot] = pa.array(held.as_of(day).places(ids))
        return places[snapshot]

    def _frame(
        self, read: list[Column], declared: Mapping[str, pa.Array], rows: int, day: int, places: dict[str, pa.Array]
    ) -> pl.DataFrame:
        """What SQL reads, as `columns.compute` expects it."""
        series: dict[str, pl.Series] = {}
        for column in read:
            if column not in self._read:
                self._read[column] = tuple(self._sources(column))
            for name, source, own in self._read[column]:
                if source == self._log.name:
                    array = declared.get(own)
                    if array is None:
                        array = pa.nulls(rows, ARROW_TYPES[self._log.columns[own]])
                    series[own] = to_polars(array, own)
                else:
                    at = self._at(source, declared, rows, day, places)
                    raw = Column("raw", own).name
                    padded = self._snapshots[source].as_of(day).padded(raw, partial(_column, raw))
                    series[name] = to_polars(padded.take(at), name)
        return pl.DataFrame(series) if series else pl.DataFrame({"": np.zeros(rows)})

    def _every_key(self, column: Column, rows: pa.Table) -> pa.Array:
        """SQL over a snapshot alone, of each of its rows."""
        series = {name: to_polars(rows.column(Column("raw", own).name), name) for name, _, own in self._sources(column)}
        return compute(pl.DataFrame(series), self._log, (column,))[column.name]


def _filled(column: Column, stored: str, rows: pa.Table) -> pa.Array:
    return fill(single_array(rows.column(stored)), column)


def _column(name: str, rows: pa.Table) -> pa.Array:
    return single_array(rows.column(name))

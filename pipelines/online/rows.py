"""Raw rows as the build normalizes them, joined to snapshots that lie in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
import pyarrow as pa

from genrank.pipelines.arrays import from_polars, to_polars
from genrank.pipelines.column_roles import Column
from genrank.pipelines.columns import joined_columns, store
from genrank.pipelines.merge_scan import Bool, Int
from genrank.pipelines.messages import NormalizedRows, QuarantinedRows, tag_parts
from genrank.pipelines.normalize import Normalizer
from genrank.pipelines.online.snapshots import SnapshotDays
from genrank.schemas import EventLog
from genrank.schemas.base import ARROW_TYPES


@dataclass(frozen=True)
class OnlineNormalizer(Normalizer):
    """The build's normalizer, with snapshots looked up in memory."""

    held: Mapping[str, SnapshotDays] = field(default_factory=dict)

    def rows(self, source: EventLog, raw: pa.Table, partition: int) -> tuple[NormalizedRows | None, list[str]]:
        """(the rows that can be used, with every column of the log's partials, the reasons of those that can't).

        Args:
            source: the log.
            raw: its declared columns; those that are missing are null.
            partition: the day on which the rows are read.
        """
        for name, declared in source.columns.items():
            if name not in raw.column_names:
                raw = raw.append_column(name, pa.nulls(raw.num_rows, ARROW_TYPES[declared]))
        good: list[pa.Table] = []
        reasons: list[str] = []
        for piece in self.normalize(source, partition, raw):
            if tag_parts(piece.tag)[0] == QuarantinedRows.KIND:
                reasons += piece.rows.column("reason").to_pylist()
            else:
                good.append(piece.rows)
        if not good:
            return None, reasons
        found = NormalizedRows.of(pa.concat_tables(good).combine_chunks())
        layout = self.layouts[source.name]
        return replace(found, rows=layout.columns(found.rows, layout.names)), reasons

    def _joined(self, source: EventLog, frame: pl.DataFrame, home: Int) -> tuple[pl.DataFrame, dict[str, Bool]]:
        for name, columns in joined_columns(self.schema, source, self.columns[source.name]).items():
            held = self.held[name]
            keys = store(from_polars(frame[held.snapshot.key]), Column("id", held.snapshot.key)).to_numpy()
            parts, places = [], []
            for day in np.unique(home).tolist():
                rows = np.flatnonzero(home == day)
                snapshot = held.as_of(day)
                at, _ = snapshot.find(keys[rows])
                parts.append(snapshot.rows.select(list(columns)).take(at))
                places.append(rows)
            if not parts:
                continue
            order = pa.array(np.argsort(np.concatenate(places), kind="stable"))
            joined = pa.concat_tables(parts).take(order)
            frame = frame.hstack([to_polars(joined.column(column), own) for column, own in columns.items()])
        return frame, {}

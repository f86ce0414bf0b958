"""How long stored samples are, read from as few bytes as say so: what counts an epoch's batches before any is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from genrank.schemas.base import parse_duration
from genrank.schemas.derive.sample_lengths import StoredLengths, stored_lengths
from genrank.schemas.files import reading
from genrank.schemas.manifest import opened
from genrank.schemas.schema import CANDIDATES, Schema
from genrank.tokenization.batch import Ints
from genrank.tokenization.row_group import RowGroup
from genrank.tokenization.sample_columns import SampleColumns, Shape, list_lengths, list_values
from genrank.tokenization.views import slices_of, token_counts

Sizes = tuple[Ints, npt.NDArray[np.bool_]]
"""[V] tokens of each sample, and whether it has a candidate."""
_NONE: Ints = np.zeros(0, np.int64)


class SampleLengths:
    """Sizes of a view's samples: from the footer of their file (`schemas.derive.sample_lengths`), where it has them.

    Of other files, older ones, columns are read. A list's length is in each of its group's columns; of these the one that takes the
    fewest bytes is read, a column a group (usually a label and the events' types). A view of less than a day needs the candidates'
    requests, or times, and what they see besides. Views by exposure always read columns, sessions where the schema's `session_gap` is
    another than the build's.

    Args:
        view: `user_day`, `request`, `session` or `exposure`.
        remember: keep what was read, for another epoch: 5 bytes a sample.
    """

    def __init__(self, columns: SampleColumns, view: str, *, remember: bool = False) -> None:
        self.columns, self.view, self.remember = columns, view, remember
        realtime = columns.schema.realtime
        self._key = {"request": "candidates.request", "session": "candidates.ts"}.get(view)
        self._sees = "mask.candidate_sees" if realtime and view != "user_day" else None
        needed = [CANDIDATES, *(s.name for s in columns.schema.histories)]
        needed += [realtime.name] if realtime and view == "user_day" else []
        same_length = columns.same_length()
        self._of_group = {group: same_length[f"{group}.ts"] for group in needed}
        self._footers: dict[Path, tuple[pq.FileMetaData, dict[bytes, bytes]]] = {}
        self._known: dict[RowGroup, tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]] = {}

    def of(self, window: list[RowGroup]) -> Sizes:
        """The samples of some row groups, in their order.

        Raises:
            UserError: a file is corrupt, or holds a null.
        """
        tokens, ranked = zip(*(self._of_one(unit) for unit in window), strict=True)
        return np.concatenate(tokens).astype(np.int64), np.concatenate(ranked)

    def _of_one(self, unit: RowGroup) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        if unit in self._known:
            return self._known[unit]
        footer, _ = self._footer(unit.path)
        stored = self._stored(unit)
        if stored is not None and self._holds(stored, footer.row_group(unit.number)):
            sizes = sizes_of(stored, self.columns.schema, self.view)
        else:
            sizes = self._from_columns(unit, footer)
        if self.remember:
            self._known[unit] = sizes
        return sizes

    def in_footer(self, unit: RowGroup) -> bool:
        """Whether a row group's footer has lengths of the view."""
        return self._stored(unit) is not None

    def _stored(self, unit: RowGroup) -> StoredLengths | None:
        # What each exposure sees is a column as long as its lengths would be.
        return None if self.view == "exposure" else stored_lengths(self._footer(unit.path)[1], unit.number)

    def _footer(self, path: Path) -> tuple[pq.FileMetaData, dict[bytes, bytes]]:
        if path not in self._footers:
            with reading(path):
                footer = pq.read_metadata(opened(path))
            self._footers[path] = footer, footer.metadata or {}
        return self._footers[path]

    def _holds(self, stored: StoredLengths, row_group: pq.RowGroupMetaData) -> bool:
        """Whether lengths are of this view, and of what the row group holds: a tool that filters a file may keep its metadata."""
        if self.view == "session" and stored.session_gap != parse_duration(self.columns.schema.training.session_gap):
            return False
        values = {
            row_group.column(i).path_in_schema: row_group.column(i).num_values for i in range(row_group.num_columns)
        }
        return (
            all(
                # An empty list takes a place of its own in a Parquet column.
                int(np.maximum(stored.rows[group], 1).sum()) == values.get(f"{group}.ts.list.element")
                for group in self._of_group
                if group in stored.rows
            )
            and self._of_group.keys() <= stored.rows.keys()
        )

    def _from_columns(
        self, unit: RowGroup, footer: pq.FileMetaData
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        columns = self._columns(footer.row_group(unit.number))
        wanted = sorted({*columns.values(), *filter(None, (self._key, self._sees))})
        with reading(unit.path):
            file = pq.ParquetFile(opened(unit.path), memory_map=True, metadata=footer)
            table = file.read_row_group(unit.number, columns=wanted, use_threads=False)
        self.columns.check_nulls(table, unit.path, unit.first_row)
        slices = slices_of(self._shape(table, columns), self.columns.schema, self.view)
        return slices.tokens.astype(np.int32), slices.end > slices.begin

    def _columns(self, row_group: pq.RowGroupMetaData) -> dict[str, str]:
        """Group -> the column to read its lengths from: one that is read anyway, or else the smallest."""
        size: dict[str, int] = {}
        for i in range(row_group.num_columns):
            column = row_group.column(i)
            name = ".".join(column.path_in_schema.split(".")[:2])
            size[name] = size.get(name, 0) + column.total_compressed_size
        read = {self._key, self._sees}
        return {
            group: min(names, key=lambda name: (name not in read, size.get(name, 0)))
            for group, names in self._of_group.items()
        }

    def _shape(self, table: pa.Table, columns: dict[str, str]) -> Shape:
        lengths = {group: list_lengths(table, name) for group, name in columns.items()}
        key = list_values(table, self._key) if self._key else _NONE
        sees = list_values(table, self._sees) if self._sees else np.zeros(len(key), np.int64)
        return Shape(lengths, key, key, sees)


def sizes_of(stored: StoredLengths, schema: Schema, view: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """[V] tokens of each sample of a view, and whether it has a candidate, from stored lengths."""
    candidates = stored.rows[CANDIDATES]
    row = np.arange(len(candidates))
    seen = stored.rows[schema.realtime.name] if schema.realtime else np.zeros(len(row), np.int64)
    if view != "user_day":
        slices = stored.request if view == "request" else stored.session
        row, candidates, seen = np.repeat(row, slices.of_row), slices.candidates, slices.sees
    return token_counts(schema, candidates, seen, row, stored.rows).astype(np.int32), candidates > 0

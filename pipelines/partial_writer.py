"""All rows of a bucket become the bucket's files of partials: deduplicated, sorted, a file per source and day.

Every row read is accounted for: in = out + duplicates + quarantined by reason.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrank.pipelines.arrays import int64s
from genrank.pipelines.engine import Piece
from genrank.pipelines.merge_scan import Axis, Bool, Int, order_by
from genrank.pipelines.messages import NormalizedRows, PartialReport, QuarantinedRows, tag_parts
from genrank.schemas import files


@dataclass(frozen=True)
class PartialWriter:
    """Writes files below `staging`; travels to tasks by pickle."""

    staging: str

    def write(self, bucket: int, tables: dict[str, pa.Table]) -> Iterator[Piece]:
        """Exchange step: all rows of a bucket, a file per source and day; reports what was written."""
        for tag, table in sorted(tables.items()):
            kind, source = tag_parts(tag)
            if kind == QuarantinedRows.KIND:
                yield from self._quarantine(bucket, source, QuarantinedRows.of(table))
            else:
                rows = NormalizedRows.of(table.combine_chunks())
                yield PartialReport.pieces(list(self._partial(bucket, source, rows)))

    def _partial(self, bucket: int, source: str, rows: NormalizedRows) -> Iterator[PartialReport]:
        user, ts, arrived, id_ = (int64s(rows.rows, name) for name in ("u", "ts", "arrived", "id"))
        kept = first_of_each(rows.same, arrived, id_)
        for day in np.unique(rows.day).tolist():
            at = np.flatnonzero(kept & (rows.day == day))
            at = at[by_user_and_time(user[at], ts[at], id_[at])]
            path = self._stage(f"{source}-{day}-{bucket:05d}")
            if len(at):
                write_partial(rows.rows.take(pa.array(at)), path)
            yield PartialReport(
                source,
                day,
                bucket,
                str(path) if len(at) else "",
                rows=len(at),
                duplicates=int(((rows.day == day) & ~kept).sum()),
                reason="",
                joins={name: int(known[at].sum()) for name, known in rows.found.items()},
                sha256=files.file_sha256(path) if len(at) else "",
            )

    def _quarantine(self, bucket: int, source: str, rows: QuarantinedRows) -> Iterator[Piece]:
        for day in np.unique(rows.day).tolist():
            of_day = rows.on(day)
            path = self._stage(f"quarantine-{source}-{day}-{bucket:05d}")
            pq.write_table(of_day, path, compression="zstd")
            files.sync(path)
            counts = rows.counts(of_day)
            yield PartialReport.pieces(
                PartialReport(source, day, bucket, str(path), count, 0, reason, {}) for reason, count in counts.items()
            )

    def _stage(self, name: str) -> Path:
        """A name of this attempt's own: a retried or speculative task never writes another's file."""
        folder = Path(self.staging)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}-{uuid.uuid4().hex[:12]}.parquet"


def write_partial(table: pa.Table, path: Path) -> None:
    """One file of a partial. Times and hashes hardly repeat: trying a dictionary on them first would take as long as writing them."""
    unlike = ("ts", "arrived", "id")
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=1,
        use_dictionary=[name for name in table.column_names if name not in unlike],
        column_encoding=dict.fromkeys(("ts", "arrived"), "DELTA_BINARY_PACKED"),
    )
    files.sync(path)


def by_user_and_time(user: Int, ts: Int, id: Int) -> Int:
    """Order of rows by (user, ts, id)."""
    users = pa.array(user).dictionary_encode()
    ascending = np.argsort(users.dictionary.to_numpy())
    rank = np.empty(len(ascending), np.int64)
    rank[ascending] = np.arange(len(ascending))
    return order_by(Axis.over(len(rank), ts).pack(rank[users.indices.to_numpy()], ts), id)


def first_of_each(same: Int, arrived: Int, id: Int) -> Bool:
    """Marks one row of each set with equal `same`: the first by (arrived, id)."""
    kept = np.ones(len(same), np.bool_)
    ordered = np.sort(same)
    several = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(several):
        at = np.minimum(np.searchsorted(several, same), len(several) - 1)
        repeated = np.flatnonzero(several[at] == same)
        order = repeated[np.lexsort((id[repeated], arrived[repeated], same[repeated]))]
        kept[order[1:][same[order[1:]] == same[order[:-1]]]] = False
    return kept

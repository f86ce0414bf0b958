"""All rows of a bucket become the bucket's files of partials: deduplicated, sorted, a file per source and day.

Every row read is accounted for: in = out + duplicates + quarantined by reason.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrank.pipelines.arrays import int64s, taken
from genrank.pipelines.encodings import DELTAS, SPLIT, without_dictionary
from genrank.pipelines.engine import Piece
from genrank.pipelines.merge_scan import Axis, Bool, Int, Keys
from genrank.pipelines.messages import NormalizedRows, PartialReport, QuarantinedRows, tag_parts
from genrank.pipelines.partials import Layout
from genrank.pipelines.row_order import in_order, order_by, tied
from genrank.schemas import files


@dataclass(frozen=True)
class PartialWriter:
    """Writes files below `staging`; travels to tasks by pickle."""

    staging: str
    layouts: Mapping[str, Layout]
    """Source -> the columns of its files."""

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
        if not rows.rows.num_rows:
            return
        at, repeated = self._order(source, rows)
        first = int(rows.day.min())
        found = np.bincount(rows.day - first)
        duplicates = np.bincount(rows.day[repeated] - first, minlength=len(found))
        table = taken(rows.rows.select(self.layouts[source].stored), at)
        begin = 0
        for place in np.flatnonzero(found).tolist():
            day, size = first + place, int(found[place] - duplicates[place])
            path = self._stage(f"{source}-{day}-{bucket:05d}")
            if size:
                write_partial(table.slice(begin, size), path)
            yield PartialReport(
                source,
                day,
                bucket,
                str(path) if size else "",
                rows=size,
                duplicates=int(duplicates[place]),
                reason="",
                joins={name: int(known[at[begin : begin + size]].sum()) for name, known in rows.found.items()},
                sha256=files.file_sha256(path) if size else "",
            )
            begin += size

    def _order(self, source: str, rows: NormalizedRows) -> tuple[Int, Int]:
        """(rows by day, user, time and id, each event once; the others)."""
        layout = self.layouts[source]

        def ids(at: Int) -> Int:
            """Only few rows are asked for theirs."""
            return layout.ids(taken(rows.rows.select(layout.made_of(["id"])), at))

        user, ts = int64s(rows.rows, "u"), int64s(rows.rows, "ts")
        if rows.same is None:  # Rows that are the same event are alike in all of these.
            return once_in_order(by_day_user_and_time(rows.day, user, ts), ids)
        arrived = int64s(rows.rows, layout.repeated.get("arrived", "arrived"))
        kept = first_of_each(rows.same, arrived, ids)
        at = np.flatnonzero(kept)
        packed = by_day_user_and_time(rows.day[at], user[at], ts[at])
        return at[order_by(packed, lambda few: ids(at[few]))], np.flatnonzero(~kept)

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
    """One file of a partial. Times and hashes hardly repeat: trying a dictionary or a compression on them would take as long as writing
    them. Users, by whom the file is sorted, repeat in runs, of which split bytes leave nothing; of ids near each other they leave half."""
    encodings = {name: DELTAS for name in ("ts", "arrived") if name in table.column_names}
    plain = {*encodings, "id"}
    for name in table.column_names:
        if name not in plain and (name == "u" or without_dictionary(table.column(name))):
            encodings[name] = SPLIT
    pq.write_table(
        table,
        path,
        compression={name: "none" if name in plain else "zstd" for name in table.column_names},
        compression_level={name: 1 for name in table.column_names if name not in plain},
        use_dictionary=[name for name in table.column_names if name not in plain and name not in encodings],
        column_encoding=encodings,
    )
    files.sync(path)


def by_day_user_and_time(day: Int, user: Int, ts: Int) -> Int:
    """A number of each row, by whose order rows lie by (day, user, ts)."""
    if not len(day):
        return np.empty(0, np.int64)
    users = Keys(user)
    place = day - day.min()
    # From the first time of each day, so that many users fit beside many days.
    begin = np.full(int(place.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(begin, place, ts)
    since = ts - begin[place]
    codes = place * users.count + users.ranks[users.codes]
    return Axis.over(len(begin) * users.count, since).pack(codes, since)


def once_in_order(packed: Int, ids: Callable[[Int], Int]) -> tuple[Int, Int]:
    """(order of rows by `packed` and id, of those that are equal in both the first; the others).

    Args:
        packed: int64 per row.
        ids: ids of some rows.
    """
    order, ordered = in_order(packed)
    places = tied(ordered)
    if not len(places):
        return order, order[:0]
    rows, number = order[places], ordered[places]
    id_ = ids(rows)
    by_id = np.lexsort((rows, id_, number))
    rows, id_ = rows[by_id], id_[by_id]
    order[places] = rows
    repeated = 1 + np.flatnonzero((number[1:] == number[:-1]) & (id_[1:] == id_[:-1]))
    return np.delete(order, places[repeated]), rows[repeated]


def first_of_each(same: Int, arrived: Int, ids: Callable[[Int], Int]) -> Bool:
    """Marks one row of each set with equal `same`: the first by (arrived, id); `ids` gives those of some rows."""
    kept = np.ones(len(same), np.bool_)
    ordered = np.sort(same)
    several = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(several):
        at = np.minimum(np.searchsorted(several, same), len(several) - 1)
        repeated = np.flatnonzero(several[at] == same)
        order = repeated[np.lexsort((ids(repeated), arrived[repeated], same[repeated]))]
        kept[order[1:][same[order[1:]] == same[order[:-1]]]] = False
    return kept

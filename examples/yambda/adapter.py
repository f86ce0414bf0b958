"""Yambda's public files -> daily Parquet as `schema.py` declares it.

    python -m examples.yambda.adapter --data FOLDER --out FOLDER [--arrival played|event]

FOLDER holds the files of one variant (50m, 500m or 5b) as published: `multi_event.parquet` (also in `flat/50m/` and the like),
`artist_item_mapping.parquet` and `album_item_mapping.parquet` (also two folders above it). Memory doesn't grow with the log: it is read
by row groups, and each is written to the days it has.

What is written, and what is decided on the way:
- `listens`: one row per listen, in folders by day. Times are published in seconds from an origin that isn't; 0 becomes 2024-01-01 00:00
  UTC, so that `dt=2024-01-01` is MLPerf's first window and the hour of day is its hour. `listen_plus` is 1 where at least half of the
  track was played (`played_ratio_pct >= 50`); a missing ratio counts as 0, and how many there were is printed.
- `arrival_ts`: when what was played is known. `--arrival played` (the default) is the listen's time + track length x share played: no
  later candidate learns of a listen that still goes on. `--arrival event` is the listen's own time, which is how MLPerf's recommendation_v4
  reads it (its history is what lies before the candidate in the log).
- `feedback`: likes, dislikes and their withdrawals, by day.
- `items`: one snapshot, dated the first day: artist and album of each track. Where the mapping names several, the last one is taken, as
  MLPerf's does.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genrank.examples.adapter_command import adapter_parser, run_adapter
from genrank.schemas.console import logger
from genrank.schemas.errors import UserError

Arrival = Literal["played", "event"]
ORIGIN = date(2024, 1, 1)
ORIGIN_S = int(datetime(ORIGIN.year, ORIGIN.month, ORIGIN.day, tzinfo=UTC).timestamp())
DAY_S = 86_400
LISTEN_PLUS_PCT = 50
"""A listen counts from this share of the track on (arXiv:2505.22238; MLPerf's `listen_plus`)."""
BATCH_ROWS = 4_000_000
OPEN_FILES = 256
"""Days written at a time: 300 days of two sources would pass the usual limit of 1024 open files on a busy machine."""

EVENTS = {
    "uid": pa.int64(),
    "timestamp": pa.int64(),
    "item_id": pa.int64(),
    "is_organic": pa.int32(),
    "event_type": pa.string(),
    "played_ratio_pct": pa.int64(),
    "track_length_seconds": pa.int64(),
}
FEEDBACK = ("like", "dislike", "unlike", "undislike")
LISTENS_SCHEMA = pa.schema(
    {
        "user_id": pa.int64(),
        "item_id": pa.int64(),
        "ts": pa.int64(),
        "arrival_ts": pa.int64(),
        "is_organic": pa.int32(),
        "played_ratio_pct": pa.int32(),
        "track_length_seconds": pa.int32(),
        "listen_plus": pa.int32(),
    }
)
FEEDBACK_SCHEMA = pa.schema(
    {"user_id": pa.int64(), "item_id": pa.int64(), "ts": pa.int64(), "is_organic": pa.int32(), "action": pa.string()}
)


@dataclass
class Counts:
    """What was converted."""

    listens: int = 0
    listen_plus: int = 0
    without_ratio: int = 0
    feedback: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FEEDBACK, 0))
    items: int = 0
    days: int = 0


def convert(data: Path, out: Path, arrival: Arrival = "played") -> Counts:
    """Write the sources to `out`, which appears when all is written.

    Raises:
        UserError: `out` is not empty; a file is missing, unreadable, empty, lacks a column or has an unknown event type.
    """
    data, out = Path(data), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: not empty; give a new folder, or remove this one to convert again")
    events, artists, albums = _files(data)
    staging = out.parent / f".{out.name}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        counts, span = _write_events(events, staging, arrival)
        items = _items(artists, albums)
        counts.items, counts.days = len(items), len(span)
        _write_day(items, staging / "items" / f"dt={span[0]}")
        for source, schema in (("listens", LISTENS_SCHEMA), ("feedback", FEEDBACK_SCHEMA)):
            for day in span:  # a day without events is a day that has landed, empty
                folder = staging / source / f"dt={day}"
                if not folder.exists():
                    _write_day(schema.empty_table(), folder)
                (folder / "_SUCCESS").touch()
        if out.is_dir():
            out.rmdir()
        staging.rename(out)
    except OSError as error:
        raise UserError(f"--out {out}: can't write: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return counts


# ---------------------------------------------------------------------- reading


def _files(data: Path) -> tuple[Path, Path, Path]:
    if not data.is_dir():
        raise UserError(f"--data {data}: there is no such folder")
    found = [data / "multi_event.parquet"] if (data / "multi_event.parquet").is_file() else []
    found = found or sorted(data.glob("flat/*/multi_event.parquet"))
    if len(found) != 1:
        which = ", ".join(str(p.parent.relative_to(data)) for p in found) or "none"
        raise UserError(
            f"--data {data}: one multi_event.parquet is needed, in it or in flat/50m, flat/500m or flat/5b; {which} found; "
            "see examples/yambda/README.md"
        )
    mappings = []
    for name in ("artist_item_mapping.parquet", "album_item_mapping.parquet"):
        places = [folder / name for folder in (data, found[0].parent, *found[0].parent.parents[:2])]
        there = [place for place in places if place.is_file()]
        if not there:
            raise UserError(f"--data {data}: {name} is missing; see examples/yambda/README.md")
        mappings.append(there[0])
    return found[0], mappings[0], mappings[1]


def _batches(path: Path, columns: dict[str, pa.DataType]) -> Iterator[pa.Table]:
    """The file's columns in the given types, some million rows at a time."""
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                there = ", ".join(file.schema_arrow.names)
                raise UserError(f"{path}: no column {', '.join(missing)}; it has {there}")
            if not file.metadata.num_rows:
                raise UserError(f"{path}: no rows")
            for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
                yield pa.Table.from_batches([batch]).select(list(columns)).cast(pa.schema(list(columns.items())))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise UserError(f"{path}: can't be read as Yambda's: {str(error).splitlines()[0]}") from error


def _items(artists: Path, albums: Path) -> pa.Table:
    """(item_id, artist_id, album_id) of every track that either mapping names; null where it doesn't."""
    artist, album = (
        _last_of(_batches(path, {"item_id": pa.int64(), name: pa.int64()}), name)
        for path, name in ((artists, "artist_id"), (albums, "album_id"))
    )
    return artist.join(album, "item_id", join_type="full outer").sort_by("item_id").combine_chunks()


def _last_of(mapping: Iterator[pa.Table], name: str) -> pa.Table:
    table = pa.concat_tables(mapping)
    item, value = table["item_id"].to_numpy(), table[name].to_numpy()
    ids, newest_first = np.unique(item[::-1], return_index=True)
    return pa.table({"item_id": ids, name: value[::-1][newest_first]})


# ---------------------------------------------------------------------- converting


def _listens(events: pa.Table, arrival: Arrival) -> pa.Table:
    ts = pc.multiply(pc.add(events["timestamp"], ORIGIN_S), 1000)
    ratio = events["played_ratio_pct"]
    known = pc.fill_null(ratio, 0)
    played_ms = pc.multiply(pc.multiply(pc.fill_null(events["track_length_seconds"], 0), known), 10)
    plus = pc.greater_equal(known, LISTEN_PLUS_PCT)
    columns = [
        events["uid"], events["item_id"], ts, pc.add(ts, played_ms) if arrival == "played" else ts, events["is_organic"],
        ratio, events["track_length_seconds"], plus,
    ]  # fmt: skip
    return pa.table(columns, names=LISTENS_SCHEMA.names).cast(LISTENS_SCHEMA)


def _feedback(events: pa.Table) -> pa.Table:
    ts = pc.multiply(pc.add(events["timestamp"], ORIGIN_S), 1000)
    columns = [events["uid"], events["item_id"], ts, events["is_organic"], events["event_type"]]
    return pa.table(columns, names=FEEDBACK_SCHEMA.names).cast(FEEDBACK_SCHEMA)


# ---------------------------------------------------------------------- writing


def _write_events(path: Path, staging: Path, arrival: Arrival) -> tuple[Counts, list[date]]:
    """Both logs by day; the days from the first event to the last."""
    counts, days, rows = Counts(), set[int](), 0
    with ExitStack() as stack:
        listens = stack.enter_context(_DayFiles(staging / "listens", LISTENS_SCHEMA))
        feedback = stack.enter_context(_DayFiles(staging / "feedback", FEEDBACK_SCHEMA))
        for events in _batches(path, EVENTS):
            kinds = events["event_type"]
            unknown = set(pc.unique(kinds).to_pylist()) - {"listen", *FEEDBACK}
            if unknown:
                names = ", ".join(map(str, sorted(unknown, key=str)))
                raise UserError(f"{path}: unknown event_type {names}; known are listen, {', '.join(FEEDBACK)}")
            for name in ("uid", "timestamp", "item_id"):
                if events[name].null_count:
                    raise UserError(
                        f"{path}: column {name} has {events[name].null_count:,} nulls; every event needs one"
                    )
            heard = _listens(events.filter(pc.equal(kinds, "listen")), arrival)
            said = _feedback(events.filter(pc.not_equal(kinds, "listen")))
            counts.listens += len(heard)
            counts.listen_plus += int(pc.sum(heard["listen_plus"]).as_py() or 0)
            counts.without_ratio += heard["played_ratio_pct"].null_count
            for row in pc.value_counts(said["action"]).to_pylist():
                counts.feedback[row["values"]] += row["counts"]
            days |= listens.write(heard) | feedback.write(said)
            rows += len(events)
            logger.info(f"{rows:,} events")
    first, last = min(days), max(days)
    return counts, [ORIGIN + timedelta(days=day) for day in range(first, last + 1)]


class _DayFiles:
    """One growing Parquet file a day, a bounded number of them open: a day that comes again later gets a further file."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._folder, self._schema = folder, schema
        self._open: dict[int, pq.ParquetWriter] = {}
        self._parts: dict[int, int] = {}

    def __enter__(self) -> _DayFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._open.values():
            writer.close()

    def write(self, table: pa.Table) -> set[int]:
        """Append the rows to their days, which are returned, counted from the origin."""
        day = table["ts"].to_numpy() // (DAY_S * 1000) - ORIGIN_S // DAY_S
        order = np.argsort(day, kind="stable")
        ids, starts, lengths = np.unique(day[order], return_index=True, return_counts=True)
        ordered = table.take(pa.array(order))
        for number, start, length in zip(ids.tolist(), starts, lengths, strict=True):
            self._writer(number).write_table(ordered.slice(start, length))
        return set(ids.tolist())

    def _writer(self, day: int) -> pq.ParquetWriter:
        if day not in self._open:
            if len(self._open) >= OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
            part = self._parts[day] = self._parts.get(day, -1) + 1
            folder = self._folder / f"dt={ORIGIN + timedelta(days=day)}"
            folder.mkdir(parents=True, exist_ok=True)
            self._open[day] = pq.ParquetWriter(folder / f"part-{part:05}.parquet", self._schema, compression="zstd")
        return self._open[day]


def _write_day(table: pa.Table, folder: Path) -> None:
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "part-00000.parquet", compression="zstd")
    (folder / "_SUCCESS").touch()


def _lines(counts: Counts, out: Path) -> Iterator[str]:
    share = 100 * counts.listen_plus / max(counts.listens, 1)
    yield f"listens   {counts.listens:>13,} rows in {counts.days} days, {share:.1f} % of them listen+ ({counts.without_ratio:,} without a ratio: 0)"
    named = ", ".join(f"{n:,} {action}s" for action, n in counts.feedback.items())
    yield f"feedback  {sum(counts.feedback.values()):>13,} rows: {named}"
    yield f"items     {counts.items:>13,} rows"
    yield f"wrote {out}"


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = adapter_parser("yambda", "Yambda to daily Parquet.", "folder with one variant's files")
    parser.add_argument(
        "--arrival", choices=get_args(Arrival), default="played", help="when what was played of a listen is known: once it was played, or at once (MLPerf)"
    )  # fmt: skip
    return run_adapter(
        parser, arguments, lambda given: _lines(convert(given.data, given.out, given.arrival), given.out)
    )


if __name__ == "__main__":
    sys.exit(main())

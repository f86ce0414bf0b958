"""KuaiRand-Pure's public files -> daily Parquet as `schema.py` declares it.

    python -m examples.kuairand.adapter --data FOLDER --out FOLDER

FOLDER holds either the published CSV files (`log_standard_4_08_to_4_21_pure.csv`, ...; also in a `data/` subfolder), or a
Parquet excerpt of them: `log.parquet` (the tail of the standard log), `users.parquet`, `items_basic.parquet` and
`history_until_*.parquet` (per user, what was shown and long-viewed before the tail begins).

What is written, and what is decided on the way:
- `exposures`: one row per shown video, in folders by the day of `time_ms` in UTC+8. The files' own `date` and `hourmin` are rounded and
  not used. `arrival_ts` = `time_ms` + `play_time_ms`: whether it was clicked or long-viewed is known when playing ends.
  Exact duplicates stay: the schema's `dedup` drops them, where they are counted.
- `earlier`: what the history file holds from before the log, oldest first. It has no times but the last one, so times are spread evenly
  from the collection's first day to that; with the complete CSV log it is empty.
- `users`, `items`: one snapshot, dated the first day. The published monthly statistics of videos are not used: they average
  over the whole month, the ranked days included.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from genrank.examples.adapter_command import adapter_parser, run_adapter
from genrank.schemas.errors import UserError

DAY_MS = 86_400_000
UTC_8_MS = 8 * 3_600_000
COLLECTED_FROM = date(2022, 4, 8)
CSV_LOGS = ("log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv")

FLAGS = ("is_click", "long_view", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "is_profile_enter")
LOG = {
    "user_id": pa.int64(),
    "video_id": pa.int64(),
    "time_ms": pa.int64(),
    "tab": pa.int32(),
    "duration_ms": pa.int64(),
    "play_time_ms": pa.int64(),
    **{flag: pa.int32() for flag in FLAGS},
}
USERS = {
    "user_id": pa.int64(),
    "user_active_degree": pa.string(),
    "is_live_streamer": pa.int32(),
    "is_video_author": pa.int32(),
    "follow_user_num": pa.int64(),
    "fans_user_num": pa.int64(),
    "friend_user_num": pa.int64(),
    "register_days": pa.int64(),
    **{f"onehot_feat{i}": pa.int64() for i in range(18)},
}
ITEMS = {
    "video_id": pa.int64(),
    "author_id": pa.int64(),
    "video_type": pa.string(),
    "upload_type": pa.string(),
    "upload_dt": pa.string(),
    "video_duration": pa.float32(),
    "server_width": pa.float32(),
    "server_height": pa.float32(),
    "music_id": pa.int64(),
    "music_type": pa.int64(),
    "tag": pa.string(),
}


def convert(data: Path, out: Path) -> dict[str, int]:
    """Write the sources to `out`; returns rows per source, `duplicates` and `days`. `out` appears when all is written.

    Raises:
        UserError: `out` is not empty; a file is missing, unreadable, empty or lacks a column.
    """
    data, out = Path(data), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: not empty; give a new folder, or remove this one to convert again")
    log, users, items, history = _read(data)
    exposures = _exposures(log)
    earlier = _earlier(history) if history is not None else _earlier_of([])
    staging = out.parent / f".{out.name}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        first = COLLECTED_FROM if history is not None else _day(int(pc.min(exposures["ts"]).as_py()))
        days = _write_days(exposures, staging / "exposures")
        _write_days(earlier, staging / "earlier", also=days)
        _write_day(users, staging / "users" / f"dt={first}")
        _write_day(_items(items), staging / "items" / f"dt={first}")
        if out.is_dir():
            out.rmdir()
        staging.rename(out)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise UserError(f"--out {out}: can't write: {error.strerror or error}") from error
    keys = exposures.select(["user_id", "video_id", "ts"])
    return {
        "exposures": len(exposures),
        "duplicates": len(exposures) - len(keys.group_by(keys.column_names).aggregate([])),
        "earlier": len(earlier),
        "users": len(users),
        "items": len(items),
        "days": len(days),
    }


# ---------------------------------------------------------------------- reading


def _read(data: Path) -> tuple[pa.Table, pa.Table, pa.Table, pa.Table | None]:
    if not data.is_dir():
        raise UserError(f"--data {data}: there is no such folder")
    if (data / "log.parquet").is_file():
        histories = sorted(data.glob("history_until_*.parquet"))
        if not histories:
            raise UserError(f"--data {data}: history_until_*.parquet is missing beside log.parquet")
        return (
            _table(data / "log.parquet", LOG),
            _table(data / "users.parquet", USERS),
            _table(data / "items_basic.parquet", ITEMS),
            _table(histories[-1], {"user_id": pa.int64(), "history_len": pa.int64(), "last_time_ms": pa.int64(),
                                   "watch_seq": pa.list_(pa.int64()), "long_watch_seq": pa.list_(pa.int64())}),
        )  # fmt: skip
    folder = data / "data" if (data / "data").is_dir() else data
    if not (folder / CSV_LOGS[1]).is_file():
        raise UserError(
            f"--data {data}: neither log.parquet nor {CSV_LOGS[1]} is there; see examples/kuairand/README.md"
        )
    logs = [_table(folder / name, LOG) for name in CSV_LOGS]
    return (
        pa.concat_tables(logs),
        _table(folder / "user_features_pure.csv", USERS),
        _table(folder / "video_features_basic_pure.csv", ITEMS),
        None,
    )


def _table(path: Path, columns: dict[str, pa.DataType]) -> pa.Table:
    """The columns of a Parquet or CSV file, in the given types."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; see examples/kuairand/README.md")
    try:
        if path.suffix == ".parquet":
            # Footer first, so that a missing column is reported as such.
            _require(path, pq.read_schema(path).names, columns)
            table = pq.read_table(path, columns=list(columns))
        else:
            # A tag list is "12,65" in quotes; a missing id is an empty field.
            texts = pyarrow.csv.ConvertOptions(column_types={n: t for n, t in columns.items() if t == pa.string()})
            table = pyarrow.csv.read_csv(path, convert_options=texts)
            _require(path, table.column_names, columns)
            table = table.select(list(columns))
        if not len(table):
            raise UserError(f"{path}: no rows")
        # Ids with gaps are published as floats.
        return table.cast(pa.schema(list(columns.items())))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise UserError(f"{path}: can't be read as KuaiRand's: {str(error).splitlines()[0]}") from error


def _require(path: Path, there: list[str], columns: dict[str, pa.DataType]) -> None:
    missing = [name for name in columns if name not in there]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; it has {', '.join(there)}")


# ---------------------------------------------------------------------- converting


def _exposures(log: pa.Table) -> pa.Table:
    ts = log["time_ms"]
    arrival = pc.add(ts, pc.max_element_wise(log["play_time_ms"], pa.scalar(0, pa.int64())))
    table = log.rename_columns(["ts" if name == "time_ms" else name for name in log.column_names])
    return table.add_column(table.column_names.index("ts") + 1, "arrival_ts", arrival).sort_by(
        [("ts", "ascending"), ("user_id", "ascending"), ("video_id", "ascending")]
    )


def _items(items: pa.Table) -> pa.Table:
    known = pc.if_else(pc.equal(items["tag"], "unknown"), pa.scalar(None, pa.string()), items["tag"])
    tags = pc.split_pattern(known, ",")
    upload = pc.strptime(items["upload_dt"], "%Y-%m-%d", "ms", error_is_null=True).cast(pa.int64())
    items = items.drop_columns(["tag", "upload_dt"])
    return (
        items.append_column("tags", tags)
        .append_column("main_tag", pc.list_element(tags, 0))
        .append_column("upload_ts", pc.subtract(upload, UTC_8_MS))
    )


def _earlier(history: pa.Table) -> pa.Table:
    """Rows (user, video, ts, long_view) per user, oldest first.

    Both lists are cut to the last 50, so the long views reach further back: those that the watched list doesn't hold come first.
    """
    rows: list[tuple[int, int, int, int]] = []
    start = (
        int(datetime(COLLECTED_FROM.year, COLLECTED_FROM.month, COLLECTED_FROM.day, tzinfo=UTC).timestamp() * 1000)
        - UTC_8_MS
    )
    columns = (
        history[name].to_pylist() for name in ("user_id", "history_len", "last_time_ms", "watch_seq", "long_watch_seq")
    )
    for user, length, last, watched, long_watched in zip(*columns, strict=True):
        events = merge_histories(watched or [], long_watched or [])
        # Seconds before the last event, which keeps its own time; nothing before the collection began.
        step = max(1, (last - start) // max(int(length), len(events)))
        rows += [(user, video, last - step * (len(events) - 1 - k), long) for k, (video, long) in enumerate(events)]
    return _earlier_of(rows)


def merge_histories(watched: list[int], long_watched: list[int]) -> list[tuple[int, int]]:
    """(video, long-viewed or not) in time order, from the last watched and the last long-viewed videos, each in time order."""
    events: list[tuple[int, int]] = []
    k = len(long_watched) - 1
    for video in reversed(watched):
        long = k >= 0 and long_watched[k] == video
        events.append((video, int(long)))
        k -= long
    events += [(video, 1) for video in reversed(long_watched[: k + 1])]
    return events[::-1]


def _earlier_of(rows: list[tuple[int, int, int, int]]) -> pa.Table:
    columns = np.array(rows, np.int64).reshape(-1, 4)
    columns = columns[np.lexsort((columns[:, 0], columns[:, 2]))]
    user, video, ts, long = (pa.array(columns[:, i]) for i in range(4))
    return pa.table({"user_id": user, "video_id": video, "ts": ts, "long_view": long.cast(pa.int32())})


# ---------------------------------------------------------------------- writing


def _day(ts: int) -> date:
    return datetime.fromtimestamp((ts + UTC_8_MS) / 1000, UTC).date()


def _write_days(table: pa.Table, folder: Path, also: list[date] | None = None) -> list[date]:
    """One folder a day of `ts` in UTC+8, from the first day to the last (and those of `also`), empty days included."""
    number = (table["ts"].to_numpy() + UTC_8_MS) // DAY_MS
    days = {_day(int(n) * DAY_MS - UTC_8_MS): n for n in np.unique(number)}
    span = sorted({*days, *(also or [])})
    span = [span[0] + timedelta(days=i) for i in range((span[-1] - span[0]).days + 1)]
    for day in span:
        rows = table.filter(pa.array(number == days[day])) if day in days else table.slice(0, 0)
        _write_day(rows, folder / f"dt={day}")
    return span


def _write_day(table: pa.Table, folder: Path) -> None:
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "part-00000.parquet", compression="zstd")
    (folder / "_SUCCESS").touch()


def _lines(counts: dict[str, int], out: Path) -> Iterator[str]:
    yield f"exposures  {counts['exposures']:>9,} rows in {counts['days']} days ({counts['duplicates']:,} repeat a user, video and time)"
    yield f"earlier    {counts['earlier']:>9,} rows"
    yield f"users      {counts['users']:>9,} rows"
    yield f"items      {counts['items']:>9,} rows"
    yield f"wrote {out}"


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = adapter_parser("kuairand", "KuaiRand-Pure to daily Parquet.", "folder with KuaiRand-Pure's files")
    return run_adapter(parser, arguments, lambda given: _lines(convert(given.data, given.out), given.out))


if __name__ == "__main__":
    sys.exit(main())

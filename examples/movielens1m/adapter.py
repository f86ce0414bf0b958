"""MovieLens-1M's ratings -> daily Parquet as `schema.py` declares it, for leave-one-out evaluation.

    python -m examples.movielens1m.adapter --data FOLDER --out FOLDER

FOLDER holds the published `ratings.dat` (UserID::MovieID::Rating::Timestamp), or the order alone as `sequences.parquet` (user_id, movie_ids: a list,
oldest first). Ratings of one second keep the file's order.

A day stands for a place from the end of a user's sequence, not for a date:

| day | a user's ratings |
|---|---|
| 2000-01-01 | all but the last three: histories alone |
| 2000-01-02 | the third last: to train on, when settings are chosen on the next day |
| 2000-01-03 | the second last: to choose on; to train on, for the figure of the last day |
| 2000-01-04 | the last: to judge on |

Times are seconds from the day's start, in order; they are no data.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from genrank.examples.adapter_command import adapter_parser, run_adapter
from genrank.schemas.errors import UserError

DAYS = ("2000-01-01", "2000-01-02", "2000-01-03", "2000-01-04")
FIRST_MS = 946_684_800_000
"""2000-01-01 00:00 UTC."""
DAY_MS = 86_400_000

Ints = NDArray[np.int64]


def convert(data: Path, out: Path) -> dict[str, int]:
    """Write the days to `out`, which appears when all is written; returns how many ratings, users and films there are.

    Raises:
        UserError: `out` is not empty; neither file is there, or it can't be read; or a sequence has fewer than five ratings.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: not empty; give a new folder, or remove this one to convert again")
    users, films = _sequences(data)
    starts = np.flatnonzero(np.r_[True, users[1:] != users[:-1]])
    lengths = np.diff(np.r_[starts, len(users)])
    if len(short := users[starts[lengths < len(DAYS) + 1]]):
        raise UserError(
            f"--data {data}: user {short[0]} has fewer than {len(DAYS) + 1} ratings; leave out users without a history"
        )
    place = np.arange(len(users)) - np.repeat(starts, lengths)
    day = np.clip(len(DAYS) - (np.repeat(lengths, lengths) - place), 0, None)
    staging = out.parent / f".{out.name}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    for number, dt in enumerate(DAYS):
        own = day == number
        folder = staging / "ratings" / f"dt={dt}"
        folder.mkdir(parents=True)
        table = pa.table(
            {
                "user_id": users[own],
                "item_id": films[own],
                "ts": FIRST_MS + number * DAY_MS + 1000 * place[own],
                "rated": np.ones(int(own.sum()), np.int32),
            }
        )
        pq.write_table(table, folder / "part-00000.parquet", compression="zstd")
        (folder / "_SUCCESS").touch()
    if out.is_dir():
        out.rmdir()
    staging.rename(out)
    return {"ratings": len(users), "users": len(starts), "films": len(np.unique(films))}


def _sequences(data: Path) -> tuple[Ints, Ints]:
    """Users, and their films in order; one user's after another's."""
    sequences, ratings = data / "sequences.parquet", data / "ratings.dat"
    if not sequences.is_file() and not ratings.is_file():
        raise UserError(
            f"--data {data}: holds neither ratings.dat nor sequences.parquet; see examples/movielens1m/README.md"
        )
    source = sequences if sequences.is_file() else ratings
    try:
        if source == sequences:
            table = pq.read_table(source, columns=["user_id", "movie_ids"]).sort_by("user_id")
            lists = table["movie_ids"].combine_chunks()
            users = np.repeat(table["user_id"].to_numpy(), lists.value_lengths().to_numpy())
            return users.astype(np.int64), lists.flatten().to_numpy().astype(np.int64)
        return _published(source)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(f"{source}: can't be read as MovieLens-1M's: {str(error).splitlines()[0]}") from error


def _published(path: Path) -> tuple[Ints, Ints]:
    # The separator is two colons: every second column is empty.
    names = ["user_id", "_1", "item_id", "_2", "rating", "_3", "timestamp"]
    options = pyarrow.csv.ReadOptions(column_names=names)
    table = pyarrow.csv.read_csv(path, options, pyarrow.csv.ParseOptions(delimiter=":", quote_char=False))
    users, films, times = (table[name].to_numpy().astype(np.int64) for name in ("user_id", "item_id", "timestamp"))
    order = np.lexsort((times, users))
    return users[order], films[order]


def _lines(counts: dict[str, int], out: Path) -> Iterator[str]:
    yield from (f"{name:<8} {count:>9,}" for name, count in counts.items())
    yield f"wrote {out}"


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = adapter_parser(
        "movielens1m", "MovieLens-1M to daily Parquet.", "folder with ratings.dat or sequences.parquet"
    )
    return run_adapter(parser, arguments, lambda given: _lines(convert(given.data, given.out), given.out))


if __name__ == "__main__":
    sys.exit(main())

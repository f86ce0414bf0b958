"""MovieLens-100K's files -> daily Parquet as `schema.py` declares it.

    python -m examples.movielens100k.adapter --data FOLDER --out FOLDER

FOLDER holds the published `u.data`, `u.user` and `u.item`, or the same as `ratings.parquet` (user_id, item_id, rating, timestamp in
seconds), `users.parquet` (user_id, age, gender, occupation) and `items.parquet` (item_id, release_year, class: genres with spaces between).

- `exposures`: one row a rating, in folders by its day in UTC; `liked` is 1 from four stars on. MovieLens says what was rated, not what was
  shown: who rates chooses, so that this is a log of exposures in form alone.
- `users`, `items`: one snapshot, dated the first day.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from genrank.examples.adapter_command import adapter_parser, run_adapter
from genrank.schemas.errors import UserError

LIKED_FROM = 4
"""Stars."""
GENRES = (
    "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy", "Film-Noir", "Horror",
    "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
RATINGS = {"user_id": pa.int64(), "item_id": pa.int64(), "rating": pa.int32(), "timestamp": pa.int64()}
USERS = {"user_id": pa.int64(), "age": pa.int32(), "gender": pa.string(), "occupation": pa.string()}
ITEMS = {"item_id": pa.int64(), "release_year": pa.int32(), "genres": pa.list_(pa.string())}


def convert(data: Path, out: Path) -> dict[str, int]:
    """Write the sources to `out`, which appears when all is written; returns rows per source and `days`.

    Raises:
        UserError: `out` is not empty; a file is missing, or can't be read as MovieLens-100K's.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: not empty; give a new folder, or remove this one to convert again")
    parquet = (data / "ratings.parquet").is_file()
    names = ("ratings.parquet", "users.parquet", "items.parquet") if parquet else ("u.data", "u.user", "u.item")
    if missing := [name for name in names if not (data / name).is_file()]:
        raise UserError(f"--data {data}: {', '.join(missing)} missing; see examples/movielens100k/README.md")
    try:
        ratings, users, items = _parquet(data) if parquet else _published(data)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(f"--data {data}: can't be read as MovieLens-100K's: {str(error).splitlines()[0]}") from error
    exposures = pa.table(
        {
            "user_id": ratings["user_id"],
            "item_id": ratings["item_id"],
            "ts": pc.multiply(ratings["timestamp"], 1000),
            "rating": ratings["rating"],
            "liked": pc.greater_equal(ratings["rating"], LIKED_FROM).cast(pa.int32()),
        }
    ).sort_by([("ts", "ascending"), ("user_id", "ascending"), ("item_id", "ascending")])
    staging = out.parent / f".{out.name}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    number = pc.divide(exposures["ts"], 86_400_000).to_numpy()
    first = datetime.fromtimestamp(int(number[0]) * 86_400, UTC).date()
    span = int(number[-1] - number[0]) + 1
    for day in range(span):
        rows = exposures.filter(pa.array(number == number[0] + day))
        _write(rows, staging / "exposures" / f"dt={first + timedelta(days=day)}")
    _write(users, staging / "users" / f"dt={first}")
    _write(items, staging / "items" / f"dt={first}")
    if out.is_dir():
        out.rmdir()
    staging.rename(out)
    return {"exposures": len(exposures), "users": len(users), "items": len(items), "days": span}


def _parquet(data: Path) -> tuple[pa.Table, pa.Table, pa.Table]:
    items = pq.read_table(data / "items.parquet")
    genres = [[genre for genre in GENRES if genre in (text or "")] for text in items["class"].to_pylist()]
    years = [int(text) if str(text).isdigit() else None for text in items["release_year"].to_pylist()]
    items = pa.table({"item_id": items["item_id"], "release_year": years, "genres": genres})
    return (
        _cast(pq.read_table(data / "ratings.parquet"), RATINGS),
        _cast(pq.read_table(data / "users.parquet"), USERS),
        _cast(items, ITEMS),
    )


def _published(data: Path) -> tuple[pa.Table, pa.Table, pa.Table]:
    def read(name: str, separator: str, names: list[str]) -> pa.Table:
        options = pyarrow.csv.ReadOptions(column_names=names, encoding="latin-1")
        return pyarrow.csv.read_csv(
            data / name, options, pyarrow.csv.ParseOptions(delimiter=separator, quote_char=False)
        )

    ratings = read("u.data", "\t", list(RATINGS))
    users = read("u.user", "|", [*USERS, "zip_code"])
    items = read("u.item", "|", ["item_id", "title", "released", "video", "url", "unknown", *GENRES])
    years = [
        int(found[0]) if (found := re.findall(r"\d{4}$", text or "")) else None
        for text in items["released"].to_pylist()
    ]
    flags = zip(*(items[genre].to_pylist() for genre in GENRES), strict=True)
    genres = [[genre for genre, flag in zip(GENRES, row, strict=True) if flag] for row in flags]
    items = pa.table({"item_id": items["item_id"], "release_year": years, "genres": genres})
    return _cast(ratings, RATINGS), _cast(users, USERS), _cast(items, ITEMS)


def _cast(table: pa.Table, columns: dict[str, pa.DataType]) -> pa.Table:
    return table.select(list(columns)).cast(pa.schema(list(columns.items())))


def _write(table: pa.Table, folder: Path) -> None:
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "part-00000.parquet", compression="zstd")
    (folder / "_SUCCESS").touch()


def _lines(counts: dict[str, int], out: Path) -> Iterator[str]:
    yield f"exposures {counts['exposures']:>8,} rows in {counts['days']} days"
    yield f"users     {counts['users']:>8,} rows"
    yield f"items     {counts['items']:>8,} rows"
    yield f"wrote {out}"


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = adapter_parser("movielens100k", "MovieLens-100K to daily Parquet.", "folder with MovieLens-100K's files")
    return run_adapter(parser, arguments, lambda given: _lines(convert(given.data, given.out), given.out))


if __name__ == "__main__":
    sys.exit(main())

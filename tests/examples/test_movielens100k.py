"""MovieLens-100K's adapter: both forms of the files give the same log, and a build's samples hold what a reader of it expects."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrank.examples.movielens100k.adapter import GENRES, convert, main
from genrank.examples.movielens100k.schema import schema
from genrank.schemas.errors import UserError

DAY = 86_400
START = 875_000_000 // DAY * DAY  # 1997-09-23
RATINGS = [(1, 10, 5, START + 5), (2, 10, 3, START + 70), (1, 11, 4, START + 2 * DAY), (2, 12, 1, START + 2 * DAY + 1)]


def published(folder: Path) -> Path:
    folder.mkdir()
    (folder / "u.data").write_text("".join("\t".join(map(str, row)) + "\n" for row in RATINGS))
    (folder / "u.user").write_text("1|24|M|technician|85711\n2|53|F|other|94043\n")
    flags = {10: ("Animation", "Comedy"), 11: ("Film-Noir",), 12: ()}
    lines = [
        f"{item}|Caf\xe9 {item} (1995)|{'01-Jan-1995' if item != 12 else ''}||http://x|0|"
        + "|".join(str(int(genre in own)) for genre in GENRES)
        for item, own in flags.items()
    ]
    (folder / "u.item").write_bytes("\n".join(lines).encode("latin-1"))
    return folder


def parquet(folder: Path) -> Path:
    folder.mkdir()
    columns = zip(*RATINGS, strict=True)
    names = ("user_id", "item_id", "rating", "timestamp")
    pq.write_table(pa.table(dict(zip(names, map(list, columns), strict=True))), folder / "ratings.parquet")
    users = {"user_id": [1, 2], "age": [24, 53], "gender": ["M", "F"], "occupation": ["technician", "other"]}
    pq.write_table(pa.table(users), folder / "users.parquet")
    items = {
        "item_id": [10, 11, 12],
        "movie_title": ["a", "b", "c"],
        "release_year": ["1995", "1995", "V"],
        "class": ["Animation Comedy", "Film-Noir", ""],
    }
    pq.write_table(pa.table(items), folder / "items.parquet")
    return folder


@pytest.mark.parametrize("form", [published, parquet])
def test_every_rating_is_an_exposure_of_its_day(form, tmp_path: Path) -> None:
    counts = convert(form(tmp_path / "in"), tmp_path / "out")
    assert counts == {"exposures": 4, "users": 2, "items": 3, "days": 3}
    days = sorted(folder.name for folder in (tmp_path / "out" / "exposures").iterdir())
    assert days == ["dt=1997-09-23", "dt=1997-09-24", "dt=1997-09-25"]
    rows = (
        pq.read_table(tmp_path / "out" / "exposures")
        .select(["user_id", "item_id", "ts", "rating", "liked"])
        .to_pylist()
    )
    assert [tuple(row.values()) for row in rows] == [(u, i, 1000 * ts, r, int(r >= 4)) for u, i, r, ts in RATINGS]
    items = pq.read_table(tmp_path / "out" / "items" / days[0] / "part-00000.parquet").to_pylist()
    assert [(row["release_year"], row["genres"]) for row in items] == [
        (1995, ["Animation", "Comedy"]),
        (1995, ["Film-Noir"]),
        (None, []),
    ]
    assert set(schema.sources[0].columns) <= set(rows[0])


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "u.data, u.user, u.item missing; see examples/movielens100k/README.md" in capsys.readouterr().err
    folder = published(tmp_path / "in")
    convert(folder, tmp_path / "out")
    with pytest.raises(UserError, match="not empty; give a new folder"):
        convert(folder, tmp_path / "out")
    (folder / "u.data").write_text("x\ty\tz\tw\n")
    with pytest.raises(UserError, match="can't be read as MovieLens-100K's"):
        convert(folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()

"""The Yambda adapter and its schema, on a made log of the published columns and proportions: the files themselves can't be had here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrank.examples.yambda import adapter
from genrank.examples.yambda.adapter import FEEDBACK, convert, main
from genrank.examples.yambda.schema import CROSSED, SIZES, of_size, schema
from genrank.schemas import Schema
from genrank.schemas.errors import UserError
from tests.examples.yambda_log import MEDIAN_EVENTS, write_log

START_MS = 1_704_067_200_000
"""2024-01-01 in UTC, epoch ms."""
USERS, DAYS = 60, 4


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pl.DataFrame]:
    folder = tmp_path_factory.mktemp("yambda")
    events = pl.DataFrame(write_log(folder / "raw", USERS, DAYS)).with_columns(pl.col("event_type").cast(pl.String))
    return folder / "raw", events


def rows(out: Path, source: str) -> pl.DataFrame:
    return pl.read_parquet(out / source / "*" / "*.parquet", hive_partitioning=True).rename({"dt": "day"})


def test_the_made_log_has_the_published_proportions(tmp_path: Path) -> None:
    events = pl.DataFrame(write_log(tmp_path, 400, 30, seed=1))
    plus = (events["played_ratio_pct"] >= 50).sum() / len(events)
    liked = (events["event_type"].cast(pl.String) == "like").mean()
    a_user = events.group_by("uid").len()["len"].median()
    assert plus == pytest.approx(0.613, abs=0.01) and liked == pytest.approx(0.019, abs=0.003)
    assert a_user == pytest.approx(MEDIAN_EVENTS * 30 / 301, rel=0.15)


@pytest.mark.parametrize("batch_rows", [4_000_000, 700])
@pytest.mark.parametrize("open_files", [256, 2])
def test_every_event_lands_in_its_day(
    raw: tuple[Path, pl.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_rows: int, open_files: int
) -> None:
    monkeypatch.setattr(adapter, "BATCH_ROWS", batch_rows)
    monkeypatch.setattr(adapter, "OPEN_FILES", open_files)
    folder, events = raw
    counts = convert(folder, tmp_path / "log")
    listens, feedback = rows(tmp_path / "log", "listens"), rows(tmp_path / "log", "feedback")
    heard = events.filter(pl.col("event_type") == "listen")
    assert counts.listens == len(listens) == len(heard)
    assert counts.listen_plus == (heard["played_ratio_pct"] >= 50).sum() == listens["listen_plus"].sum()
    assert counts.feedback == {k: (events["event_type"] == k).sum() for k in FEEDBACK}
    assert sum(counts.feedback.values()) == len(feedback)
    ts = START_MS + heard["timestamp"].cast(pl.Int64) * 1000
    key = ["user_id", "ts", "item_id", "played_ratio_pct"]
    expected = heard.select(
        pl.col("uid").cast(pl.Int64).alias("user_id"),
        ts.alias("ts"),
        pl.col("item_id").cast(pl.Int64),
        pl.col("played_ratio_pct").cast(pl.Int32),
        (ts + heard["played_ratio_pct"].cast(pl.Int64) * heard["track_length_seconds"].cast(pl.Int64) * 10).alias("arrival_ts"),
    ).sort(key)  # fmt: skip
    assert listens.select(expected.columns).sort(key).equals(expected)
    for table in (listens, feedback):
        assert (pl.from_epoch(table["ts"], "ms").dt.date() == table["day"]).all()
    assert sorted(p.name for p in (tmp_path / "log/listens").iterdir()) == [f"dt=2024-01-0{d + 1}" for d in range(DAYS)]
    assert all((p / "_SUCCESS").exists() for p in (tmp_path / "log/listens").iterdir())


def test_a_listen_may_be_known_at_once_as_mlperf_reads_it(raw: tuple[Path, pl.DataFrame], tmp_path: Path) -> None:
    assert main(["--data", str(raw[0]), "--out", str(tmp_path / "log"), "--arrival", "event"]) == 0
    listens = rows(tmp_path / "log", "listens")
    assert listens["arrival_ts"].equals(listens["ts"], check_names=False)


def test_a_track_of_several_artists_has_the_last_of_them(raw: tuple[Path, pl.DataFrame], tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    pq.write_table(pq.read_table(raw[0] / "multi_event.parquet").slice(0, 50), folder / "multi_event.parquet")
    pq.write_table(pa.table({"artist_id": [7, 8, 9], "item_id": [1, 1, 2]}), folder / "artist_item_mapping.parquet")
    pq.write_table(pa.table({"album_id": [5, 6], "item_id": [1, 3]}), folder / "album_item_mapping.parquet")
    convert(folder, tmp_path / "log")
    items = rows(tmp_path / "log", "items").drop("day").sort("item_id").rows()
    assert items == [(1, 8, 5), (2, 9, None), (3, None, 6)]


def test_the_published_folders_are_found(raw: tuple[Path, pl.DataFrame], tmp_path: Path) -> None:
    flat = tmp_path / "yambda" / "flat" / "50m"
    flat.mkdir(parents=True)
    for name, place in (
        ("multi_event", flat),
        ("artist_item_mapping", flat.parents[1]),
        ("album_item_mapping", flat.parents[1]),
    ):
        (place / f"{name}.parquet").symlink_to(raw[0] / f"{name}.parquet")
    for given in (tmp_path / "yambda", flat):
        assert convert(given, tmp_path / f"log-{given.name}").items == 400


@pytest.mark.parametrize("variant", sorted(SIZES))
def test_crossed_ids_are_the_benchmarks(variant: str) -> None:
    sized: Schema = of_size(variant)
    crossed = {f.name: f.vocabulary.size for f in sized.candidates.features if f.name in CROSSED}  # type: ignore[attr-defined]
    assert crossed == {name: int(rows * SIZES[variant].crossed) for name, (_, rows) in CROSSED.items()}
    assert sized.samples_fingerprint == schema.samples_fingerprint  # one build serves every size


def lose_mapping(folder: Path) -> None:
    (folder / "album_item_mapping.parquet").unlink()


def lose_column(folder: Path) -> None:
    _change(folder, lambda table: table.drop_columns(["played_ratio_pct"]))


def lose_user(folder: Path) -> None:
    _change(folder, lambda t: t.set_column(0, "uid", pa.nulls(len(t), pa.uint32())))


def new_kind(folder: Path) -> None:
    _change(folder, lambda t: t.set_column(4, "event_type", pa.array(np.repeat("share", len(t)))))


def no_rows(folder: Path) -> None:
    _change(folder, lambda table: table.slice(0, 0))


def no_parquet(folder: Path) -> None:
    (folder / "multi_event.parquet").write_text("uid,timestamp")


def _change(folder: Path, how: Callable[[pa.Table], pa.Table]) -> None:
    path = folder / "multi_event.parquet"
    pq.write_table(how(pq.read_table(path)), path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lose_mapping, "album_item_mapping.parquet is missing; see examples/yambda/README.md"),
        (lose_column, "no column played_ratio_pct; it has uid, timestamp"),
        (lose_user, "column uid has .* nulls"),
        (new_kind, "unknown event_type share; known are listen, like"),
        (no_rows, "multi_event.parquet: no rows"),
        (no_parquet, "can't be read as Yambda's"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    write_log(tmp_path / "raw", 3, 2)
    spoil(tmp_path / "raw")
    with pytest.raises(UserError, match=message) as error:
        convert(tmp_path / "raw", tmp_path / "log")
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "mine").touch()
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "log")]) == 1
    assert capsys.readouterr().err.startswith(f"error: --out {tmp_path / 'log'}: not empty")

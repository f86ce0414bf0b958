"""The KuaiRand adapter: both layouts of the public files give the same sources; bad input is reported in one line."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrank.examples.kuairand.adapter import CSV_LOGS, FLAGS, LOG, USERS, convert, main, merge_histories
from genrank.schemas import load_schema
from genrank.schemas.base import ARROW_TYPES
from genrank.schemas.errors import UserError

ROOT = Path(__file__).parents[2]
MIDNIGHT = 1_650_902_400_000  # 2022-04-26 00:00 in UTC+8
"""2022-04-26 00:00 in UTC+8, epoch ms."""


def row(user: int, video: int, ts: int, **more: int) -> dict[str, object]:
    return (
        dict.fromkeys(LOG, 0)
        | {"user_id": user, "video_id": video, "time_ms": ts, "duration_ms": 9000, "tab": 1}
        | more
    )


LOG_ROWS = [
    row(1, 10, MIDNIGHT - 1, play_time_ms=5000, is_click=1),
    row(1, 11, MIDNIGHT, play_time_ms=20_000, is_click=1, long_view=1),
    row(1, 11, MIDNIGHT, play_time_ms=20_000, is_click=1, long_view=1),  # an exact duplicate
    row(2, 10, MIDNIGHT + 2 * 86_400_000),
]
USER_ROWS = [dict.fromkeys(USERS, 1) | {"user_id": u, "user_active_degree": "full_active"} for u in (1, 2)]
USER_ROWS[1]["onehot_feat12"] = None
ITEM_ROWS = [
    {"video_id": v, "author_id": 7, "video_type": "NORMAL", "upload_type": "Web", "upload_dt": "2022-04-10", "video_duration": 9000.0,
     "server_width": 720, "server_height": 1280, "music_id": 9_155_697_141, "music_type": None, "tag": tag}
    for v, tag in ((10, "12,65"), (11, "unknown"))
]  # fmt: skip
HISTORY = pa.table(
    {
        "user_id": [1],
        "history_len": [30],
        "last_time_ms": [MIDNIGHT - 86_400_000 - 1000],
        "watch_seq": [[5, 6, 6]],
        "long_watch_seq": [[4, 6]],
    }
)


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def csvs(tmp_path: Path) -> Path:
    folder = tmp_path / "KuaiRand-Pure"
    (folder / "data").mkdir(parents=True)
    write_csv(folder / "data" / CSV_LOGS[0], LOG_ROWS[:1])
    write_csv(folder / "data" / CSV_LOGS[1], LOG_ROWS[1:])
    write_csv(folder / "data" / "user_features_pure.csv", USER_ROWS)
    write_csv(folder / "data" / "video_features_basic_pure.csv", ITEM_ROWS)
    return folder


@pytest.fixture
def parquets(tmp_path: Path) -> Path:
    folder = tmp_path / "tail"
    folder.mkdir()
    for name, rows in (("log", LOG_ROWS), ("users", USER_ROWS), ("items_basic", ITEM_ROWS)):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    pq.write_table(HISTORY, folder / "history_until_20220424.parquet")
    return folder


def read(out: Path, source: str) -> dict[str, list[dict[str, object]]]:
    return {
        f.parent.name[3:]: pq.read_table(f, partitioning=None).to_pylist()
        for f in sorted((out / source).glob("*/*.parquet"))
    }


def test_days_begin_at_midnight_in_utc_plus_8(parquets: Path, tmp_path: Path) -> None:
    counts = convert(parquets, tmp_path / "out")
    assert counts == {"exposures": 4, "duplicates": 1, "earlier": 4, "users": 2, "items": 2, "days": 4}
    days = read(tmp_path / "out", "exposures")
    # The day without rows is there too: nothing shown isn't nothing known.
    assert {dt: len(rows) for dt, rows in days.items()} == {
        "2022-04-25": 1,
        "2022-04-26": 2,
        "2022-04-27": 0,
        "2022-04-28": 1,
    }
    first = days["2022-04-25"][0]
    assert (first["ts"], first["arrival_ts"]) == (MIDNIGHT - 1, MIDNIGHT + 4999)


def test_both_layouts_agree(csvs: Path, parquets: Path, tmp_path: Path) -> None:
    convert(csvs, tmp_path / "a")
    convert(parquets, tmp_path / "b")
    assert read(tmp_path / "a", "exposures") == read(tmp_path / "b", "exposures")
    for source in ("users", "items"):
        (a,), (b,) = read(tmp_path / "a", source).values(), read(tmp_path / "b", source).values()
        assert a == b
    assert not any(read(tmp_path / "a", "earlier").values())


def test_items_keep_their_tags_and_upload_day(csvs: Path, tmp_path: Path) -> None:
    convert(csvs, tmp_path / "out")
    (items,) = read(tmp_path / "out", "items").values()
    assert [item["tags"] for item in items] == [["12", "65"], None]
    assert [item["main_tag"] for item in items] == ["12", None]
    assert items[0]["upload_ts"] == MIDNIGHT - 16 * 86_400_000


def test_the_earlier_history_keeps_its_order_and_ends_where_it_ended(parquets: Path, tmp_path: Path) -> None:
    convert(parquets, tmp_path / "out")
    rows = [row for day in read(tmp_path / "out", "earlier").values() for row in day]
    assert [(r["video_id"], r["long_view"]) for r in rows] == [(4, 1), (5, 0), (6, 0), (6, 1)]
    times = [r["ts"] for r in rows]
    assert times == sorted(times) and times[-1] == MIDNIGHT - 86_400_000 - 1000
    assert len(set(times)) == 4
    assert min(read(tmp_path / "out", "earlier")) >= "2022-04-08"


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=30), st.integers(1, 8))
def test_merging_two_cut_lists_keeps_both(events: list[tuple[int, bool]], last: int) -> None:
    watched = [video for video, _ in events][-last:]
    longs = [video for video, long in events if long][-last:]
    merged = merge_histories(watched, longs)
    assert [video for video, long in merged if long] == longs
    assert [video for video, _ in merged][-len(watched) :] == watched if watched else merged == []
    # What the watched list doesn't hold is older than all it holds.
    assert all(long for _, long in merged[: len(merged) - len(watched)])


def test_the_schema_reads_what_the_adapter_writes(parquets: Path, tmp_path: Path) -> None:
    convert(parquets, tmp_path / "out")
    for source in load_schema(str(ROOT / "examples/kuairand/schema.py")).sources:
        files = sorted((tmp_path / "out" / source.name).glob("*/*.parquet"))
        for file in files:
            there = pq.read_schema(file)
            for column, type_ in source.columns.items():
                assert there.field(column).type == ARROW_TYPES[type_], (file, column)


def drop_column(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / "log.parquet").drop_columns(["tab"]), folder / "log.parquet")


def garble(folder: Path) -> None:
    (folder / "users.parquet").write_text("not parquet")


def empty(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / "items_basic.parquet").slice(0, 0), folder / "items_basic.parquet")


def lose_users(folder: Path) -> None:
    (folder / "users.parquet").unlink()


def lose_history(folder: Path) -> None:
    (folder / "history_until_20220424.parquet").unlink()


def lose_log(folder: Path) -> None:
    (folder / "log.parquet").unlink()


def mistype(folder: Path) -> None:
    log = pq.read_table(folder / "log.parquet")
    pq.write_table(log.set_column(0, "user_id", pa.array(["x"] * len(log))), folder / "log.parquet")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_column, r"log.parquet: no column tab; it has user_id"),
        (garble, r"users.parquet: can't be read as KuaiRand's"),
        (empty, r"items_basic.parquet: no rows"),
        (lose_users, r"users.parquet: no such file; see examples/kuairand/README.md"),
        (lose_history, r"history_until_\*.parquet is missing beside log.parquet"),
        (lose_log, r"neither log.parquet nor log_standard_4_22_to_5_08_pure.csv is there"),
        (mistype, r"log.parquet: can't be read as KuaiRand's: .*x"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    parquets: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(parquets)
    with pytest.raises(UserError, match=message) as error:
        convert(parquets, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["tail"]


def test_nothing_is_overwritten(parquets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    assert main(["--data", str(parquets), "--out", str(out)]) == 1
    assert capsys.readouterr().err.startswith(f"error: --out {out}: not empty")
    assert [p.name for p in out.iterdir()] == ["mine"]


def test_the_command_says_what_it_wrote(parquets: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "genrank.examples.kuairand.adapter",
            "--data",
            str(parquets),
            "--out",
            str(tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "4 rows in 4 days (1 repeat" in done.stdout and done.stdout.endswith(f"wrote {tmp_path / 'out'}\n")
    assert set(FLAGS) < set(pq.read_schema(next((tmp_path / "out/exposures").glob("*/*.parquet"))).names)

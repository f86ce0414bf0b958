"""MovieLens-1M's adapter on made ratings: leave one out, from file to metrics, as a loop over users has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.retrieval import PUBLISHED, configuration, curve, prepare, run_model
from genrank.examples.movielens1m.adapter import DAYS, convert, main
from genrank.model.registry import choose_model
from genrank.schemas.errors import UserError

USERS, FILMS, LONGEST = 12, 30, 210


def made_ratings() -> list[tuple[int, int, int]]:
    """(user, film, time), users mixed; one user is longer than a history may be; ties in time keep this order."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(1, USERS + 1):
        n = LONGEST if user == 1 else int(rng.integers(5, 25))
        films = np.arange(n) % 3000 + 100 if user == 1 else rng.choice(np.arange(1, FILMS + 1), n, replace=False)
        times = np.sort(rng.integers(0, max(n // 2, 2), n))
        rows += list(zip([user] * n, films.tolist(), times.tolist(), strict=True))
    order = np.argsort(rng.random(len(rows)) + [row[2] for row in rows], kind="stable")
    mixed = [rows[i] for i in order]
    # Within a user and a second, the file's order is the order.
    return sorted(mixed, key=lambda row: row[2])


def sequences(rows: list[tuple[int, int, int]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for user, film, _ in sorted(rows, key=lambda row: (row[0], row[2])):
        found.setdefault(user, []).append(film)
    return found


def published(folder: Path) -> Path:
    folder.mkdir()
    lines = [f"{user}::{film}::{1 + film % 5}::{978_300_000 + time}\n" for user, film, time in made_ratings()]
    (folder / "ratings.dat").write_text("".join(lines))
    return folder


def ordered(folder: Path) -> Path:
    folder.mkdir()
    found = sequences(made_ratings())
    users = list(found)[::-1]
    lists = pa.array([found[user] for user in users], pa.large_list(pa.int16()))
    pq.write_table(pa.table({"user_id": pa.array(users, pa.int32()), "movie_ids": lists}), folder / "sequences.parquet")
    return folder


@pytest.mark.parametrize("form", [published, ordered])
def test_each_day_is_a_place_from_the_end(form, tmp_path: Path) -> None:
    expected = sequences(made_ratings())
    counts = convert(form(tmp_path / "in"), tmp_path / "out")
    assert counts["ratings"] == sum(map(len, expected.values())) and counts["users"] == USERS
    for at, day in enumerate(DAYS):
        table = pq.read_table(tmp_path / "out" / "ratings" / f"dt={day}" / "part-00000.parquet").to_pylist()
        own: dict[int, list[int]] = {}
        for row in sorted(table, key=lambda row: row["ts"]):
            own.setdefault(row["user_id"], []).append(row["item_id"])
        assert own == {
            user: films[:-3] if at == 0 else films[at - 4 : at - 3 or None] for user, films in expected.items()
        }


def test_samples_leave_one_out_and_a_model_is_judged_on_it(tmp_path: Path) -> None:
    samples = prepare(ordered(tmp_path / "in"), tmp_path / "out")
    expected = sequences(made_ratings())
    for place, day in ((3, DAYS[1]), (2, DAYS[2]), (1, DAYS[3])):
        files = (samples / "samples" / f"dt={day}").rglob("*.parquet")
        rows = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
        assert len(rows) == USERS
        for row in rows:
            films = expected[row["user_id"]]
            assert row["history"]["item_id"] == films[:-place][-200:]
            assert row["candidates"]["item"] == [films[-place]] and row["labels"]["rating"] == [1]
    for model in PUBLISHED:
        config = configuration(model, samples, tmp_path / model, (DAYS[2], DAYS[3]), 0)
        fields = choose_model(config.model, config.settings).fields()
        assert (fields["tied"], fields["negatives"], fields["positions"]) == ("true", "128", '"oldest"')
        if model == "sasrec":
            found = run_model(config, 1)
            assert found.queries == USERS
            assert found.catalogue == len({film for films in expected.values() for film in films[-202:]})
            assert [len(values) for _, values in curve(config.out)] == [3]


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "holds neither ratings.dat nor sequences.parquet; see examples/movielens1m" in capsys.readouterr().err
    folder = published(tmp_path / "in")
    convert(folder, tmp_path / "out")
    with pytest.raises(UserError, match="not empty; give a new folder"):
        convert(folder, tmp_path / "out")
    (folder / "ratings.dat").write_text("1::2::3::4\n" * 4)
    with pytest.raises(UserError, match="user 1 has fewer than 5 ratings"):
        convert(folder, tmp_path / "other")
    (folder / "ratings.dat").write_text("a::b::c::d\n")
    with pytest.raises(UserError, match=r"ratings\.dat: can't be read as MovieLens-1M's"):
        convert(folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()

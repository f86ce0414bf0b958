"""What lies under --out may be damaged by a disk or by hand: a build mends what it can, everything else names the file and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from genrank.pipelines.build import BuildConfig, build
from genrank.pipelines.clean import clean
from genrank.pipelines.documents import Layout
from genrank.pipelines.sample_statistics import statistics
from genrank.pipelines.status import status
from genrank.schemas import UserError
from genrank.schemas.lock import locked
from genrank.schemas.manifest import built_schema
from tests.pipelines.worlds import full_schema, read_samples, write_world

pytestmark = pytest.mark.usefixtures("plain_gate")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, plain_gate: None) -> BuildConfig:
    """Two published days; each test leaves them as they were."""
    root = tmp_path_factory.mktemp("damage")
    days = write_world(root / "data", seed=61, users=3, days=2, per_day=30)
    config = BuildConfig(full_schema(), root / "data", root / "out", days[0], days[1], buckets=2)
    build(config)
    return config


@contextmanager
def damaged(path: Path, content: bytes = b"{") -> Iterator[Path]:
    whole = path.read_bytes()
    path.write_bytes(content)
    yield path
    if path.exists():
        path.write_bytes(whole)


def rebuilt(config: BuildConfig) -> list[str]:
    days = BuildConfig(config.schema, config.data, config.out, config.first, config.last, buckets=config.buckets)
    return build(days).days


@pytest.mark.parametrize("name", ["census.json", "footers.json"])
def test_what_only_spares_reading_is_read_again(built: BuildConfig, name: str) -> None:
    with damaged(built.out / "partials" / name):
        assert rebuilt(built) == []


def test_a_day_whose_manifest_is_damaged_is_stale_and_built_again(built: BuildConfig) -> None:
    before = repr(read_samples(built.out, built.last))
    (built.out / "samples" / f"dt={built.last}" / "manifest.json").write_text("{}")
    state_of = {day.dt: day for day in status(built.schema, built.data, built.out)}
    assert (state_of[built.last].state, state_of[built.last].reason) == ("stale", "its manifest is missing or damaged")
    with pytest.raises(UserError, match=r"manifest\.json is not a manifest .* build the day again"):
        clean(built.out)
    assert rebuilt(built) == [built.last]
    assert repr(read_samples(built.out, built.last)) == before


def test_a_partial_whose_note_is_damaged_is_made_again_and_one_without_its_rows_named(built: BuildConfig) -> None:
    folder = next(p.parent for p in (built.out / "partials" / "clicks").glob("dt=*/*/partial.json"))
    again = BuildConfig(built.schema, built.data, built.out, built.first, built.last, force=True)
    (folder / "partial.json").write_text("{")
    assert len(build(again).days) == 2
    with damaged(next(folder.glob("*.parquet"))) as file, pytest.raises(UserError, match="build again") as caught:
        build(again)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_the_file_and_the_remedy_are_named(built: BuildConfig, tmp_path: Path) -> None:
    layout = built.out / "partials" / "layout.json"  # As an earlier release wrote it.
    Layout(2).write(layout)
    with damaged(layout), pytest.raises(UserError, match=r"layout\.json is damaged"):
        rebuilt(built)
    layout.unlink()
    with damaged(built.out / "stats" / f"dt={built.last}.parquet"), pytest.raises(UserError, match="--force"):
        statistics(built.out)
    sample = next((built.out / "samples").rglob("*.parquet"))
    with damaged(sample), pytest.raises(UserError, match=f"{sample.name} can't be read as Parquet .* --force"):
        built_schema(sample)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't make the folder"), locked(tmp_path / "file"):
        pass
    for nothing in (clean, statistics):
        with pytest.raises(UserError, match=f"--out {tmp_path / 'gone'}: "):
            nothing(tmp_path / "gone")
    (built.out / "staging").mkdir(exist_ok=True)
    (built.out / "staging" / "left.parquet").write_text("")
    assert built.out / "staging" / "left.parquet" in clean(built.out).paths


def test_bad_dates_and_moments_are_refused_before_an_engine_starts(tmp_path: Path) -> None:
    for first, last, as_of, message in (
        ("2026-13-01", "2026-01-02", None, "--from '2026-13-01' is not a day"),
        ("2026-01-02", "2026-01-01", None, "--from 2026-01-02 lies after --to 2026-01-01"),
        ("2026-01-01", "2026-01-02", "soon", "--as-of 'soon' is not a moment"),
    ):
        with pytest.raises(UserError, match=message):
            BuildConfig(full_schema(), tmp_path, tmp_path, first, last, as_of=as_of)

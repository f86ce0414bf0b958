"""Bad input is one clear line that names the file, column or flag and the remedy, and publishes nothing."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrank.pipelines import engine_factory, spark_session
from genrank.pipelines.build import BuildConfig, build
from genrank.pipelines.engine_factory import LOCAL_EXPOSURES, BuildEngine, choose, open_engine
from genrank.schemas import UserError
from genrank.schemas.manifest import sample_days
from tests.pipelines.worlds import full_schema, write_world

pytestmark = pytest.mark.usefixtures("plain_gate")


def a_file(root: Path) -> Path:
    return sorted((root / "data" / "exposures").rglob("*.parquet"))[0]


def drop_column(root: Path) -> None:
    pq.write_table(
        pq.read_table(a_file(root)).rename_columns(
            ["user_id", "ts", "item", *pq.read_table(a_file(root)).column_names[3:]]
        ),
        a_file(root),
    )


def change_type(root: Path) -> None:
    table = pq.read_table(a_file(root))
    at = table.column_names.index("price")
    pq.write_table(table.set_column(at, "price", table.column("price").cast(pa.string())), a_file(root))


def damage(root: Path) -> None:
    a_file(root).write_bytes(b"PAR1 is not enough")


def empty_day(root: Path) -> None:
    for file in a_file(root).parent.iterdir():
        file.unlink()


def drop_day(root: Path) -> None:
    shutil.rmtree(a_file(root).parent)


def drop_source(root: Path) -> None:
    shutil.rmtree(root / "data" / "clicks")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            drop_column,
            r"source 'exposures': .*part-0.parquet has no column 'item_id' .did you mean 'item'.; fix the file",
        ),
        (change_type, r"source 'exposures': column 'price' of .*part-0.parquet is string, declared float64"),
        (damage, r"source 'exposures': .*part-0.parquet can't be read as Parquet"),
        (empty_day, r"source 'exposures': .*dt=2026-01-05 holds no Parquet file"),
        (drop_day, r"source 'exposures' has no day 2026-01-05 under .*; it has 2026-01-06 .. 2026-01-06"),
        (drop_source, r"source 'clicks': there is no folder .*clicks; check --data"),
    ],
)
def test_bad_input(tmp_path: Path, harm: Callable[[Path], None], message: str) -> None:
    days = write_world(tmp_path / "data", seed=61, days=2)
    harm(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        build(BuildConfig(full_schema(), tmp_path / "data", tmp_path / "out", days[0], days[1]))
    assert "\n" not in str(error.value)
    assert sample_days(tmp_path / "out" / "samples") == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"first": "2026-13-01"}, "--from '2026-13-01' is not a day"),
        ({"first": "2026-01-06", "last": "2026-01-05"}, "--from 2026-01-06 lies after --to 2026-01-05"),
        ({"as_of": "yesterday"}, "--as-of 'yesterday' is not a moment"),
        ({"as_of": "2026-01-05T00:00"}, "--as-of .* lies before the end of --to"),
        ({"engine": "flink"}, "--engine 'flink': must be one of auto, spark, local"),
    ],
)
def test_bad_flags(tmp_path: Path, flags: dict[str, str], message: str) -> None:
    write_world(tmp_path / "data", seed=62, days=2)
    given = {"first": "2026-01-05", "last": "2026-01-06"} | flags
    with pytest.raises(UserError, match=message):
        build(BuildConfig(full_schema(), tmp_path / "data", tmp_path / "out", **given))  # type: ignore[arg-type]


def test_without_java_spark_is_refused_and_local_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(spark_session.shutil, "which", lambda _: None)
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    assert choose(LOCAL_EXPOSURES + 1) == ("local", "20,000,001 exposures, and no Java 17 found")
    with pytest.raises(UserError, match="needs Java 17 and there is no java; install Java 17"):
        open_engine("spark", tmp_path)


def test_the_engine_is_chosen_by_the_days_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    monkeypatch.setattr(engine_factory, "_spark_lacks", lambda: "")
    assert choose(LOCAL_EXPOSURES)[0] == "local"
    assert choose(LOCAL_EXPOSURES + 1)[0] == "spark"
    opened: list[str] = []

    def opener(name: str, folder: Path) -> object:
        opened.append(name)
        return open_engine("local", folder)

    days = write_world(tmp_path / "data", seed=64, days=1)
    config = BuildConfig(full_schema(), tmp_path / "data", tmp_path / "out", days[0], days[0], engine="auto")
    monkeypatch.setattr(engine_factory, "open_engine", opener)
    with caplog.at_level(logging.INFO):
        build(config)
        assert build(config).unchanged == days, "what is up to date starts no engine"
    assert opened == ["local"]
    lines = [record.getMessage() for record in caplog.records if "engine:" in record.getMessage()]
    assert len(lines) == 1
    assert re.fullmatch(r"engine: local \([\d,]+ exposures; spark beyond 20,000,000, or by --engine spark\)", lines[0])
    for name, expected in (("auto", "spark"), ("local", "local")):
        BuildEngine(name, tmp_path).to_ingest("events")
        assert opened[-1] == expected
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")
    assert choose(1) == ("spark", "submitted to Spark")


def test_a_day_missing_between_others(tmp_path: Path) -> None:
    days = write_world(tmp_path / "data", seed=61, days=3)
    shutil.rmtree(tmp_path / "data" / "exposures" / f"dt={days[1]}")
    with pytest.raises(
        UserError, match="has days before and after; let it land, or, if nobody was shown anything, write a Parquet"
    ):
        build(BuildConfig(full_schema(), tmp_path / "data", tmp_path / "out", days[0], days[2]))

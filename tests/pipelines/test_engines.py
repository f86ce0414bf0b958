"""Spark computes what this machine's threads compute, to the bit."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrank.pipelines import moving
from genrank.pipelines.build import BuildConfig, build
from genrank.pipelines.engine import Piece
from genrank.pipelines.spark_engine import SparkEngine
from genrank.pipelines.status import status
from genrank.schemas import UserError
from genrank.schemas.manifest import sample_files
from tests.pipelines.test_compaction import long_schema
from tests.pipelines.worlds import full_schema, write, write_world

pytestmark = [pytest.mark.spark, pytest.mark.xdist_group("spark"), pytest.mark.usefixtures("recomputing_gate")]


def stored(out: Path, dt: str) -> list[bytes]:
    """The Arrow bytes of each file of a day, NaNs and all; only the build's own id left out."""
    tables = [pq.read_table(path).replace_schema_metadata() for path in sample_files(out / "samples", dt)]
    found = []
    for table in tables:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        found.append(sink.getvalue().to_pybytes())
    return found


def test_spark_equals_local_to_the_bit(
    tmp_path: Path, spark_engine: SparkEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "FILES", 1)  # tasks rename what was staged
    days = write_world(tmp_path / "data", seed=11, users=12, items=8, per_day=200)
    schema = full_schema(negative_keep_rate=0.7, max_candidates=9)
    for name, engine in (("local", None), ("spark", spark_engine)):
        config = BuildConfig(schema, tmp_path / "data", tmp_path / name, days[0], days[-1], name, buckets=3)
        result = build(config, engine)
        assert result.candidates > 100
    for dt in days:
        assert stored(tmp_path / "spark", dt) == stored(tmp_path / "local", dt)
    assert_spark_reads(spark_engine, [*map(str, sample_files(tmp_path / "local" / "samples", days[-1]))])


def assert_spark_reads(engine: SparkEngine, paths: list[str]) -> None:
    """Spark's own reader knows every encoding in samples' files."""
    found = {row["sample_id"]: row.asDict(recursive=True) for row in engine.session.read.parquet(*paths).collect()}
    rows = pa.concat_tables([pq.read_table(path) for path in paths]).to_pylist()
    assert len(found) == len(rows) > 0
    for row in rows:
        assert str(found[row["sample_id"]]) == str(row)


def test_spark_makes_and_reads_blocks_like_local(
    small_compaction: None, tmp_path: Path, spark_engine: SparkEngine
) -> None:
    """In a zone one of whose days has 25 hours."""
    schema = long_schema().replace(utc_offset="Europe/Berlin")
    zone = ZoneInfo("Europe/Berlin")
    days = write_world(tmp_path / "data", seed=13, days=11, users=6, per_day=60, first_day="2025-10-20", zone=zone)
    build(BuildConfig(schema, tmp_path / "data", tmp_path / "local", days[0], days[-2], buckets=2))
    shutil.copytree(tmp_path / "local", tmp_path / "spark", ignore=shutil.ignore_patterns("blocks"))
    made = {}
    for name, engine in (("local", None), ("spark", spark_engine)):
        build(BuildConfig(schema, tmp_path / "data", tmp_path / name, days[-1], days[-1], name), engine)
        made[name] = {path.name.rsplit("-", 1)[0] for path in (tmp_path / name / "blocks").glob("*/")}
    # The local folder has those of the days before as well.
    assert made["spark"] <= made["local"] and made["spark"] >= {"clicks-history", "users-history"}
    assert any("-by-" in block for block in made["spark"]), made
    assert stored(tmp_path / "spark", days[-1]) == stored(tmp_path / "local", days[-1])


def test_a_users_mistake_found_in_a_task_is_one_line(spark_engine: SparkEngine) -> None:
    def fail(unit: int) -> list[Piece]:
        raise UserError(f"unit {unit}: column 'a' is broken; mend it")

    with pytest.raises(UserError, match=r"^unit 7: column 'a' is broken; mend it$"):
        spark_engine.collect(spark_engine.map("fail", [7], fail))


def test_catalog_tables_are_read_by_spark_and_built_alike(tmp_path: Path, spark_engine: SparkEngine) -> None:
    days = write_world(tmp_path / "data", seed=12, days=2, users=4, per_day=40)
    schema = full_schema()
    tables = ("clicks", "items")
    for name in tables:
        spark_engine.session.read.parquet(str(tmp_path / "data" / name)).createOrReplaceTempView(f"log_{name}")
    in_catalog = schema.replace(
        sources=tuple(s.replace(path=None, catalog=f"log_{s.name}") if s.name in tables else s for s in schema.sources)
    )
    with pytest.raises(UserError, match="source 'clicks' is table log_clicks of a Spark catalog"):
        build(BuildConfig(in_catalog, tmp_path / "data", tmp_path / "no", days[0], days[0], buckets=2))
    build(BuildConfig(schema, tmp_path / "data", tmp_path / "files", days[0], days[-1], buckets=2))
    config = BuildConfig(in_catalog, tmp_path / "data", tmp_path / "tables", days[0], days[-1], "spark", buckets=2)
    build(config, spark_engine)
    for dt in days:
        assert stored(tmp_path / "tables", dt) == stored(tmp_path / "files", dt)
    assert build(config, spark_engine).days == []
    rows = spark_engine.session.table("log_clicks")
    rows.unionByName(rows.limit(1).drop("dt"), allowMissingColumns=True).createOrReplaceTempView("log_nulls")
    nulls = tuple(s.replace(catalog="log_nulls") if s.name == "clicks" else s for s in in_catalog.sources)
    with pytest.raises(UserError, match="table log_nulls has rows whose dt is null, which would not be read"):
        build(dataclasses.replace(config, schema=in_catalog.replace(sources=nulls)), spark_engine)


def test_uris_are_read_by_spark_and_built_alike(tmp_path: Path, spark_engine: SparkEngine) -> None:
    """Only days whose files changed are copied again; a day that is gone there is gone here."""
    data = tmp_path / "data"
    days = write_world(data, seed=13, days=2, users=4, per_day=40)
    schema = full_schema()
    with pytest.raises(
        UserError, match=r"lies at file:///.*exposures/dt=\{dt\}, which --engine local can't read; use --engine spark"
    ):
        build(BuildConfig(schema, data.as_uri(), tmp_path / "no", days[0], days[0], buckets=2))
    one = schema.replace(
        sources=tuple(s.replace(path=f"{data.as_uri()}/{s.path}") if s.name == "clicks" else s for s in schema.sources)
    )
    build(BuildConfig(schema, data, tmp_path / "files", days[0], days[-1], buckets=2))
    configs = [
        BuildConfig(schema, data.as_uri(), tmp_path / "uris", days[0], days[-1], "spark", buckets=2),
        BuildConfig(one, data, tmp_path / "one", days[0], days[-1], "spark", buckets=2),
    ]
    for config in configs:
        build(config, spark_engine)
        for dt in days:
            assert stored(config.out, dt) == stored(tmp_path / "files", dt)
        assert build(config, spark_engine).days == []
        assert all(day.state == "up to date" for day in status(config.schema, config.data, config.out))

    landed = tmp_path / "uris" / "landed"
    before = {path: path.stat().st_mtime_ns for path in landed.rglob("*.parquet")}
    write(pq.read_table(data / "clicks" / f"dt={days[1]}").slice(1), data / "clicks" / f"dt={days[1]}")
    orders = data / "orders" / f"dt={days[1]}"
    orders.rename(tmp_path / "gone")
    assert build(dataclasses.replace(configs[0], allow_missing=True), spark_engine).days
    changed = {p.parent.relative_to(landed) for p in set(before) ^ set(landed.rglob("*.parquet"))}
    assert {str(path) for path in changed} == {f"clicks/dt={days[1]}", f"orders/dt={days[1]}"}

    for stray in ("clicks/dt=20260109", "clicks/dt=__HIVE_DEFAULT_PARTITION__", f"clicks/dt={days[1]}/_temporary"):
        shutil.copytree(data / "clicks" / f"dt={days[0]}", data / stray)
        with pytest.raises(UserError, match=rf"source 'clicks': .*{stray}.* would not be read"):
            build(configs[0], spark_engine)
        shutil.rmtree(data / stray)

    with pytest.raises(UserError, match=r"source 'exposures': there is no file:.*/nowhere/exposures; check --data"):
        build(BuildConfig(schema, f"{data.as_uri()}/nowhere", tmp_path / "no", days[0], days[0], "spark"), spark_engine)
    with pytest.raises(UserError, match=r"^source 'exposures': nofs://.* can't be read: .*nofs[^\n]*$"):
        build(BuildConfig(schema, "nofs://bucket/logs", tmp_path / "no", days[0], days[0], "spark"), spark_engine)

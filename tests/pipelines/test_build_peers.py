"""The scripts that the builder's benchmark compares with make what the builder makes, value by value."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from benchmarks import build as benchmark
from genrank.pipelines.build import BuildConfig, build
from genrank.pipelines.days import dt_of

pytestmark = pytest.mark.usefixtures("plain_gate")


def built(out: Path) -> pl.DataFrame:
    day = pl.read_parquet(out / "samples/dt=*/build=*/*.parquet")
    events = {"history": "h_", "realtime": "r_"}
    return day.select(
        "user_id",
        pl.col("candidates").struct.unnest(),
        pl.col("labels").struct.field("click"),
        pl.col("mask").struct.field("candidate_sees").alias("sees"),
        *(
            pl.col(sequence).struct.field(name).alias(prefix + name)
            for sequence, prefix in events.items()
            for name in ("item_id", "category", "ts")
        ),
    )


def comparable(samples: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Candidates, one a row, and events of each user."""
    names = ["item_id", "category", "ts", *benchmark.CROSS, "click", "sees"]
    candidates = samples.select("user_id", *names).explode(names)
    whole = candidates.select(
        pl.col("user_id", "item_id", "category", "ts").cast(pl.Int64),
        pl.col(benchmark.CROSS).cast(pl.Float32),
        pl.col("click", "sees").cast(pl.Int32),
    )
    lists = sorted(name for name in samples.columns if name[:2] in ("h_", "r_"))
    events = samples.select("user_id", *(pl.col(name).fill_null([]).cast(pl.List(pl.Int64)) for name in lists))
    return whole.sort("user_id", "ts", "item_id"), events.sort("user_id")


def test_the_scripts_make_what_the_builder_makes(tmp_path: Path) -> None:
    benchmark.write_logs(tmp_path / "logs", 3000, 0)
    day = dt_of(benchmark.LAST)
    build(BuildConfig(benchmark.schema(), tmp_path / "logs", tmp_path / "built", day, day, engine="local", buckets=1))
    candidates, events = comparable(built(tmp_path / "built"))
    assert len(candidates) == 3000 and candidates["click"].sum() > 5 and candidates["sees"].max() > 5
    # DuckDB is no dependency.
    for peer in ("numpy", "polars", *(["duckdb"] if find_spec("duckdb") else [])):
        run, _ = benchmark.PEERS[peer]
        run(peer, tmp_path / "logs", tmp_path / peer)
        by_hand = comparable(pl.read_parquet(tmp_path / peer / "*.parquet"))
        assert_frame_equal(by_hand[0], candidates)
        assert_frame_equal(by_hand[1], events)

"""A real log, end to end: KuaiRand-Pure's samples reconciled to the raw file by hand-written SQL."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest

from genrank.examples.kuairand.adapter import convert
from genrank.examples.kuairand.schema import schema
from genrank.pipelines.build import BuildConfig, build
from genrank.schemas.manifest import SampleManifest

DATA = Path(os.environ.get("GENRANK_KUAIRAND", Path(__file__).parents[3] / "shared" / "data" / "kuairand_pure_tail"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("plain_gate"),
    pytest.mark.skipif(
        not (DATA / "log.parquet").is_file(), reason="no KuaiRand-Pure files; GENRANK_KUAIRAND=FOLDER names them"
    ),
]

BY_DAY = """
WITH shown AS (
    SELECT user_id, video_id, time_ms, is_click, long_view, (time_ms + 28800000) // 86400000 AS day FROM log
),
once AS (SELECT DISTINCT user_id, video_id, time_ms, day FROM shown),
per_day AS (SELECT day, COUNT(*) AS rows_in FROM shown GROUP BY day),
kept AS (SELECT day, COUNT(*) AS rows_out, COUNT(DISTINCT user_id) AS users FROM once GROUP BY day)
SELECT per_day.day, rows_in, rows_out, users FROM per_day JOIN kept ON per_day.day = kept.day ORDER BY per_day.day
"""

CLICKS = """
SELECT (time_ms + 28800000) // 86400000 AS day, SUM(click) AS clicks, SUM(long) AS longs FROM (
    SELECT user_id, video_id, time_ms, MIN(is_click) AS click, MIN(long_view) AS long FROM log GROUP BY user_id, video_id, time_ms
) AS once GROUP BY day ORDER BY day
"""


def test_every_day_reconciles_to_the_raw_log(tmp_path: Path) -> None:
    convert(DATA, tmp_path / "log")
    first, last = "2022-05-01", "2022-05-08"
    result = build(BuildConfig(schema, tmp_path / "log", tmp_path / "out", first, last))
    log = pl.read_parquet(DATA / "log.parquet")
    with pl.SQLContext(log=log) as context:
        days = {row["day"]: row for row in context.execute(BY_DAY).collect().to_dicts()}
        clicks = {row["day"]: row for row in context.execute(CLICKS).collect().to_dicts()}
    assert len(days) == 15 and len(result.days) == 8, "the second half, with all before it behind it"
    for dt, (day, counted) in zip(result.days, sorted(days.items())[-8:], strict=True):
        manifest = SampleManifest.read(tmp_path / "out" / "samples" / f"dt={dt}")
        assert manifest.counts.rows_in["exposures"] == counted["rows_in"]
        assert manifest.counts.quarantined["exposures"] == {}
        assert manifest.counts.duplicates["exposures"] == counted["rows_in"] - counted["rows_out"]
        assert manifest.candidates == counted["rows_out"]
        assert manifest.samples == counted["users"]
        labels = pl.read_parquet(
            tmp_path / "out" / "samples" / f"dt={dt}" / "build=*" / "*.parquet", columns=["labels"]
        ).unnest("labels")
        assert labels["click"].list.sum().sum() == clicks[day]["clicks"]
        assert labels["long_view"].list.sum().sum() == clicks[day]["longs"]

"""A build from files to published samples."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.build import BuildConfig, build
from schemas.contract import arrow_schema
from schemas.manifest import SampleManifest, sample_days, sample_files
from tests.pipelines.worlds import full_schema, write_world


def test_published_days_hold_the_contract(tmp_path: Path) -> None:
    days = write_world(tmp_path / "data", seed=3)
    schema = full_schema()
    result = build(BuildConfig(schema, tmp_path / "data", tmp_path / "out", days[0], days[-1]))
    assert result.days == sample_days(tmp_path / "out" / "samples") == days
    for dt in days:
        manifest = SampleManifest.read(tmp_path / "out" / "samples" / f"dt={dt}")
        tables = [pq.read_table(path) for path in sample_files(tmp_path / "out" / "samples", dt, schema)]
        assert sum(len(table) for table in tables) == manifest.samples
        for table in tables:
            assert table.schema.equals(arrow_schema(schema))
        for source, rows in manifest.counts.rows_in.items():
            quarantined = sum(manifest.counts.quarantined[source].values())
            assert rows == manifest.counts.out[source] + manifest.counts.duplicates[source] + quarantined


@pytest.mark.parametrize("again", [False, True])
def test_an_unchanged_day_is_left_alone(tmp_path: Path, again: bool) -> None:
    days = write_world(tmp_path / "data", seed=4, days=2)
    config = BuildConfig(full_schema(), tmp_path / "data", tmp_path / "out", days[0], days[-1], force=again)
    first = build(config)
    second = build(config)
    assert second.days == (first.days if again else [])

"""A build from files to published samples."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrank.pipelines.build import BuildConfig, build
from genrank.pipelines.gate.judge import NOTES
from genrank.schemas import Candidates, EventLog, Events, EventSequence, Label, Schema
from genrank.schemas.derive.sample_schema import arrow_schema
from genrank.schemas.manifest import SampleManifest, sample_days, sample_files
from tests.pipelines.worlds import full_schema, ids, read_samples, write_world


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
        verdict = tmp_path / "out" / "gate" / f"dt={dt}" / "published"
        assert json.loads((verdict / "validation.json").read_text())["success"]
        columns = [e["kwargs"]["column"] for e in json.loads((verdict / "suite.json").read_text())["expectations"]]
        assert columns == list(NOTES)
        assert {len(counts) for counts in json.loads((verdict / "counts.json").read_text()).values()} != {0}
        assert not (verdict / "index.html").exists(), "its page is written when it is asked for"


@pytest.mark.parametrize("again", [False, True])
def test_an_unchanged_day_is_left_alone(tmp_path: Path, again: bool) -> None:
    days = write_world(tmp_path / "data", seed=4, days=2)
    config = BuildConfig(full_schema(), tmp_path / "data", tmp_path / "out", days[0], days[-1], force=again)
    first = build(config)
    second = build(config)
    assert second.days == (first.days if again else [])


def test_a_small_schema_with_string_users_and_many_candidates(tmp_path: Path, plain_gate: None) -> None:
    """No realtime sequence, no snapshot, no cross feature; a user without history; a day of one user; splitting and its order."""
    columns = {"user_id": "string", "item_id": "int64", "ts": "timestamp", "liked": "int32"}
    schema = Schema(
        name="small",
        sources=(EventLog(name="exposures", path="{dt}/shown.parquet", columns=columns, post_exposure=("liked",)),),
        sequences=(
            EventSequence(
                name="history", events=(Events(source="exposures"),), features=(ids("item_id"),), max_length=3
            ),
        ),
        candidates=Candidates(features=(ids("item_id"),), max_candidates=2),
        labels=(Label(name="like", column="liked"),),
    )
    for day, users in ((5, ["a", "b"]), (6, ["a"]), (7, ["c", "a", "a", "a", "a", "a"])):
        rows = [
            {"user_id": u, "item_id": 10 * day + i, "ts": (day * 86_400 + i) * 1000, "liked": i % 2}
            for i, u in enumerate(users)
        ]
        types = {"user_id": pa.string(), "item_id": pa.int64(), "ts": pa.timestamp("ms"), "liked": pa.int32()}
        (tmp_path / "data" / f"1970-01-0{day + 1}").mkdir(parents=True)
        pq.write_table(
            pa.Table.from_pylist(rows, pa.schema(types)), tmp_path / "data" / f"1970-01-0{day + 1}" / "shown.parquet"
        )
    result = build(BuildConfig(schema, tmp_path / "data", tmp_path / "out", "1970-01-06", "1970-01-08"))
    assert (result.samples, result.candidates) == (2 + 1 + 4, 9)
    rows = {row["sample_id"]: row for row in read_samples(tmp_path / "out", "1970-01-08")}
    assert sorted(rows) == ["a:1970-01-08:0", "a:1970-01-08:1", "a:1970-01-08:2", "c:1970-01-08:0"]
    assert rows["c:1970-01-08:0"]["history"]["item_id"] == []
    assert [rows[f"a:1970-01-08:{i}"]["candidates"]["item"] for i in range(3)] == [[71, 72], [73, 74], [75]]
    assert [rows[f"a:1970-01-08:{i}"]["history"]["item_id"] for i in range(3)] == [[50, 60]] * 3
    assert rows["a:1970-01-08:0"]["labels"]["like"] == [1, 0]
    assert len({row["candidates"]["request"][0] for row in rows.values()}) == 2


def test_down_sampling_keeps_positives_and_corrects_for_the_rest(tmp_path: Path, plain_gate: None) -> None:
    days = write_world(tmp_path / "data", seed=5, users=30, per_day=400, days=2)
    full, sampled = full_schema(), full_schema(negative_keep_rate=0.3)
    for name, schema in (("full", full), ("sampled", sampled)):
        build(BuildConfig(schema, tmp_path / "data", tmp_path / name, days[0], days[1]))
    tasks = [label.name for label in full.labels]

    def candidates(name: str) -> dict[tuple[int, ...], tuple[bool, float]]:
        found = {}
        for row in read_samples(tmp_path / name, days[1]):
            for i, item in enumerate(row["candidates"]["item"]):
                positive = any(row["labels"][task][i] > 0 for task in tasks)
                key = (row["user_id"], item, row["candidates"]["ts"][i], row["candidates"]["request"][i])
                found[key] = (positive, row["labels"]["dwell_weight"][i])
        return found

    everything, kept = candidates("full"), candidates("sampled")
    assert kept.keys() < everything.keys()
    assert {key for key, (positive, _) in everything.items() if positive} <= kept.keys()
    negatives = [key for key, (positive, _) in everything.items() if not positive]
    assert 0.15 < sum(key in kept for key in negatives) / len(negatives) < 0.45
    for key, (positive, weight) in kept.items():
        assert weight == pytest.approx(everything[key][1] * (1 if positive else 1 / 0.3))
    manifest = SampleManifest.read(tmp_path / "sampled" / "samples" / f"dt={days[1]}")
    assert manifest.counts.exposures_down_sampled == len(everything) - len(kept)

"""A day against the days before it: what is reported, what stops, and what is too little to say."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrank.pipelines.build import BuildConfig, build
from genrank.pipelines.gate.drift import drifts
from genrank.pipelines.sample_statistics import Summary
from genrank.schemas import DriftLimits, Limits, SchemaError, UserError, from_json, to_json
from genrank.schemas.manifest import sample_days
from tests.pipelines.worlds import full_schema, write_world

Day = dict[str, Summary]


def day(rows: int = 5000, rate: float = 0.1, missing: float = 0.0, shift: float = 0.0) -> Day:
    values = (np.random.default_rng(rows).normal(size=200) + shift).tolist()
    lost = int(rows * missing)
    return {
        "len(candidates)": Summary("len(candidates)", "number", 50, total=float(rows), values=[1.0], weights=[50.0]),
        "labels.click": Summary(
            "labels.click", "number", rows, total=rate * rows, values=[0.0, 1.0], weights=[rows / 2] * 2
        ),
        "candidates.price": Summary(
            "candidates.price", "number", rows, lost, values=values, weights=[(rows - lost) / 200] * 200
        ),
        "exposures → items": Summary("exposures → items", "join", rows, lost),
    }


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (day(), set()),
        (day(rows=6000, rate=0.12, missing=0.05), set()),
        (day(rows=15_000), {("candidates", "warn")}),
        (day(rows=400), {("candidates", "stop")}),
        (day(rate=0.04), {("labels.click", "warn")}),
        (day(rate=1.0), {("labels.click", "stop")}),
        (day(rate=0.0), {("labels.click", "stop")}),
        (day(missing=0.2), {("candidates.price", "warn"), ("exposures → items", "warn")}),
        (day(missing=0.9), {("candidates.price", "stop"), ("exposures → items", "stop"), ("candidates.price", "warn")}),
        (day(shift=2), {("candidates.price", "warn")}),
    ],
)
def test_what_has_moved(now: Day, expected: set[tuple[str, str]]) -> None:
    found = list(drifts(DriftLimits(), now, [day(), day(rows=5100), day(rows=4900)]))
    assert {(drift.what, drift.level) for drift in found} == expected
    assert all("days before" in drift.words and "limit" in drift.words for drift in found)


def test_what_grows_a_little_every_day_is_no_drift() -> None:
    """As histories do while a log is young: each day is like the one before, and unlike all of them together."""
    before = [day(shift=-0.5 * age) for age in range(5, 0, -1)]
    assert not list(drifts(DriftLimits(), day(), before))
    assert [drift.what for drift in drifts(DriftLimits(), day(shift=2.5), before)] == ["candidates.price"]


def test_too_little_is_compared_with_nothing() -> None:
    now = day(rows=400, rate=0.9, missing=0.9, shift=5)
    assert not list(drifts(DriftLimits(), now, [day(), day()])), "the first days"
    few = [day(rows=90)] * 3
    assert not list(drifts(DriftLimits(), day(rows=9, rate=0.9, missing=0.9), few)), "a handful of rows"
    assert not list(drifts(DriftLimits(), {}, [day()] * 3))
    off = DriftLimits(rows=Limits(), label_rate=Limits(), missing=Limits(), psi=Limits())
    assert not list(drifts(off, now, [day()] * 3))


def test_limits_are_part_of_no_fingerprint_and_travel_with_the_schema() -> None:
    plain = full_schema()
    assert "drift" not in to_json(plain)
    other = plain.replace(drift=DriftLimits(days=3, psi=Limits(stop=1)))
    assert other.fingerprint == plain.fingerprint
    assert other.samples_fingerprint == plain.samples_fingerprint
    assert from_json(to_json(other)).drift == other.drift
    with pytest.raises((SchemaError, ValueError), match="lies below warn"):
        Limits(warn=2, stop=1)


def test_a_day_that_stops_is_published_where_it_is_accepted(
    tmp_path: Path, plain_gate: None, caplog: pytest.LogCaptureFixture
) -> None:
    limits = DriftLimits(least_days=1, least_values=20, rows=Limits(warn=1.5, stop=3), missing=Limits(), psi=Limits())
    schema = full_schema().replace(drift=limits.replace(label_rate=Limits()))
    days = write_world(tmp_path / "data", seed=7, users=6, per_day=200, days=2)
    files = sorted((tmp_path / "data" / "exposures" / f"dt={days[1]}").glob("*.parquet"))
    first = sorted((tmp_path / "data" / "exposures" / f"dt={days[0]}").glob("*.parquet"))
    rows = sum(pq.read_metadata(file).num_rows for file in first)
    some = pa.concat_tables([pq.read_table(file) for file in files]).slice(0, max(1, rows // 8))
    for file in files:
        pq.write_table(some.slice(0, 0) if file != files[0] else some, file)
    config = BuildConfig(schema, tmp_path / "data", tmp_path / "out", days[0], days[0])
    build(config)
    later = BuildConfig(schema, tmp_path / "data", tmp_path / "out", days[1], days[1])
    with pytest.raises(UserError, match=rf"^quality gate, {days[1]}: candidates: .* times, limit 3\).*--allow-drift"):
        build(later)
    assert sample_days(tmp_path / "out" / "samples") == [days[0]]
    assert (tmp_path / "out" / "gate" / f"dt={days[1]}" / "refused" / "index.html").is_file()
    with caplog.at_level(logging.WARNING):
        build(BuildConfig(schema, tmp_path / "data", tmp_path / "out", days[1], days[1], allow_drift=True))
    assert "has drifted: candidates" in caplog.text
    assert sample_days(tmp_path / "out" / "samples") == days
    assert not (tmp_path / "out" / "gate" / f"dt={days[1]}" / "refused").exists()

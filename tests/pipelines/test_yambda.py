"""Yambda's samples, end to end on a made log, against a walk over the raw events."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from genrank.examples.yambda.adapter import Arrival, convert
from genrank.examples.yambda.schema import schema
from genrank.pipelines.build import BuildConfig, build
from tests.examples.yambda_log import write_log

DAY_MS = 86_400_000
START_MS = 1_704_067_200_000
"""2024-01-01 in UTC, epoch ms."""


@pytest.mark.usefixtures("plain_gate")
@pytest.mark.parametrize("arrival", ["played", "event"])
def test_samples_hold_what_a_listener_had_heard(tmp_path: Path, arrival: Arrival) -> None:
    """Every history, realtime sequence and label of a day, against a walk over the raw events."""
    events = pl.DataFrame(write_log(tmp_path / "raw", users=60, days=4)).with_columns(
        pl.col("event_type").cast(pl.String)
    )
    convert(tmp_path / "raw", tmp_path / "log", arrival)
    build(
        BuildConfig(schema, tmp_path / "log", tmp_path / "out", "2024-01-03", "2024-01-03", engine="local", buckets=1)
    )
    samples = pl.read_parquet(tmp_path / "out/samples/dt=2024-01-03/build=*/*.parquet").to_dicts()
    start = START_MS + 2 * DAY_MS
    by_user: dict[int, list[tuple[int, int, int, int]]] = {}
    shown: dict[int, list[tuple[int, int, int]]] = {}
    for event in events.unique().to_dicts():
        ts = START_MS + event["timestamp"] * 1000
        ratio = event["played_ratio_pct"]
        if event["event_type"] == "listen":
            kind = 0 if ratio >= 50 else 1
            known = ts + (ratio * event["track_length_seconds"] * 10 if arrival == "played" else 0)
            if start <= ts < start + DAY_MS:
                shown.setdefault(event["uid"], []).append((ts, event["item_id"], 1 - kind))
        elif event["event_type"] == "like":
            kind, known = 2, ts
        else:
            continue
        by_user.setdefault(event["uid"], []).append((known, ts, event["item_id"], kind))
    assert {s["user_id"] for s in samples} == set(shown) and len(samples) == len(shown) > 40
    sees = 0
    for sample in samples:
        user = sample["user_id"]
        for name, low, high in (("history", 0, start), ("today", start, start + DAY_MS)):
            got, want = sample[name], [e for e in by_user[user] if low <= e[0] < high]
            assert sorted(zip(got["ts"], got["item_id"], got["type"], strict=True)) == sorted(e[1:] for e in want)
        candidates, labels = sample["candidates"], sample["labels"]
        assert sorted(zip(candidates["ts"], candidates["item_id"], labels["listen_plus"], strict=True)) == sorted(
            shown[user]
        )
        assert candidates["hour"] == [ts // 3_600_000 % 24 for ts in candidates["ts"]]
        available = sample["today"]["available"]
        assert sample["mask"]["candidate_sees"] == [sum(a < ts for a in available) for ts in candidates["ts"]]
        sees += sum(sample["mask"]["candidate_sees"])
    assert sees > 100

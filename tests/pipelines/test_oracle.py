"""Every column of every sample against the oracle, on random small logs; and nothing from the future."""

from __future__ import annotations

import math
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from genrank.pipelines.build import BuildConfig, build
from genrank.pipelines.days import moment_text
from genrank.schemas import EventLog, Schema
from genrank.schemas.base import parse_duration
from tests.pipelines.oracle import DAY, Oracle, order, zone_of
from tests.pipelines.worlds import full_schema, read_samples, write, write_world

Row = dict[str, Any]
pytestmark = pytest.mark.usefixtures("recomputing_gate")


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 10**6),
    users=st.integers(1, 4),
    items=st.integers(1, 5),
    per_day=st.integers(1, 40),
    hours=st.integers(0, 50),
)
def test_every_column_equals_the_oracle(seed: int, users: int, items: int, per_day: int, hours: int) -> None:
    check(full_schema(), seed, users, items, per_day, hours)


@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 10**6),
    place=st.sampled_from(
        [
            ("Europe/Berlin", "2025-10-24"),  # the 26th has 25 hours
            ("Europe/Berlin", "2026-03-27"),  # the 29th has 23
            ("America/New_York", "2026-03-06"),
            ("America/Havana", "2026-03-07"),  # the 8th begins at 01:00
        ]
    ),
    hours=st.integers(0, 50),
)
def test_every_column_equals_the_oracle_where_clocks_are_moved(seed: int, place: tuple[str, str], hours: int) -> None:
    zone, first = place
    check(full_schema().replace(utc_offset=zone), seed, users=3, items=4, per_day=30, hours=hours, first=first)


def check(
    schema: Schema, seed: int, users: int, items: int, per_day: int, hours: int, first: str = "2026-01-05"
) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        zone = zone_of(schema.utc_offset)
        days = write_world(root / "data", seed, users, items, per_day=per_day, first_day=first, zone=zone)
        last = days[2]
        as_of = Oracle(schema, root / "none", last, 0).end(last) + hours * DAY // 24
        horizon = max(dt for dt in days if Oracle(schema, root / "none", dt, 0).start(dt) < as_of)
        config = BuildConfig(schema, root / "data", root / "out", days[0], last, as_of=moment_text(as_of))
        build(config)
        assert build(config).days == [], "what was built is up to date"
        oracle = Oracle(schema, root / "data", horizon, as_of)
        for dt in days[:3]:
            expected, found = oracle.samples(dt), {s["user_id"]: s for s in read_samples(root / "out", dt)}
            assert expected.keys() == found.keys()
            for user, sample in expected.items():
                compare(schema, sample, found[user])


@pytest.mark.usefixtures("plain_gate")
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**6), cut=st.floats(0.1, 0.95))
@example(seed=53971, cut=0.5)  # a cut sample whose first event is alike another in time and type
def test_nothing_of_a_candidate_changes_when_the_future_is_deleted(seed: int, cut: float) -> None:
    """Short limits, so that truncation, splitting and down-sampling are at work too."""
    base = full_schema(max_candidates=3)
    schema = base.replace(
        sequences=tuple(s.replace(max_length=4) if s.scope == "realtime" else s for s in base.sequences)
    )
    with TemporaryDirectory() as folder:
        root = Path(folder)
        days = write_world(root / "data", seed, users=3, items=4, days=3, per_day=40)
        start = Oracle(schema, root / "none", days[2], 0).start(days[2])
        moment = start + int(cut * DAY)
        delete_from(schema, root / "data", root / "past", moment)
        views = []
        for data in ("data", "past"):
            build(BuildConfig(schema, root / data, root / f"out-{data}", days[2], days[2]))
            views.append(seen_by_candidates(schema, read_samples(root / f"out-{data}", days[2]), moment))
        assert views[0] == views[1]


def delete_from(schema: Schema, source: Path, target: Path, moment: int) -> None:
    """Copy the logs without the rows that were not available strictly before `moment`; exposures at it stay."""
    oracle = Oracle(schema, source, "9999-12-31", 0)
    for log in schema.sources:
        for folder in sorted(source.glob(f"{log.name}/dt=*")):
            table = pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("*.parquet"))])
            if isinstance(log, EventLog):
                keep = []
                for row in table.to_pylist():
                    ts = oracle.ms(log, row[log.physical(log.time)])
                    arrived = oracle.ms(log, row[log.physical(log.arrival)]) if log.arrival else None
                    seen = max(ts or 0, arrived or 0) + parse_duration(log.delay)
                    keep.append(seen < moment or (log.name == schema.candidates.source and seen == moment))
                table = table.filter(pa.array(keep, pa.bool_()))
            write(table, target / log.name / folder.name)


def seen_by_candidates(schema: Schema, samples: list[Row], moment: int) -> list[str]:
    """Everything each candidate up to `moment` can see, keyed by nothing but its own content."""
    views = []
    realtime = schema.realtime
    assert realtime is not None
    for sample in samples:
        for i, ts in enumerate(sample["candidates"]["ts"]):
            if ts <= moment:
                sees = sample["mask"]["candidate_sees"][i]
                views.append(
                    repr(
                        {
                            "user": (sample["user_id"], sample["user"]),
                            "history": sample["history"],
                            "realtime": {name: values[:sees] for name, values in sample[realtime.name].items()},
                            "realtime_sees": sample["mask"]["realtime_sees"][:sees],
                            "candidate": {name: values[i] for name, values in sample["candidates"].items()},
                            "chunk": sample["sample_id"],
                        }
                    )
                )
    return sorted(views)


def compare(schema: Schema, expected: Row, found: Row) -> None:
    assert (found["window_start"], found["window_end"]) == (expected["window_start"], expected["window_end"])
    assert same(found["user"], expected["user"])
    for sequence in schema.sequences:
        names = [f.name for f in sequence.features if f.stored]
        got = [
            {"ts": ts, "type": type_, "features": {n: found[sequence.name][n][i] for n in names}}
            for i, (ts, type_) in enumerate(zip(found[sequence.name]["ts"], found[sequence.name]["type"], strict=True))
        ]
        want = expected[sequence.name]
        assert [(e["ts"], e["type"]) for e in got] == [(e["ts"], e["type"]) for e in want], sequence.name
        if sequence.scope == "realtime":
            assert found[sequence.name]["available"] == [e["available"] for e in want]
        for event, seen in zip(got, want, strict=True):
            event["available"] = seen["available"]
        # Events equal in (available, ts, type) stand in an order of hashes: compare them as sets. The oldest kept may be
        # cut through such a set.
        whole = sequence.name not in expected["cut through ties"]
        for i, (_, members) in enumerate(groupby(sorted(got, key=order), key=lambda e: order(e)[:3])):
            peers = list(members)
            wanted = [e for e in want if order(e)[:3] == order(peers[0])[:3]]
            if whole or i > 0:
                assert len(peers) == len(wanted)
                assert all(
                    same(a["features"], b["features"]) for a, b in zip(peers, sorted(wanted, key=order), strict=True)
                ), (peers, wanted)
    candidates = found["candidates"]
    got_candidates = [
        {
            **{name: candidates[name][i] for name in ("ts", "item", "request")},
            "sees": found["mask"]["candidate_sees"][i],
            "features": {f.name: candidates[f.name][i] for f in schema.candidates.features if f.stored},
            "labels": {
                la.name: (found["labels"][la.name][i], found["labels"][f"{la.name}_weight"][i]) for la in schema.labels
            },
        }
        for i in range(len(candidates["ts"]))
    ]
    assert candidates["ts"] == sorted(candidates["ts"])
    assert len(got_candidates) == len(expected["candidates"])
    rest = list(expected["candidates"])
    for candidate in got_candidates:
        match = next(
            (
                e
                for e in rest
                if all(e[k] == candidate[k] for k in ("ts", "item", "request", "sees"))
                and same(candidate["features"], e["features"])
                and same_labels(schema, candidate["labels"], e["labels"])
            ),
            None,
        )
        assert match is not None, difference(candidate, [e for e in rest if e["ts"] == candidate["ts"]])
        rest.remove(match)
    assert found["mask"]["realtime_sees"] == expected["realtime_sees"]


def difference(found: Row, peers: list[Row]) -> str:
    """What differs from each exposure of the oracle at the same moment."""
    differing = [
        {
            **{k: (found[k], e[k]) for k in ("item", "request", "sees") if found[k] != e[k]},
            **{k: (v, e["features"][k]) for k, v in found["features"].items() if not same(v, e["features"][k])},
            **{
                k: (v, e["labels"][k])
                for k, v in found["labels"].items()
                if not same([float(x) for x in v], list(e["labels"][k]))
            },
        }
        for e in peers
    ]
    return f"(found, expected) at {found['ts']}: {differing}"


def same(a: Any, b: Any) -> bool:
    if isinstance(b, set):
        return any(same(a, choice) for choice in b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-6, abs_tol=2e-6)
    return bool(a == b)


def same_labels(schema: Schema, a: Row, b: Row) -> bool:
    return all(same([float(v) for v in a[label.name]], list(b[label.name])) for label in schema.labels)


@pytest.mark.parametrize("seed", range(2))
def test_a_big_random_log_equals_the_oracle(seed: int) -> None:
    check(full_schema(), seed, users=6, items=4, per_day=120, hours=30)

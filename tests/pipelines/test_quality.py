"""The gate sees each broken invariant, and lets a sound day pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrank.pipelines.build import BuildConfig, build
from genrank.pipelines.messages import InvariantReport
from genrank.pipelines.quality import INVARIANTS, QuarantineRate, gate, violations
from genrank.schemas import UserError
from genrank.schemas.derive.sample_schema import arrow_schema
from genrank.schemas.manifest import sample_files
from tests.pipelines.worlds import full_schema, write_world

Row = dict[str, Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, plain_gate: None) -> list[Row]:
    root = tmp_path_factory.mktemp("sound")
    days = write_world(root / "data", seed=51, users=6, per_day=200)
    build(BuildConfig(full_schema(), root / "data", root / "out", days[0], days[-1]))
    return [row for path in sample_files(root / "out" / "samples", days[2]) for row in pq.read_table(path).to_pylist()]


def longest(rows: list[Row], group: str) -> Row:
    return max(rows, key=lambda row: len(row[group]["ts"]))


def late_history(rows: list[Row]) -> None:
    row = longest(rows, "history")
    row["history"]["ts"][-1] = row["window_start"]


def realtime_backwards(rows: list[Row]) -> None:
    longest(rows, "realtime")["realtime"]["available"].reverse()


def sees_itself(rows: list[Row]) -> None:
    longest(rows, "realtime")["mask"]["realtime_sees"][-1] += 1


def sees_the_future(rows: list[Row]) -> None:
    longest(rows, "candidates")["mask"]["candidate_sees"][0] += 1


def ragged(rows: list[Row]) -> None:
    longest(rows, "candidates")["candidates"]["price"].pop()


def unlabelled(rows: list[Row]) -> None:
    longest(rows, "candidates")["labels"]["click"][0] = 2


def negative_weight(rows: list[Row]) -> None:
    longest(rows, "candidates")["labels"]["click_weight"][0] = -1.0


def outside(rows: list[Row]) -> None:
    row = longest(rows, "candidates")
    row["candidates"]["ts"][-1] = row["window_end"]


def twice(rows: list[Row]) -> None:
    rows.append(rows[0])


def too_long(rows: list[Row]) -> None:
    row = longest(rows, "history")
    for name, values in row["history"].items():
        row["history"][name] = values * 7


BREAKS: list[tuple[Callable[[list[Row]], None], str]] = [
    (late_history, "history_before_window"),
    (realtime_backwards, "realtime_in_window"),
    (sees_itself, "realtime_sees"),
    (sees_the_future, "candidate_sees"),
    (ragged, "lengths"),
    (unlabelled, "labels"),
    (negative_weight, "labels"),
    (outside, "candidates_in_window"),
    (twice, "window"),
    (too_long, "max_length"),
]


@pytest.mark.parametrize(("damage", "invariant"), BREAKS, ids=[damage.__name__ for damage, _ in BREAKS])
def test_each_broken_invariant_is_counted(
    sound: list[Row], damage: Callable[[list[Row]], None], invariant: str
) -> None:
    schema = full_schema()
    copy = pa.Table.from_pylist(sound, arrow_schema(schema)).to_pylist()
    assert counts(copy) == dict.fromkeys(INVARIANTS, 0)
    damage(copy)
    assert counts(copy)[invariant] > 0


def counts(rows: list[Row]) -> dict[str, int]:
    schema = full_schema()
    return dict(violations(pa.Table.from_pylist(rows, arrow_schema(schema)), schema, 0).broken)


def checks(**broken: int) -> list[InvariantReport]:
    return [InvariantReport(0, 5, dict.fromkeys(INVARIANTS, 0) | found) for found in ({}, broken)]


def test_the_gate_names_what_is_broken_and_by_how_much() -> None:
    gate(checks(), [QuarantineRate("clicks", "2026-01-01", 0.01, 0.05, {"late": 1})])
    with pytest.raises(
        UserError, match=r"every history event happened before its window \(3 broken\); nothing was published"
    ):
        gate(checks(history_before_window=3), [])
    with pytest.raises(
        UserError, match=r"'clicks': 20.0% of 2026-01-01's rows are quarantined.*5.0% \(30 item is null, 2 late\)"
    ):
        rates = [("clicks", "2026-01-01", 0.2, 0.05), ("orders", "2026-01-01", 0.0, 0.05)]
        gate(checks(), [QuarantineRate(*rate, {"late": 2, "item is null": 30}) for rate in rates])


def test_too_many_quarantined_rows_stop_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genrank.pipelines.quality.gate", gate)
    days = write_world(tmp_path / "data", seed=52, days=1, per_day=100)
    base = full_schema()
    strict = base.replace(sources=tuple(s.replace(max_quarantine_rate=0.001) for s in base.sources))
    with pytest.raises(UserError, match="rows are quarantined"):
        build(BuildConfig(strict, tmp_path / "data", tmp_path / "out", days[0], days[0]))
    assert not list((tmp_path / "out" / "samples").glob("dt=*/manifest.json"))
    rows = [r for f in (tmp_path / "out" / "quarantine").rglob("*.parquet") for r in pq.read_table(f).to_pylist()]
    assert rows
    assert all(row["reason"] for row in rows)

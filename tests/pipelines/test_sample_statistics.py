"""Statistics of the samples, and their drift."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from genrank.pipelines import leaf_summaries
from genrank.pipelines.build import BuildConfig, build
from genrank.pipelines.leaf_summaries import summarize
from genrank.pipelines.messages import LeafSummary
from genrank.pipelines.presentation.sample_statistics import _distinct_text, print_statistics, write_statistics
from genrank.pipelines.sample_statistics import Summary, merge, path_of, read, statistics
from genrank.schemas import Candidates, EventLog, Label, Numeric, Schema, TimeGap, UserError
from genrank.schemas.derive.sample_schema import arrow_schema
from genrank.schemas.features import Feature
from genrank.schemas.ids import MISSING_ID, hash_strings
from tests.pipelines.worlds import DAY, full_schema, read_samples, write_world

pytestmark = pytest.mark.usefixtures("plain_gate")


def number(values: list[float], missing: int = 0) -> Summary:
    summary = Summary("x", "number")
    part = LeafSummary(
        0,
        "x",
        "number",
        count=len(values) + missing,
        missing=missing,
        total=sum(values),
        low=min(values),
        high=max(values),
        values=values,
        weights=[1.0] * len(values),
    )
    summary.add(part)
    return summary


def small_schema(feature: Feature) -> Schema:
    columns = {
        "user_id": "int64",
        "item_id": "int64",
        "ts": "int64",
        "born": "timestamp",
        "length": "float32",
        "clicked": "bool",
    }
    exposures = EventLog(name="exposures", path="{dt}", columns=columns, post_exposure=("clicked",))  # type: ignore[arg-type]
    return Schema(
        name="small",
        sources=(exposures,),
        candidates=Candidates(features=(feature,)),
        labels=(Label(name="click", column="clicked"),),
    )


def small_row(day: int = 0, **features: list[Any]) -> dict[str, Any]:
    """A sample of two candidates, both at the day's start."""
    start = day * DAY
    candidates = {"ts": [start, start], "request": [1, 1], "item": [1, 2], **features}
    own = {"sample_id": "1", "user_id": 1, "window_start": start, "window_end": start + DAY}
    return own | {"candidates": candidates, "labels": {"click": [0, 1], "click_weight": [1.0, 1.0]}}


def test_statistics_say_what_the_samples_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    days = write_world(tmp_path / "data", seed=31, users=20, per_day=150)
    build(BuildConfig(full_schema(), tmp_path / "data", tmp_path / "out", days[0], days[-1]))
    found = statistics(tmp_path / "out")
    assert [day.dt for day in found] == days
    samples = read_samples(tmp_path / "out", days[1])
    of = found[1].summaries
    prices = [p for s in samples for p in s["candidates"]["price"]]
    known = [p for p in prices if not math.isnan(p)]
    assert of["candidates.price"].count == len(prices)
    assert of["candidates.price"].mean == pytest.approx(np.mean(known))
    assert of["candidates.price"].quantiles([0.5])[0] == pytest.approx(np.median(known), rel=0.02)
    categories = [c for s in samples for c in s["candidates"]["category"]]
    assert of["candidates.category"].missing == categories.count(MISSING_ID)
    assert of["candidates.category"].distinct == len(set(categories) - {MISSING_ID})
    lengths = [len(s["history"]["ts"]) for s in samples]
    assert of["len(history)"].mean == pytest.approx(np.mean(lengths))
    clicks = [(c, w) for s in samples for c, w in zip(s["labels"]["click"], s["labels"]["click_weight"], strict=True)]
    assert of["labels.click"].mean == pytest.approx(sum(c * w for c, w in clicks) / sum(w for _, w in clicks))
    assert not found[0].psi
    assert all(psi >= 0 for psi in found[2].psi.values())
    assert found[2].against == (days[0], days[1])
    print_statistics(found)
    assert f"drift against {days[0]} .. {days[2]} (3 days)" in (printed := capsys.readouterr().out)
    assert "candidates.price" in printed
    console = Console(width=80, file=io.StringIO())
    print_statistics(found, console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    write_statistics(found, tmp_path / "stats.html")
    assert all(dt in (tmp_path / "stats.html").read_text() for dt in days)
    with pytest.raises(UserError, match="2020-01-01"):
        statistics(tmp_path / "out", ["2020-01-01"])


def summarized(schema: Schema, rows: list[dict[str, Any]]) -> list[LeafSummary]:
    return list(summarize(pa.Table.from_pylist(rows, arrow_schema(schema)), schema, 0))


def test_a_feature_called_length_is_not_the_lists_length(tmp_path: Path) -> None:
    schema = small_schema(Numeric(name="length"))
    of = merge(summarized(schema, [small_row(length=[700.0, 900.0])]))
    assert (of["candidates.length"].count, of["candidates.length"].mean) == (2, 800)
    assert (of["len(candidates)"].count, of["len(candidates)"].mean) == (1, 2)


def test_a_time_gap_is_summarized_as_the_gap() -> None:
    """So that its drift is the gap's: epoch times only grow."""
    schema = small_schema(TimeGap(name="age", column="born"))
    days = [
        merge(summarized(schema, [small_row(day, age=[day * DAY - gap for gap in (5000, 9000)]) for _ in range(300)]))
        for day in (20_000, 20_001)
    ]
    assert "candidates.age" not in days[0]
    assert days[1]["gap(candidates.age)"].mean == 7
    assert days[1]["gap(candidates.age)"].psi(days[0]["gap(candidates.age)"]) == pytest.approx(0)
    missing = merge(summarized(schema, [small_row(age=[MISSING_ID, -3000])]))["gap(candidates.age)"]
    assert (missing.missing, missing.mean) == (1, 3)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 700), min_size=1, max_size=6), st.integers(0, 10**6))
def test_the_number_of_different_ids_is_the_days_not_the_largest_files(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    files = [rng.integers(0, 800, size) for size in sizes]
    summary = Summary("x", "id")
    for ids in files:
        summary.add(leaf_summaries._id(0, "x", ids))
    assert summary.distinct == len(np.unique(np.concatenate(files)))
    assert summary.all_counted


def test_many_different_ids_are_estimated_and_of_a_part_at_least() -> None:
    summary = Summary("x", "id")
    for part in range(4):
        summary.add(leaf_summaries._id(0, "x", np.arange(part * 20_000, part * 20_000 + 40_000)))
    assert summary.distinct == pytest.approx(100_000, rel=0.12)
    summary.add(leaf_summaries._id(0, "x", np.arange(leaf_summaries.COUNTED + 2)))
    assert not summary.all_counted
    assert "≥" in _distinct_text(summary)


def test_statistics_of_before_are_read(tmp_path: Path) -> None:
    old = LeafSummary.table(
        [LeafSummary(0, "history.length", "number", 1, 0), LeafSummary(0, "x.item", "id", 9, 0, distinct=7)]
    )
    path_of(tmp_path, "2026-01-05").parent.mkdir()
    pq.write_table(old.drop_columns(["sketch", "counted"]), path_of(tmp_path, "2026-01-05"))
    of = merge(read(tmp_path, "2026-01-05"))
    assert "len(history)" in of
    assert (of["x.item"].distinct, of["x.item"].all_counted) == (7, False)


def test_join_rates_count_rows_that_found_a_partner(tmp_path: Path) -> None:
    data, out, schema = tmp_path / "data", tmp_path / "out", full_schema()
    days = write_world(data, seed=32, users=20, per_day=150)
    build(BuildConfig(schema, data, out, days[0], days[-1]))

    def known(snapshot: str, column: str, at: int, max_age: int) -> set[object]:
        """Keys of the newest snapshot at or before a day that isn't too old."""
        for dt in reversed(days[max(0, at - max_age) : at + 1]):
            if (data / snapshot / f"dt={dt}").is_dir():
                return set(pq.read_table(data / snapshot / f"dt={dt}").column(column).to_pylist())
        return set()

    def rate(summary: Summary) -> tuple[int, int]:
        assert summary.kind == "join"
        return summary.count - summary.missing, summary.count

    missed = 0
    for at, day in enumerate(statistics(out)):
        samples = read_samples(out, day.dt)
        items = pa.array([str(item) for item in known("items", "item_id", at, 1)], pa.string())
        hashes = set(hash_strings(items).to_pylist())
        shown = [item in hashes for sample in samples for item in sample["candidates"]["item"]]
        assert rate(day.summaries["exposures → items"]) == (sum(shown), len(shown))
        users = {sample["user_id"] for sample in samples}
        assert rate(day.summaries["user → users"]) == (len(users & known("users", "user_id", at, 3)), len(users))
        of_item = (
            "item_long",
            "pair_recency",
            "item_dwell",
            "item_dwell_sum",
            "item_users",
            "item_ctr",
            "item_morning",
        )
        empty = {"item_long": np.float32(0.3), "item_ctr": np.float32(0.1), "pair_recency": None, "item_dwell": None}
        answered = [
            any(
                not (math.isnan(v) if empty.get(f, 0) is None else v == empty.get(f, 0))
                for f, v in zip(of_item, row, strict=True)
            )
            for sample in samples
            for row in zip(*(sample["candidates"][f] for f in of_item), strict=True)
        ]
        assert rate(day.summaries["candidates → clicks, exposures by item_id"]) == (sum(answered), len(answered))
        missed += len(shown) - sum(shown) + len(answered) - sum(answered)
    assert missed, "every join found its partner: the test saw nothing"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.integers(0, 20))
def test_psi_of_itself_is_zero(values: list[float], missing: int) -> None:
    assert number(values, missing).psi(number(values, missing)) == pytest.approx(0, abs=1e-12)


def test_psi_sees_a_shift_of_values_and_of_missing_ones() -> None:
    steady, rng = np.random.default_rng(0).normal(size=2000), np.random.default_rng(1)
    before = number(steady.tolist())
    assert number(rng.normal(size=2000).tolist()).psi(before) < 0.1
    assert number((rng.normal(size=2000) + 1).tolist()).psi(before) > 0.25
    assert number(steady.tolist(), missing=1000).psi(before) > 0.25

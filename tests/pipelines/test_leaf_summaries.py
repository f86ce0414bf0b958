"""Summaries of a file of samples against what its rows, read one by one, hold."""

from __future__ import annotations

import math
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrank.pipelines import leaf_summaries
from genrank.pipelines.leaf_summaries import gap_of, length_of, summarize
from genrank.pipelines.messages import LeafSummary
from genrank.schemas.derive.sample_schema import leaves
from genrank.schemas.ids import MISSING_ID

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tokenization"))
from random_samples import demo_schema, random_table

DAY = 20_000
SCHEMA = demo_schema()


def summaries(users: int, seed: int) -> tuple[list[dict], dict[str, LeafSummary]]:
    table = random_table(SCHEMA, "2024-10-04", users, seed)
    found = list(summarize(table, SCHEMA, DAY))
    assert len({one.leaf for one in found}) == len(found), "a leaf each"
    assert all(one.day == DAY for one in found)
    return table.to_pylist(), {one.leaf: one for one in found}


def values_of(rows: list[dict], group: str, name: str) -> list:
    """A leaf's values over all rows, with each one's own time (the user's: the window's start)."""
    if group == "user":
        return [(row[group][name], row["window_start"]) for row in rows]
    return [pair for row in rows for pair in zip(row[group][name], row[group]["ts"], strict=True)]


@settings(max_examples=8)
@given(users=st.integers(1, 30), seed=st.integers(0, 10**6))
def test_every_leaf_is_summarized_as_its_rows_are(users: int, seed: int) -> None:
    rows, found = summaries(users, seed)
    for leaf in leaves(SCHEMA):
        name = f"{leaf.group}.{leaf.name}"
        values = values_of(rows, leaf.group, leaf.name)
        if leaf.stored == "ids":
            is_numbers(found[length_of(name)], [float(len(ids)) for ids, _ in values])
            is_ids(found[name], [one for ids, _ in values for one in ids])
        elif leaf.stored == "id":
            is_ids(found[name], [one for one, _ in values])
        elif leaf.stored == "time":
            is_numbers(found[gap_of(name)], [math.nan if at == MISSING_ID else (own - at) / 1000 for at, own in values])
        else:
            is_numbers(found[name], [value for value, _ in values])
    for group in ("history", "realtime", "candidates"):
        is_numbers(found[length_of(group)], [float(len(row[group]["ts"])) for row in rows])
    for task in ("click", "watch"):
        pairs = [
            pair for row in rows for pair in zip(row["labels"][task], row["labels"][f"{task}_weight"], strict=True)
        ]
        is_numbers(found[f"labels.{task}"], [float(value) if weight > 0 else math.nan for value, weight in pairs])
    joined = found["candidates → clicks by user_id"]
    counts = [value for value, _ in values_of(rows, "candidates", "clicks_1h")]
    assert (joined.kind, joined.count, joined.missing) == ("join", len(counts), sum(value == 0 for value in counts))


def is_numbers(found: LeafSummary, values: list[float]) -> None:
    there = [value for value in values if not math.isnan(value)]
    assert (found.kind, found.count, found.missing) == ("number", len(values), len(values) - len(there))
    assert found.total == pytest.approx(math.fsum(there), rel=1e-9)
    assert (found.low, found.high) == ((min(there), max(there)) if there else (None, None))
    assert set(found.values) <= set(there) and len(found.values) <= leaf_summaries.SAMPLE
    assert math.fsum(found.weights) == pytest.approx(len(there)), "those kept stand for all"


def is_ids(found: LeafSummary, values: list[int]) -> None:
    counts = Counter(values)
    missing = counts.pop(MISSING_ID, 0)
    top = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[: leaf_summaries.TOP]
    assert (found.kind, found.count, found.missing, found.distinct) == ("id", len(values), missing, len(counts))
    assert (found.ids, found.id_counts) == ([one for one, _ in top], [float(count) for _, count in top])
    assert len(found.sketch) == min(len(counts), leaf_summaries.SKETCH) and found.sketch == sorted(found.sketch)


def test_long_leaves_keep_evenly_spread_numbers_and_the_smallest_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = summaries(30, 1)[1]
    monkeypatch.setattr(leaf_summaries, "SAMPLE", 7)
    monkeypatch.setattr(leaf_summaries, "SKETCH", 5)
    monkeypatch.setattr(leaf_summaries, "COUNTED", 20)
    few = summaries(30, 1)[1]
    prices, all_prices = few["candidates.price"], whole["candidates.price"]
    assert 4 <= len(prices.values) <= 7 and math.fsum(prices.weights) == pytest.approx(math.fsum(all_prices.weights))
    assert (prices.count, prices.total, prices.high) == (all_prices.count, all_prices.total, all_prices.high)
    items = few["candidates.item_id"]
    assert items.counted <= 20 < items.count and len(items.sketch) == 5
    assert math.fsum(items.id_counts) == pytest.approx(items.count - items.missing, rel=0.5)


def test_no_samples_no_summaries() -> None:
    assert not list(summarize(random_table(SCHEMA, "2024-10-04", 1).slice(0, 0), SCHEMA, DAY))

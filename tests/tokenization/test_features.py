"""Rows and numbers of every feature kind equal what a row-by-row reading of the declaration gives."""

from __future__ import annotations

import datetime as dt
import itertools
import math
from bisect import bisect_right
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_samples import BOUNDARIES, demo_schema, random_table, write_random_samples

from genrank.schemas.errors import UserError
from genrank.schemas.ids import MISSING_ID, hash_string
from genrank.schemas.local_days import LocalDays
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.feature_kinds.times import running_max, time_part
from genrank.tokenization.features import GroupEncoder, GroupInputs
from genrank.tokenization.hashing import combine_ids, splitmix64
from genrank.tokenization.local_time import LocalTime
from genrank.tokenization.plan import make_plan
from genrank.tokenization.quantiles import fit_boundaries
from genrank.tokenization.reader import SampleReader
from genrank.tokenization.transforms.autodis import AutoDisInputs

DAY = "2026-01-01"
SCHEMA = demo_schema(utc_offset="+05:30")
PLAN = make_plan(SCHEMA)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    root = write_random_samples(tmp_path_factory.mktemp("samples"), SCHEMA, [DAY])
    return next(iter(SampleReader(root, SCHEMA, [DAY], shuffle=False, token_budget=10**9)))


@pytest.fixture(scope="module")
def stored() -> list[dict[str, Any]]:
    return random_table(SCHEMA, DAY, 40).to_pylist()


def rows_of(batch: Batch, group: str, feature: str) -> list[Any]:
    """Logical rows, per row of the group."""
    rows, lists = GroupEncoder(PLAN, group, BOUNDARIES)(batch)
    lookups = PLAN.lookups_of(group)
    lookup = next(each for each in lookups if each.feature == feature)
    if lookup.pooling:
        ragged = lists[feature]
        values = (ragged.values - lookup.start).tolist()
        offsets = ragged.offsets.tolist()
        return [values[a:b] for a, b in itertools.pairwise(offsets)]
    at = [each for each in lookups if not each.pooling].index(lookup)
    return (rows[at] - lookup.start).tolist()  # type: ignore[no-any-return]


def numbers_of(batch: Batch, group: str, feature: str) -> list[tuple[float, float]]:
    """(transformed value, missing flag), per row of the group."""
    inputs, encoder = GroupInputs(PLAN, group), GroupEncoder(PLAN, group, BOUNDARIES)
    at = [name for name, _ in inputs.widths].index(feature)
    (columns,) = inputs(inputs.prepare(encoder, batch))
    return [tuple(pair) for pair in columns[:, 2 * at : 2 * at + 2].tolist()]


def events(stored: list[dict[str, Any]], group: str, leaf: str) -> list[Any]:
    return [value for row in stored for value in row[group][leaf]]


def local(ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC) + dt.timedelta(hours=5, minutes=30)


def hashed(value: int, size: int) -> int:
    if value == MISSING_ID:
        return 0
    return 2 + (mix_int(value) & (2**63 - 1)) % size


def mix_int(value: int) -> int:
    """splitmix64's finaliser in Python's unbounded integers, as signed."""
    x = (value + 0x9E3779B97F4A7C15) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    x ^= x >> 31
    return x - 2**64 if x >= 2**63 else x


def bucket(value: float, boundaries: list[float]) -> int:
    return 0 if math.isnan(value) else 2 + bisect_right(boundaries, value)


def signed_log(value: float) -> float:
    return math.copysign(math.log1p(abs(value)), value)


# ---------------------------------------------------------------------- ids


def test_enumerated_strings(batch: Batch, stored: list[dict[str, Any]]) -> None:
    known = {hash_string(v): 2 + i for i, v in enumerate(("oslo", "rome", "kyoto"))} | {MISSING_ID: 0}
    assert rows_of(batch, "user", "city") == [known.get(row["user"]["city"], 1) for row in stored]


def test_multi_valued_identity(batch: Batch, stored: list[dict[str, Any]]) -> None:
    def row(value: int) -> int:
        return 0 if value == MISSING_ID else 2 + value if 0 <= value < 50 else 1

    assert rows_of(batch, "user", "tags") == [[row(v) for v in r["user"]["tags"]] for r in stored]


@pytest.mark.parametrize("group", ["history", "realtime", "candidates"])
def test_hashed(batch: Batch, stored: list[dict[str, Any]], group: str) -> None:
    assert rows_of(batch, group, "item_id") == [hashed(v, 997) for v in events(stored, group, "item_id")]


def test_last_of_an_id(batch: Batch, stored: list[dict[str, Any]]) -> None:
    assert rows_of(batch, "candidates", "last_item") == [
        hashed(v, 997) for v in events(stored, "candidates", "last_item")
    ]


def test_event_types(batch: Batch, stored: list[dict[str, Any]]) -> None:
    assert rows_of(batch, "history", "type") == [2 + v for v in events(stored, "history", "type")]


def test_crossed_with_the_user(batch: Batch, stored: list[dict[str, Any]]) -> None:
    wanted = []
    for row in stored:
        for item in row["candidates"]["item_id"]:
            city = row["user"]["city"]
            both_missing = city == item == MISSING_ID
            value = mix_int(mix_int(mix_int(city)) ^ mix_int(item))
            wanted.append(0 if both_missing else hashed(value, 101))
    assert rows_of(batch, "candidates", "city_item") == wanted


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=50))
def test_splitmix64(values: list[int]) -> None:
    assert splitmix64(torch.tensor(values)).tolist() == [mix_int(v) for v in values]


def test_cross_depends_on_the_order() -> None:
    a, b = torch.tensor([1, 2, MISSING_ID]), torch.tensor([2, 1, MISSING_ID])
    assert combine_ids([a, b])[0] != combine_ids([b, a])[0]
    assert combine_ids([a, b])[0] == combine_ids([b, a])[1]
    assert combine_ids([a, b])[2] == MISSING_ID


# ---------------------------------------------------------------------- numbers


def test_fixed_buckets(batch: Batch, stored: list[dict[str, Any]]) -> None:
    assert rows_of(batch, "user", "age") == [bucket(r["user"]["age"], [18.0, 30.0, 45.0, 60.0]) for r in stored]


def test_quantile_buckets(batch: Batch, stored: list[dict[str, Any]]) -> None:
    wanted = [bucket(v, BOUNDARIES["candidates.price"]) for v in events(stored, "candidates", "price")]
    assert rows_of(batch, "candidates", "price") == wanted


@pytest.mark.parametrize("feature", ["clicks_1h", "ctr", "cents"])
def test_dense_and_log_numbers(batch: Batch, stored: list[dict[str, Any]], feature: str) -> None:
    transform = {"clicks_1h": signed_log, "ctr": lambda v: v, "cents": lambda v: (v - 50) * 0.01}[feature]
    for got, raw in zip(numbers_of(batch, "candidates", feature), events(stored, "candidates", feature), strict=True):
        assert got == (0.0, 1.0) if math.isnan(raw) else got == (pytest.approx(transform(raw), rel=1e-5, abs=1e-6), 0.0)


def test_autodis_reads_the_log(batch: Batch, stored: list[dict[str, Any]]) -> None:
    inputs = GroupInputs(PLAN, "history")
    numbers = inputs.prepare(GroupEncoder(PLAN, "history", BOUNDARIES), batch)
    soft = numbers[list(inputs.families).index(AutoDisInputs.STATE_NAME)][0]
    wanted = torch.tensor([signed_log(v) for v in events(stored, "history", "watched")])
    torch.testing.assert_close(soft, wanted.float(), equal_nan=True)


# ---------------------------------------------------------------------- time


def test_time_parts(batch: Batch, stored: list[dict[str, Any]]) -> None:
    assert rows_of(batch, "user", "weekday") == [2 + local(row["window_start"]).weekday() for row in stored]
    hours = [2 + local(ts).weekday() * 24 + local(ts).hour for ts in events(stored, "candidates", "ts")]
    assert rows_of(batch, "candidates", "hour") == hours


@given(st.lists(st.integers(0, 4 * 10**12), min_size=1, max_size=20))
def test_time_parts_are_what_the_clocks_of_a_zone_show(times: list[int]) -> None:
    when = [dt.datetime.fromtimestamp(t // 1000, ZoneInfo("Europe/Berlin")) for t in times]
    local = LocalTime(LocalDays("Europe/Berlin"))(torch.tensor(times))
    assert time_part(local, "hour_of_week").tolist() == [w.weekday() * 24 + w.hour for w in when]


@given(st.lists(st.integers(-(10**13), 10**13), min_size=1, max_size=20))
def test_calendar(times: list[int]) -> None:
    when = [dt.datetime(1970, 1, 1) + dt.timedelta(milliseconds=t) for t in times]
    ms = torch.tensor(times)
    assert time_part(ms, "hour").tolist() == [w.hour for w in when]
    assert time_part(ms, "weekday").tolist() == [w.weekday() for w in when]
    assert time_part(ms, "hour_of_week").tolist() == [w.weekday() * 24 + w.hour for w in when]
    assert time_part(ms, "day_of_month").tolist() == [w.day - 1 for w in when]
    assert time_part(ms, "month").tolist() == [w.month - 1 for w in when]


def test_gap_to_the_previous_event(batch: Batch, stored: list[dict[str, Any]]) -> None:
    gaps = [
        math.nan if i == 0 else float(np.float32((ts - row["history"]["ts"][i - 1]) / 1000))
        for row in stored
        for i, ts in enumerate(row["history"]["ts"])
    ]
    assert rows_of(batch, "history", "gap") == [bucket(gap, [1.0, 60.0, 3600.0, 86400.0]) for gap in gaps]


def test_gap_since_a_moment(batch: Batch, stored: list[dict[str, Any]]) -> None:
    for (value, missing), row in zip(numbers_of(batch, "user", "tenure"), stored, strict=True):
        since = row["user"]["tenure"]
        if since == MISSING_ID:
            assert (value, missing) == (0.0, 1.0)
        else:
            assert value == pytest.approx(math.log1p((row["window_start"] - since) / 1000), rel=1e-5) and not missing


def test_gap_since_the_newest_visible_event(batch: Batch, stored: list[dict[str, Any]]) -> None:
    got = iter(numbers_of(batch, "candidates", "since_seen"))
    for row in stored:
        for i, ts in enumerate(row["candidates"]["ts"]):
            seen = row["history"]["ts"] + row["realtime"]["ts"][: row["mask"]["candidate_sees"][i]]
            value, missing = next(got)
            if seen:
                assert value == pytest.approx(signed_log((ts - max(seen)) / 1000), rel=1e-5) and not missing
            else:
                assert (value, missing) == (0.0, 1.0)


@given(st.lists(st.lists(st.integers(0, 2**42), max_size=5), max_size=5))
def test_running_max(segments: list[list[int]]) -> None:
    values = torch.tensor([v for segment in segments for v in segment], dtype=torch.int64)
    offsets = torch.tensor([0, *np.cumsum([len(x) for x in segments]).tolist()])
    wanted = [max(segment[: i + 1]) for segment in segments for i in range(len(segment))]
    assert running_max(values, offsets).tolist() == wanted


# ---------------------------------------------------------------------- quantiles


def test_fitted_boundaries_are_the_quantiles(tmp_path: Path) -> None:
    write_random_samples(tmp_path, SCHEMA, [DAY])
    prices = np.array(events(random_table(SCHEMA, DAY, 40).to_pylist(), "candidates", "price"))
    wanted = np.quantile(prices[~np.isnan(prices)], [0.25, 0.5, 0.75])
    fitted = fit_boundaries(tmp_path, SCHEMA, [DAY])
    np.testing.assert_allclose(fitted["candidates.price"], wanted, rtol=1e-6)


def test_quantiles_must_be_fitted() -> None:
    with pytest.raises(UserError, match=r"candidates.price has quantile buckets but no fitted boundaries"):
        Embeddings(PLAN)

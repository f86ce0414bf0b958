"""Numbers computed when samples are read: each beside a slow reference, and the same whatever a training sample is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_samples import demo_schema, publish, random_table

import genrank.schemas as s
from genrank.schemas.ids import MISSING_ID
from genrank.tokenization import peers as peers_module
from genrank.tokenization.feature_kinds.within_request import COMPARISONS
from genrank.tokenization.inspect_sample import load_sample
from genrank.tokenization.peers import Peers
from genrank.tokenization.quantiles import fit_boundaries
from genrank.tokenization.reader import SampleReader

DATES = ["2026-01-01", "2026-01-02"]
PLAIN = demo_schema()


def with_features(*features: s.Feature) -> s.Schema:
    candidates = PLAIN.candidates
    return PLAIN.model_copy(
        update={"candidates": candidates.model_copy(update={"features": (*candidates.features, *features)})}
    )


WHATS = tuple(COMPARISONS)
SCHEMA = with_features(
    s.RequestSize(name="size"),
    s.Arithmetic(name="clicks_per_price", op="ratio", of=("clicks_1h", "price")),
    s.Arithmetic(name="price_less_cents", op="difference", of=("price", "cents")),
    s.WithinRequest(name="ratio_rank", of="clicks_per_price", what="rank"),
    s.WithinRequest(name="age_share", of="age", what="share", transform=s.QuantileBuckets(buckets=4)),
    *(s.WithinRequest(name=f"price_{what}", of="price", what=what) for what in WHATS),
)

# ---------------------------------------------------------------------- slow references


def compared(own: float, values: list[float], what: str) -> float:
    """A candidate's number beside those compared with, its own among them."""
    known = [v for v in values if not np.isnan(v)]
    if np.isnan(own):
        return np.nan
    above, equal = sum(v > own for v in known), sum(v == own for v in known)
    if what == "rank":
        return above + (1 + equal) / 2
    if what == "fraction_rank":
        return 0.5 if len(known) == 1 else (len(known) - above - equal + (equal - 1) / 2) / (len(known) - 1)
    if what == "difference_to_mean":
        return own - sum(known) / len(known)
    if what == "difference_to_max":
        return own - max(known)
    total = sum(map(abs, known))
    return own / total if total else np.nan


def expected(rows: list[dict[str, Any]]) -> dict[tuple[int, int, int, int], dict[str, float]]:
    """(user, window, request, item and time) -> every number of SCHEMA, from the rows of one day."""
    found = {}
    for row in rows:
        day = [r["candidates"] for r in rows if r["user_id"] == row["user_id"]]
        everything = [{k: c[k][i] for k in c} for c in day for i in range(len(c["ts"]))]
        for each in everything:
            each["age"] = np.nan if each["age"] == MISSING_ID else (each["ts"] - each["age"]) / 1000
            price = each["price"]
            each["clicks_per_price"] = each["clicks_1h"] / price if price else np.nan
            each["price_less_cents"] = price - each["cents"]
        for each in everything:
            among = [o for o in everything if o["request"] == each["request"] and o["ts"] <= each["ts"]]
            numbers = {"size": len(among), "clicks_per_price": each["clicks_per_price"]}
            numbers["price_less_cents"] = each["price_less_cents"]
            for name, of, what in (
                ("ratio_rank", "clicks_per_price", "rank"),
                ("age_share", "age", "share"),
                *((f"price_{what}", "price", what) for what in WHATS),
            ):
                numbers[name] = compared(each[of], [o[of] for o in among], what)
            found[(row["user_id"], each["request"], each["item"], each["ts"])] = numbers
    return found


# ---------------------------------------------------------------------- comparisons

VALUES = st.sampled_from([float("nan"), 0.0, 1.0, 2.0, -3.0, 0.25])


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 2), VALUES), max_size=40),
    st.sampled_from(WHATS),
    st.integers(1, 9),
)
def test_comparisons_are_those_of_the_reference(
    candidates: list[tuple[int, int, int, float]], what: Any, at_once: int
) -> None:
    day, request, ts = (np.array([c[i] for c in candidates], np.int64) for i in range(3))
    values = np.array([c[3] for c in candidates])
    peers = Peers.of(day, request, ts)
    whole = peers.compare(values, COMPARISONS[what])
    slow = [
        compared(v, [o for e, q, u, o in candidates if (e, q) == (d, r) and u <= t], what) for d, r, t, v in candidates
    ]
    np.testing.assert_allclose(whole, slow, rtol=1e-12, atol=1e-12)
    sizes = [sum((e, q) == (d, r) and u <= t for e, q, u, _ in candidates) for d, r, t, _ in candidates]
    np.testing.assert_array_equal(peers.sizes, sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers_module, "COMPARED", at_once)
        np.testing.assert_array_equal(peers.compare(values, COMPARISONS[what]), whole)


# ---------------------------------------------------------------------- reading


def divided(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A day's row as two, as the builder divides one with too many candidates."""
    half = len(row["candidates"]["ts"]) // 2
    if not half or row["user_id"] % 2:
        return [row]
    parts = [copy.deepcopy(row), copy.deepcopy(row)]
    for at, (part, cut) in enumerate(zip(parts, (slice(0, half), slice(half, None)), strict=True)):
        part["sample_id"] = row["sample_id"][:-1] + str(at)
        for group, names in (("candidates", None), ("labels", None), ("mask", ["candidate_sees"])):
            for name in names or part[group]:
                part[group][name] = part[group][name][cut]
    return parts


def one_time_a_request(row: dict[str, Any]) -> dict[str, Any]:
    """Of half of the users: as a log of what was ranked at once has it."""
    candidates = row["candidates"]
    if row["user_id"] % 4 < 2:
        first: dict[int, int] = {}
        candidates["ts"] = [
            first.setdefault(r, t) for r, t in zip(candidates["request"], candidates["ts"], strict=True)
        ]
    return row


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[dict[str, Any]]]]:
    """Samples of PLAIN, published; and their rows by day."""
    root, rows = tmp_path_factory.mktemp("samples"), []
    for dt in DATES:
        table = random_table(PLAIN, dt, 24)
        own = [part for row in table.to_pylist() for part in divided(one_time_a_request(row))]
        rows.append(own)
        publish(root, PLAIN, dt, pa.Table.from_pylist(own, table.schema), files=1, row_group=len(own))
    return root, rows


NAMES = [f.name for f in SCHEMA.candidates.features if f.name not in {p.name for p in PLAIN.candidates.features}]


def read(root: Path, **arguments: Any) -> dict[tuple[int, ...], dict[str, float]]:
    found = {}
    for batch in SampleReader(root, SCHEMA, DATES, prefetch=0, token_budget=150, **arguments):
        owner = np.repeat(batch.user.numpy(), batch.candidates.lengths.numpy())
        keys = zip(owner, batch.request.numpy(), batch.item.numpy(), batch.candidates.ts.numpy(), strict=True)
        values = np.stack([batch.candidates.features[name].numpy() for name in NAMES], 1)  # type: ignore[union-attr]
        found |= {
            tuple(map(int, key)): dict(zip(NAMES, row.tolist(), strict=True))
            for key, row in zip(keys, values, strict=True)
        }
    return found


@pytest.mark.parametrize("view", ["user_day", "request", "session", "exposure"])
def test_every_view_reads_the_reference_s_numbers(days: Any, view: Any) -> None:
    root, rows = days
    slow = {key: numbers for day in rows for key, numbers in expected(day).items()}
    for shuffle in (False, True):
        found = read(root, view=view, shuffle=shuffle, shuffle_buffer=1)
        assert set(found) == set(slow)
        for key, numbers in slow.items():
            for name in NAMES:
                assert found[key][name] == pytest.approx(numbers[name], rel=1e-5, abs=1e-5, nan_ok=True), (key, name)


def test_what_is_compared_does_not_depend_on_what_is_read_together(days: Any) -> None:
    root, _ = days
    assert str(read(root, view="user_day", shuffle_buffer=1)) != ""
    one, many = (read(root, view="user_day", shuffle=False, shuffle_buffer=buffer) for buffer in (1, 10_000))
    assert repr(one) == repr(many)


def test_samples_need_no_rebuild_and_the_model_differs() -> None:
    assert SCHEMA.samples_fingerprint == PLAIN.samples_fingerprint
    assert SCHEMA.model_fingerprint != PLAIN.model_fingerprint != SCHEMA.fingerprint
    other = with_features(s.WithinRequest(name="price_rank", of="price", what="share"))
    same = with_features(s.WithinRequest(name="price_rank", of="price", what="rank"))
    assert other.model_fingerprint != same.model_fingerprint
    assert s.from_json(s.to_json(SCHEMA)) == s.from_yaml(s.to_yaml(SCHEMA)) == SCHEMA


def test_buckets_are_fitted_on_what_is_read(days: Any) -> None:
    root, rows = days
    shares = [n["age_share"] for day in rows for n in expected(day).values() if not np.isnan(n["age_share"])]
    fitted = fit_boundaries(root, SCHEMA, DATES)["candidates.age_share"]
    np.testing.assert_allclose(fitted, np.quantile(shares, [0.25, 0.5, 0.75]), rtol=0.2)


def test_a_shown_sample_is_compared_with_all_of_its_day(days: Any) -> None:
    root, rows = days
    slow = expected(rows[0])
    second = next(row for row in rows[0] if row["sample_id"].endswith(":1"))
    candidates = load_sample(root, second["sample_id"], SCHEMA).batch.candidates
    sizes = candidates.features["size"].tolist()  # type: ignore[union-attr]
    own = second["candidates"]
    keys = zip(own["request"], own["item"], own["ts"], strict=True)
    assert sizes == [slow[(second["user_id"], *key)]["size"] for key in keys]

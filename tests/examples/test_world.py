"""The synthetic marketplace: its truth is true, its effects are there, and what was planted can be counted again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from genrank.examples.marketplace import world as world_module
from genrank.examples.marketplace.defects import KINDS, UNKNOWN_ITEM, Defects
from genrank.examples.marketplace.preferences import Catalogue, Population, Preferences, Traffic
from genrank.examples.marketplace.traffic import DAY_MS, Chunk
from genrank.examples.marketplace.world import EVENT_LOGS, SOURCES, generate, read_summary
from genrank.schemas.errors import UserError

USERS, DAYS = 1200, 5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "w"
    # Many defects, so that each kind has rows to count.
    defects = Defects(
        null_user=0.002, null_item=0.002, null_ts=0.002, negative_ts=0.002, absurd_ts=0.002, too_late=0.002
    )
    generate(out, users=USERS, days=DAYS, seed=5, defects=defects)
    return out


def read(world: Path, source: str) -> pd.DataFrame:
    """All days of a source, with the folder's day as `dt`."""
    days = sorted((world / source).iterdir())
    assert all((day / "_SUCCESS").exists() for day in days)
    return pd.concat(
        [
            pq.read_table(f, partitioning=None).to_pandas().assign(dt=d.name[3:])
            for d in days
            for f in sorted(d.glob("*.parquet"))
        ],
        ignore_index=True,
    )


def clean(frame: pd.DataFrame) -> pd.DataFrame:
    """What a pipeline keeps: usable rows, once."""
    columns = [c for c in frame.columns if c != "dt"]
    frame = frame.drop_duplicates(columns).dropna(
        subset=["user_id", "ts", *(["item_id"] if "item_id" in frame else [])]
    )
    frame = frame[(frame.ts > 0) & (frame.ts < 4e12)]
    return frame[frame.item_id < UNKNOWN_ITEM] if "item_id" in frame else frame


@pytest.fixture(scope="module")
def log(world: Path) -> pd.DataFrame:
    """Clean exposures with the column `click`, of people."""
    key = ["user_id", "item_id", "request_id"]
    exposures, clicks = clean(read(world, "exposures")), clean(read(world, "clicks"))
    log = exposures.merge(clicks[key].assign(click=1), on=key, how="left", validate="one_to_one").fillna({"click": 0})
    return log[~log.user_id.isin(read_summary(world)["bots"])]


def gauc(log: pd.DataFrame, score: pd.Series, label: str = "click") -> float:
    """AUC within each user (ties count half), averaged by exposures."""
    total = weight = 0.0
    rank = score.groupby(log.user_id).rank()
    frame = pd.DataFrame({"user": log.user_id, "y": log[label], "rank": rank})
    for _, rows in frame.groupby("user"):
        positives = rows.y.sum()
        negatives = len(rows) - positives
        if positives and negatives:
            auc = (rows["rank"][rows.y == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives)
            total, weight = total + auc * len(rows), weight + len(rows)
    return total / weight


# ---------------------------------------------------------------------- the truth


def test_the_oracle_is_far_above_popularity(log: pd.DataFrame) -> None:
    half = log.dt < "2026-01-04"
    clicks = log[half].groupby("item_id").click.agg(["sum", "count"])
    popularity = (clicks["sum"] + 1) / (clicks["count"] + 10)
    late = log[~half]
    oracle = gauc(late, late.click_probability)
    popular = gauc(late, late.item_id.map(popularity).fillna(0.1))
    assert 0.74 < oracle < 0.84
    assert 0.54 < popular < 0.66
    assert oracle - popular > 0.12
    assert 0.09 < log.click.mean() < 0.16


def test_click_probability_is_calibrated(log: pd.DataFrame) -> None:
    # Only exposures whose click is in the log: a click can arrive after the last day, or be too late for it.
    log = log[log.dt < "2026-01-05"]
    for _, rows in log.groupby(pd.qcut(log.click_probability, 10)):
        p = rows.click_probability.astype(float)
        sigma = np.sqrt((p * (1 - p)).sum())
        assert abs(rows.click.sum() - p.sum()) < 4.5 * sigma + 0.015 * p.sum()


def test_purchase_probability_is_calibrated_given_a_click(world: Path, log: pd.DataFrame) -> None:
    key = ["user_id", "item_id", "request_id"]
    bought = clean(read(world, "purchases"))[key].assign(bought=1)
    clicked = log[(log.click == 1) & (log.dt < "2026-01-04")].merge(bought, on=key, how="left").fillna({"bought": 0})
    p = clicked.purchase_probability.astype(float) / clicked.click_probability.astype(float)
    assert abs(clicked.bought.sum() - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum()) + 0.02 * p.sum()
    assert 0.03 < p.mean() < 0.15


def test_purchases_come_hours_later_within_a_day(world: Path, log: pd.DataFrame) -> None:
    key = ["user_id", "item_id", "request_id"]
    both = clean(read(world, "purchases")).merge(log, on=key, suffixes=("", "_exposure"))
    hours = (both.ts - both.ts_exposure) / 3_600_000
    assert 0 < hours.min() < hours.max() < 24
    assert 1 < hours.median() < 4


# ---------------------------------------------------------------------- the three effects, each against a world without it


def simulate(**changes: float) -> pd.DataFrame:
    """Exposures and clicks of 500 users and 5 days, clean, under changed preferences."""
    prefs = dataclasses.replace(Preferences(), **changes)  # type: ignore[arg-type]
    catalogue = Catalogue(1, prefs, 2000, 5)
    people = Population(1, prefs, Traffic(hot_rate=0, bot_rate=0), catalogue, 1, 500)
    chunk = Chunk(1, prefs, Traffic(), catalogue, people, 1, 0)
    days = []
    for day in range(5):
        events = chunk.day(day)
        exposures = pd.DataFrame(events.exposures)
        keys = ["user", "item", "user_request"]
        clicks = pd.DataFrame({k: events.clicks[k] for k in keys}).assign(click=1)
        days.append(exposures.merge(clicks, on=keys, how="left").fillna({"click": 0}).assign(day=day))
    log = pd.concat(days, ignore_index=True).sort_values("ts", kind="stable", ignore_index=True)
    return log.assign(category=catalogue.category[log["item"]], user_id=log["user"])


@pytest.fixture(scope="module")
def full() -> pd.DataFrame:
    return simulate()


def intent_lift(log: pd.DataFrame) -> float:
    """Click probability within 20 minutes of a click in the category over that later, within users and categories."""
    clicked = log.ts.where(log.click == 1)
    # The last click before the request: the exposures of one request share a time and don't see each other's clicks.
    per_request = clicked.groupby([log.user, log.category, log.ts]).max().groupby(level=[0, 1]).shift()
    last = per_request.groupby(level=[0, 1]).ffill().rename("last")
    log = log.join(last, on=["user", "category", "ts"])
    soon = (log.ts - log["last"]) < 20 * 60_000
    cells = log.groupby([log.user, log.category, soon]).click_probability.mean().unstack()
    return float((cells[True] / cells[False]).median())


def fatigue_loss(log: pd.DataFrame) -> float:
    """Click probability of an item's third and later unclicked showing over its first, within users and items."""
    shown = log.groupby(["user", "item"]).cumcount()
    never = log.groupby(["user", "item"]).click.transform("sum") == 0
    first = log[never & (shown == 0)].set_index(["user", "item"]).click_probability
    later = log[never & (shown >= 2)].groupby(["user", "item"]).click_probability.mean()
    return float((later / first.reindex(later.index)).median())


def taste_correlation(log: pd.DataFrame) -> float:
    """How well a user's clicks in a category on the first days predict the later click probability in it, within the day's other users."""
    early, late = log[log.day < 3], log[log.day >= 3]
    cells = early.groupby(["user", "category"]).click.agg(["sum", "count"])
    rate = (cells["sum"] + 1) / (cells["count"] + 10)
    truth = late.groupby(["user", "category"]).click_probability.mean()
    both = pd.concat([rate.rename("rate"), np.log(truth).rename("truth")], axis=1).dropna()
    both -= both.groupby(level="category").transform("mean")
    both -= both.groupby(level="user").transform("mean")
    return float(both.corr().iloc[0, 1])


def test_what_the_user_just_did_matters(full: pd.DataFrame) -> None:
    without = simulate(intent_category=0.0, intent_brand=0.0)
    assert intent_lift(full) > 1.5
    assert intent_lift(without) < 1.15
    assert gauc(full, full.click_probability) > gauc(without, without.click_probability) + 0.01


def without_statistics(log: pd.DataFrame) -> pd.Series:
    """The true logit less what depends on the user's past with the item itself (nightly halving left aside)."""
    prefs = Preferences()
    clicks_before = log.groupby(["user", "item"]).click.cumsum() - log.click
    shown = log.groupby([log.user, log["item"], clicks_before]).cumcount() - (clicks_before > 0)
    pairs = [log.user, log["item"]]
    clicked = log.day.where(log.click == 1).groupby(pairs).ffill().groupby(pairs).shift()
    logit = np.log(log.click_probability / (1 - log.click_probability))
    return logit + prefs.fatigue * np.log2(1 + shown.clip(0)) - prefs.repeat * (log.day - clicked <= prefs.repeat_days)


def test_user_item_statistics_matter(full: pd.DataFrame) -> None:
    assert fatigue_loss(full) < 0.65
    assert fatigue_loss(simulate(fatigue=0.0, repeat=0.0)) > 0.85
    assert gauc(full, full.click_probability) > gauc(full, without_statistics(full)) + 0.015


def test_the_long_history_matters(full: pd.DataFrame) -> None:
    nothing = dict.fromkeys(("category", "brand", "style", "personal"), 0.0)
    without = simulate(**nothing)
    assert taste_correlation(full) > 0.2
    assert gauc(full, full.click_probability) > gauc(without, without.click_probability) + 0.04
    calm = {"intent_category": 0.0, "intent_brand": 0.0, "repeat": 0.0, "fatigue": 0.0, "bought": 0.0}
    assert taste_correlation(simulate(**nothing, **calm)) < 0.08


# ---------------------------------------------------------------------- what was planted


def test_planted_rows_reconcile(world: Path) -> None:
    summary = read_summary(world)
    for source in EVENT_LOGS:
        frame = read(world, source)
        start = pd.to_datetime(frame.dt).map(pd.Timestamp.timestamp) * 1000
        copies = frame.duplicated([c for c in frame.columns if c != "dt"])
        delay = frame.arrival_ts - frame.ts
        sane = (frame.ts > 0) & (frame.ts < 4e12)
        found = {
            "null_user": frame.user_id.isna(),
            "null_ts": frame.ts.isna(),
            "negative_ts": frame.ts < 0,
            "absurd_ts": frame.ts > 4e12,
            "null_arrival": frame.arrival_ts.isna(),
            "duplicate": copies,
            "late": sane & (delay >= 3_600_000) & (delay < 3 * DAY_MS),
            "too_late": sane & (delay > 3 * DAY_MS),
        }
        if "item_id" in frame:
            found |= {"null_item": frame.item_id.isna(), "unknown_item": frame.item_id >= UNKNOWN_ITEM}
        for dt, counts in summary["planted"][source].items():
            today = frame.dt == dt
            assert today.sum() == sum(counts.values()) == summary["rows"][source][dt]
            for kind, rows in found.items():
                assert (rows & today).sum() == counts.get(kind, 0), (source, dt, kind)
        # A folder holds what arrived on its day.
        there = frame.arrival_ts.notna()
        assert ((frame.arrival_ts - start)[there] // DAY_MS == 0).all()
        if source in ("exposures", "clicks"):
            # No pass for want of rows.
            kinds = set().union(*summary["planted"][source].values())
            assert kinds == set(KINDS) - ({"unknown_item"} if source != "exposures" else set())


def test_what_remains_is_a_consistent_log(world: Path) -> None:
    key = ["user_id", "item_id", "request_id"]
    exposures, clicks = clean(read(world, "exposures")), clean(read(world, "clicks"))
    assert not exposures.duplicated(key).any()
    assert (exposures.groupby("request_id").user_id.nunique() == 1).all()
    joined = clicks.merge(exposures, on=key, suffixes=("", "_exposure"))
    # A click's exposure can be missing only if it arrived after the last day.
    assert len(joined) > 0.995 * len(clicks)
    delay = joined.ts - joined.ts_exposure
    assert delay.between(1, 21_000).all()


def test_hot_users_bots_and_cold_items(world: Path) -> None:
    summary = read_summary(world)
    exposures, clicks = clean(read(world, "exposures")), clean(read(world, "clicks"))
    shown = exposures.groupby("user_id").size().reindex(range(1, USERS + 1), fill_value=0)
    assert 60 < shown[summary["hot_users"]].mean() / shown.median() < 170
    clicked = clicks.groupby("user_id").size().reindex(shown.index, fill_value=0)
    rates = (clicked / shown)[summary["bots"]]
    assert ((rates < 0.001) | (rates > 0.9)).all() and rates.min() < 0.001 and rates.max() > 0.9
    assert (shown[summary["bots"]] > 100 * DAYS).all()
    assert clicks[clicks.user_id.isin(summary["bots"])].dwell_ms.max() < 20

    items = read(world, "items")
    first_seen = items.groupby("item_id").dt.min()
    for dt, (low, high) in summary["cold_items"].items():
        assert first_seen[low] == first_seen[high] == dt
        cold = exposures[exposures.item_id.between(low, high)]
        assert len(cold) and (cold.ts >= pd.Timestamp(dt).timestamp() * 1000).all()


def test_snapshots_change_and_state_the_start_of_the_day(world: Path) -> None:
    users, items, follows = read(world, "users"), read(world, "items"), clean(read(world, "follows"))
    moves = users.sort_values("dt").groupby("user_id")
    assert (moves.city.nunique() > 1).sum() > 0 and (moves.membership.nunique() > 1).sum() > 0
    assert (items.groupby("item_id").price.nunique() > 1).mean() > 0.2
    assert users.city.isna().mean() == pytest.approx(0.02, abs=0.005)
    # Replaying the follow log up to midnight gives the snapshot (users whose follows all arrived).
    dt = "2026-01-04"
    before = follows[follows.ts < pd.Timestamp(dt).timestamp() * 1000].sort_values("ts")
    state = before.groupby(["user_id", "brand"]).action.last().eq("follow")
    replayed = state[state].reset_index().groupby("user_id").brand.apply(set)
    on_record = users[users.dt == dt].set_index("user_id").followed_brands.map(set)
    on_record = on_record[on_record.map(len) > 0]
    assert len(on_record) > 100
    same = [on_record[user] == replayed.get(user, set()) for user in on_record.index]
    assert np.mean(same) > 0.97


# ---------------------------------------------------------------------- bytes and folders


def digest(world: Path, days: int | None = None) -> dict[str, str]:
    """SHA-256 of every Parquet file, of the first days only if asked."""
    files = {
        str(f.relative_to(world)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(world.glob("*/dt=*/*.parquet"))
    }
    keep = sorted({name.split("/")[1] for name in files})[:days]
    return {name: h for name, h in files.items() if name.split("/")[1] in keep}


CHUNKED = {"users": 2100, "items": 12_500, "seed": 3}
"""Two chunks of users: 2000 and 100."""


@pytest.fixture(scope="module")
def chunked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("chunked") / "w"
    generate(out, days=2, workers=2, **CHUNKED)
    return out


def test_bytes_depend_on_the_arguments_only(tmp_path: Path, chunked: Path) -> None:
    alone = tmp_path / "alone"
    generate(alone, days=2, workers=1, **CHUNKED)
    assert digest(alone) == digest(chunked)
    assert len(digest(alone)) == 2 * (2 * (len(SOURCES) - 1) + 1)
    generate(tmp_path / "short", users=200, days=1, seed=3)
    generate(tmp_path / "long", users=200, days=3, seed=3)
    generate(tmp_path / "other", users=200, days=1, seed=4)
    assert digest(tmp_path / "short") == digest(tmp_path / "long", days=1)
    assert (
        digest(tmp_path / "short")["exposures/dt=2026-01-01/part-00000.parquet"]
        not in digest(tmp_path / "other").values()
    )


def test_a_killed_run_is_resumed(tmp_path: Path, chunked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, written = tmp_path / "w", []
    real = world_module._write_chunk

    def dies(world: object, catalogue: object, staging: Path, chunk: int) -> Iterator[int]:
        written.append(chunk)
        for day in real(world, catalogue, staging, chunk):  # type: ignore[arg-type]
            if chunk == 1 and len(written) == 2:
                raise KeyboardInterrupt
            yield day

    monkeypatch.setattr(world_module, "_write_chunk", dies)
    with pytest.raises(KeyboardInterrupt):
        generate(out, days=2, workers=1, **CHUNKED)
    assert not out.exists()
    generate(out, days=2, workers=1, **CHUNKED)
    assert written == [0, 1, 1]
    assert digest(out) == digest(chunked)
    assert read_summary(out) == read_summary(chunked)
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_nothing_is_overwritten(tmp_path: Path, chunked: Path) -> None:
    before = (chunked / "world.json").stat().st_mtime_ns
    assert generate(chunked, days=2, **CHUNKED) == read_summary(chunked)
    with pytest.raises(UserError, match=r"days 2 instead of 3.*another folder"):
        generate(chunked, days=3, **CHUNKED)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds something that is no world"):
        generate(tmp_path, users=100, days=1, seed=0)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    assert (chunked / "world.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(("flag", "value"), [("users", 0), ("days", 0), ("items", 5), ("seed", -1)])
def test_parameters_out_of_range_are_told(tmp_path: Path, flag: str, value: int) -> None:
    arguments = {"users": 100, "days": 1, "seed": 0, "items": 200} | {flag: value}
    with pytest.raises(UserError, match=f"--{flag} {value}: give a number from"):
        generate(tmp_path / "w", **arguments)  # type: ignore[arg-type]
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write the world"):
        generate(tmp_path / "file" / "w", users=100, days=1, seed=0)


def test_memory_does_not_grow_with_users(tmp_path: Path) -> None:
    """Four chunks of 1000 users peak where one does."""
    code = (
        "import json, resource, sys; from pathlib import Path; from examples.marketplace.world import generate\n"
        "generate(Path(sys.argv[1]), users=int(sys.argv[2]), days=1, seed=0, items=25_000, workers=1)\n"
        "print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))"
    )
    peaks = []
    for users in (1000, 4000):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / str(users)), str(users)],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(json.loads(done.stdout))
    assert peaks[1] < 1.2 * peaks[0]

"""Days of a place against the brute-force way: ask the zone's clocks."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrank.schemas import Schema, SchemaError
from genrank.schemas.base import DAY_MS
from genrank.schemas.local_days import LocalDays
from tests.schemas.schemas_shop import SHOP

HOUR = 3_600_000
ZONES = [
    "Europe/Berlin",
    "Europe/Dublin",
    "America/New_York",
    "America/Havana",  # a day begins at 01:00, another has midnight twice
    "America/Asuncion",  # clocks are put back at midnight, to the day before
    "America/Goose_Bay",  # a minute after midnight, likewise
    "Africa/Casablanca",
    "Asia/Kathmandu",
    "Asia/Kolkata",
    "Australia/Lord_Howe",  # by half an hour
    "Pacific/Apia",  # 30 December 2011 was skipped
    "Pacific/Kiritimati",
]
FIRST, LAST = (round(datetime(year, 1, 1, tzinfo=UTC).timestamp() * 1000) for year in (1900, 2200))


def shown(zone: str, ms: int) -> datetime:
    return datetime.fromtimestamp(ms // 1000, ZoneInfo(zone)).replace(tzinfo=None) + timedelta(milliseconds=ms % 1000)


@settings(max_examples=300, deadline=None)
@given(zone=st.sampled_from(ZONES), ms=st.integers(FIRST, LAST - 1))
def test_clocks_show_what_the_zone_says(zone: str, ms: int) -> None:
    local = int(LocalDays(zone).local(np.array([ms]))[0])
    assert datetime(1970, 1, 1) + timedelta(milliseconds=local) == shown(zone, ms)


@settings(max_examples=200, deadline=None)
@given(zone=st.sampled_from(ZONES), day=st.integers(-20_000, 80_000), inside=st.floats(0, 1, exclude_max=True))
def test_a_day_begins_when_clocks_first_show_its_date(zone: str, day: int, inside: float) -> None:
    days = LocalDays(zone)
    start, end = days.start(day), days.start(day + 1)
    dt = date(1970, 1, 1) + timedelta(days=day)
    assert start <= end
    if start < end:
        assert shown(zone, start).date() >= dt and shown(zone, start - 1).date() < dt
        at = start + int(inside * (end - start))
        assert days.day(start) == days.day(at) == days.day(end - 1) == day
    # No moment of two days before shows the date, nor any later one.
    assert all(shown(zone, start - step).date() < dt for step in (1, HOUR, 25 * HOUR, 49 * HOUR))
    # Days together are never longer, nor shorter, than `covering` counts on.
    for number in (1, 7, 90):
        assert days.start(day) - days.start(day - days.covering(number * DAY_MS)) >= number * DAY_MS


def test_the_days_on_which_clocks_are_moved() -> None:
    def hours(zone: str, dt: str) -> float:
        day = (date.fromisoformat(dt) - date(1970, 1, 1)).days
        return (LocalDays(zone).start(day + 1) - LocalDays(zone).start(day)) / HOUR

    assert hours("Europe/Berlin", "2026-03-29") == 23
    assert hours("Europe/Berlin", "2026-10-25") == 25
    assert hours("America/New_York", "2026-11-01") == 25
    assert hours("Australia/Lord_Howe", "2026-04-05") == 24.5
    assert hours("America/Havana", "2026-03-08") == 23
    assert hours("Pacific/Apia", "2011-12-30") == 0
    assert hours("+05:30", "2026-03-29") == 24


@settings(max_examples=50, deadline=None)
@given(minutes=st.integers(-14 * 60, 14 * 60), ms=st.integers(-(10**14), 10**14))
def test_a_fixed_offset_is_plain_arithmetic(minutes: int, ms: int) -> None:
    sign, size = "-" if minutes < 0 else "+", abs(minutes)
    days, offset = LocalDays(f"{sign}{size // 60:02d}:{size % 60:02d}"), minutes * 60_000
    day = (ms + offset) // DAY_MS
    assert (days.day(ms), days.start(day), days.spread) == (day, day * DAY_MS - offset, 0)
    assert days.covering(7 * DAY_MS) == 7 and days.covering(1) == 1 and days.covering(0) == 0


def test_a_fixed_offset_keeps_its_fingerprints_and_a_zone_has_others() -> None:
    assert SHOP.replace(utc_offset="+00:00").samples_fingerprint == SHOP.samples_fingerprint
    berlin: Schema = SHOP.replace(utc_offset="Europe/Berlin")
    assert berlin.samples_fingerprint != SHOP.replace(utc_offset="+01:00").samples_fingerprint
    assert berlin.model_fingerprint == SHOP.model_fingerprint


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ("Europe/Berlni", "utc_offset 'Europe/Berlni' is no time zone that this machine knows"),
        ("+25:00", "utc_offset '+25:00' is no offset of any place"),
    ],
)
def test_what_is_no_place_is_refused_by_name(given_: str, said: str) -> None:
    with pytest.raises(SchemaError) as error:
        SHOP.replace(utc_offset=given_)
    assert said in str(error.value)

"""Days of a place: when each begins, which one a moment lies in, what its clocks show; of a fixed offset from UTC or of a time zone.

A zone's days have 23 or 25 hours where its clocks are moved. A day begins at the first moment at which the place's clocks show its
date, and lasts until the next one begins; a day that clocks skip (Samoa's 30 December 2011) has no length. Windows, look-backs and
delays are durations: "1d" is 24 hours wherever it begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
from numpy.typing import NDArray

from genrank.schemas.base import DAY_MS

Int = NDArray[np.int64]

PATTERN = r"^([+-]\d\d:\d\d|[A-Z][A-Za-z_]+(/[A-Za-z0-9_+-]+)+)$"
"""A fixed offset, or the name of a time zone: "+08:00", "Europe/Berlin"."""

_FIRST_YEAR, _LAST_YEAR = 1900, 2200
"""Years whose transitions are looked up; before and after, the clocks stay as they are then."""
_NEVER = np.iinfo(np.int64).max


def unknown_place(utc_offset: str) -> str | None:
    """What is wrong with an offset or a zone of the right form; None where nothing is."""
    if utc_offset[0] in "+-":
        hours, minutes = (int(part) for part in utc_offset[1:].split(":"))
        if hours > 14 or minutes > 59:
            return 'is no offset of any place; write for example "+08:00"'
        return None
    try:
        ZoneInfo(utc_offset)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return 'is no time zone that this machine knows; write for example "Europe/Berlin" (zones come with the system, or with the package tzdata)'
    return None


@dataclass(frozen=True)
class LocalDays:
    """Days, numbered from 1970-01-01, at an offset from UTC.

    Args:
        utc_offset: of the form `PATTERN`, and not an `unknown_place`.
    """

    utc_offset: str

    @cached_property
    def transitions(self) -> tuple[Int, Int]:
        """(moments in epoch ms at which the offset changes `[n]`, offsets in ms before, between and after them `[n + 1]`)."""
        if self.utc_offset[0] in "+-":
            hours, minutes = self.utc_offset[1:].split(":")
            offset = (-1 if self.utc_offset[0] == "-" else 1) * (int(hours) * 60 + int(minutes)) * 60_000
            return np.zeros(0, np.int64), np.array([offset], np.int64)
        return _transitions(self.utc_offset)

    @cached_property
    def _shown(self) -> Int:
        """Of each stretch between transitions: the latest local time, in ms, that no clock has shown when it ends."""
        moments, offsets = self.transitions
        ends = np.append(moments + offsets[:-1], _NEVER)
        shown: Int = np.maximum.accumulate(ends)
        return shown

    @cached_property
    def spread(self) -> int:
        """By how much, in ms, some days may together be longer or shorter than 24 hours each; 0 of a fixed offset."""
        _, offsets = self.transitions
        return int(offsets.max() - offsets.min())

    def local(self, ms: Int) -> Int:
        """What the clocks show at moments in epoch ms, as ms since they showed 1970-01-01 00:00."""
        moments, offsets = self.transitions
        shown: Int = ms + (offsets[np.searchsorted(moments, ms, "right")] if len(moments) else offsets[0])
        return shown

    def days(self, ms: Int) -> Int:
        """The day that each moment (epoch ms) lies in; it never decreases with the moment."""
        moments, offsets = self.transitions
        number: Int
        if not len(moments):
            number = (ms + offsets[0]) // DAY_MS
            return number
        stretch = np.searchsorted(moments, ms, "right")
        # Clocks put back over midnight show a date again that was over.
        before = np.append(np.iinfo(np.int64).min, self._shown[:-1] - 1)
        number = np.maximum(ms + offsets[stretch], before[stretch]) // DAY_MS
        return number

    def day(self, ms: int) -> int:
        """The day that a moment (epoch ms) lies in."""
        return int(self.days(np.array([ms], np.int64))[0])

    def starts(self, days: Int) -> Int:
        """Epoch ms at which each day begins."""
        moments, offsets = self.transitions
        midnight: Int = np.asarray(days, np.int64) * DAY_MS
        starts: Int
        if not len(moments):
            starts = midnight - offsets[0]
            return starts
        stretch = np.searchsorted(self._shown, midnight, "right")
        begins = np.append(np.iinfo(np.int64).min, moments)
        starts = np.maximum(begins[stretch], midnight - offsets[stretch])
        return starts

    def start(self, day: int) -> int:
        """Epoch ms at which a day begins."""
        return int(self.starts(np.array([day], np.int64))[0])

    def covering(self, ms: int) -> int:
        """As many days as reach over a duration, whichever days they are."""
        return -(-(ms + self.spread) // DAY_MS) if ms else 0


@lru_cache
def _transitions(zone: str) -> tuple[Int, Int]:
    moments, offsets = [], []
    for moment, offset in _changes(ZoneInfo(zone)):
        moments.append(moment)
        offsets.append(offset)
    return np.array(moments[1:], np.int64), np.array(offsets, np.int64)


def _changes(zone: ZoneInfo) -> Iterator[tuple[int, int]]:
    """(epoch ms, offset in ms from then on), the first of them at the beginning of `_FIRST_YEAR`."""

    def offset_at(second: int) -> int:
        offset = datetime.fromtimestamp(second, zone).utcoffset()
        assert offset is not None
        return round(offset.total_seconds() * 1000)

    since, end = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (_FIRST_YEAR, _LAST_YEAR))
    known = offset_at(since)
    yield since * 1000, known
    for at in range(since, end, 86_400):
        until = at + 86_400
        while offset_at(until) != known:
            low, high = at, until
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset_at(middle) == known else (low, middle)
            known, at = offset_at(high), high
            yield high * 1000, known

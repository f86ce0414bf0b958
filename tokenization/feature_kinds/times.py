"""Time parts and time gaps, derived from timestamps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genrank.schemas.features import TimeGap, TimePart
from genrank.schemas.ids import MISSING_ID
from genrank.schemas.schema import CANDIDATES
from genrank.tokenization.batch import Batch
from genrank.tokenization.feature_kinds.interface import GroupView

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def part_of_time(feature: TimePart, view: GroupView) -> Tensor:
    """[N] int64: the declared part of each row's own time, in the schema's offset."""
    return time_part(view.local_time(view.group.ts), feature.part)


def time_gap(feature: TimeGap, view: GroupView) -> Tensor:
    """[N] float32: seconds since the moment that the feature names; NaN where there is none."""
    group = view.group
    if feature.column:
        since = view.stored(feature.name)
    elif view.name == CANDIDATES:
        since = newest_visible(view.batch, view.histories, view.realtime)
    else:
        # The event before; none before a sample's first, which is the next sample's (or past the end) where it has no event.
        since = nn.functional.pad(group.ts, (1, 0)).index_fill_(0, group.offsets[:-1], MISSING_ID)[:-1]
    missing = since == MISSING_ID
    seconds = (group.ts - since.masked_fill(missing, 0)).double() / 1000
    return seconds.masked_fill(missing, torch.nan).float()


def time_part(local: Tensor, part: str) -> Tensor:
    """The part of a local time, counted from 0: int64 epoch ms (shifted by the offset) -> int64.

    Weekday 0 is Monday. Day of month and month by Hinnant's civil-from-days (howardhinnant.github.io/date_algorithms.html).
    """
    days = torch.div(local, DAY_MS, rounding_mode="floor")
    hour = torch.div(local - days * DAY_MS, HOUR_MS, rounding_mode="floor")
    if part == "hour":
        return hour
    weekday = (days + 3) % 7
    if part == "weekday":
        return weekday
    if part == "hour_of_week":
        return weekday * 24 + hour
    z = days + 719_468
    era = torch.div(z, 146_097, rounding_mode="floor")
    doe = z - era * 146_097
    yoe = (doe - doe // 1_460 + doe // 36_524 - doe // 146_096) // 365
    doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    march = (5 * doy + 2) // 153
    return doy - (153 * march + 2) // 5 if part == "day_of_month" else (march + 2) % 12


def newest_visible(batch: Batch, histories: Sequence[str], realtime: str | None) -> Tensor:
    """[C] int64 epoch ms of the newest event each candidate sees; `MISSING_ID` if it sees none."""
    newest = torch.full_like(batch.window_start, MISSING_ID)
    for name in histories:
        history = batch.groups[name]
        if len(history.ts):
            last = history.ts[(history.offsets[1:] - 1).clamp_(min=0)]
            newest = torch.where(history.lengths > 0, torch.maximum(newest, last), newest)
    candidates = batch.candidates
    seen = torch.repeat_interleave(newest, candidates.lengths, output_size=len(candidates.ts))
    if realtime is None or not len(batch.groups[realtime].ts):
        return seen
    events = batch.groups[realtime]
    begin = torch.repeat_interleave(events.offsets[:-1], candidates.lengths, output_size=len(candidates.ts))
    last = begin + batch.candidate_sees - 1
    running = running_max(events.ts, events.offsets)
    return torch.where(batch.candidate_sees > 0, torch.maximum(seen, running[last.clamp(min=0)]), seen)


def running_max(values: Tensor, offsets: Tensor) -> Tensor:
    """[N] int64: the largest value so far within each segment. Values are epoch ms: below 2^43 in size (year 2248)."""
    segment = torch.repeat_interleave(offsets.diff(), output_size=len(values)) << 44
    return torch.cummax(segment + values, 0).values - segment

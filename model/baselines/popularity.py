"""Item popularity as strong as it can honestly be: counts over several windows up to each exposure, the best window chosen in training.

A popularity of all days is easy to beat where items come and go; the last hours' clicks are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from genrank.model.metrics import gauc
from genrank.model.sample_files import read_columns
from genrank.schemas.base import parse_duration
from genrank.schemas.ids import hash_strings
from genrank.schemas.manifest import sample_files
from genrank.schemas.schema import Schema

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

HOUR_MS = 3_600_000
WINDOWS: Mapping[str, int | None] = {
    "1 h": HOUR_MS,
    "6 h": 6 * HOUR_MS,
    "1 day": 24 * HOUR_MS,
    "3 days": 72 * HOUR_MS,
    "all days": None,
}
STRENGTH = 10.0
"""Exposures at the base rate that a rate starts from."""


@dataclass(frozen=True)
class Exposures:
    """N exposures with their outcomes, as samples of some days hold them."""

    user: Ids
    item: Ids
    ts: Ids
    labels: Mapping[str, Floats]
    weights: Mapping[str, Floats]
    """By binary label."""


def read_exposures(samples: Path, schema: Schema, dates: Sequence[str]) -> Exposures:
    """Of published days; reads three columns, and two a label.

    Raises:
        UserError: a day is gone, or damaged.
    """
    tasks = [label.name for label in schema.labels if label.kind == "binary"]
    ends = [f"{task}{end}" for task in tasks for end in ("", "_weight")]
    parts: dict[str, list[NDArray[np.generic]]] = {name: [] for name in ("user", "item", "ts", *ends)}
    for file in (file for date in dates for file in sample_files(samples, date)):
        table = read_columns(file, ["user_id", "candidates.item", "candidates.ts", *(f"labels.{end}" for end in ends)])
        candidates, labels = table["candidates"].combine_chunks(), table["labels"].combine_chunks()
        items = pc.struct_field(candidates, "item")
        user = table["user_id"].combine_chunks()
        user = hash_strings(user) if pa.types.is_string(user.type) else user
        lengths = pc.list_value_length(items).to_numpy(zero_copy_only=False)
        parts["user"].append(np.repeat(user.to_numpy(zero_copy_only=False), lengths))
        parts["item"].append(items.flatten().to_numpy())
        parts["ts"].append(pc.struct_field(candidates, "ts").flatten().to_numpy())
        for name in ends:
            parts[name].append(pc.struct_field(labels, name).flatten().to_numpy())
    whole = {name: np.concatenate([np.zeros(0), *arrays]) for name, arrays in parts.items()}
    user, item, ts = (
        np.concatenate([np.zeros(0, np.int64), *parts[name]]).astype(np.int64) for name in ("user", "item", "ts")
    )
    return Exposures(user, item, ts, {t: whole[t] for t in tasks}, {t: whole[f"{t}_weight"] for t in tasks})


class WindowedCounts:
    """Exposures and positives of an item within windows up to a moment, of one label.

    An exposure counts once its outcome is known: its label's window, `delay_ms`, after it. Labels that aren't mature don't count.
    """

    def __init__(self, items: Ids, ts: Ids, labels: Floats, weights: Floats, delay_ms: int) -> None:
        keep = weights > 0
        items, ts, labels, weights = items[keep], ts[keep], labels[keep], weights[keep]
        self.delay_ms = delay_ms
        self.base = float(np.average(labels > 0.5, weights=weights)) if len(labels) else 0.0
        order = np.lexsort((ts, items))
        self.items, code = np.unique(items[order], return_inverse=True)
        self._first = int(ts.min()) - 1 if len(ts) else 0
        self._span = int(ts.max()) - self._first + 2 if len(ts) else 2
        self._keys = code * self._span + (ts[order] - self._first)
        self._shown = np.concatenate([[0.0], np.cumsum(weights[order])])
        self._positive = np.concatenate([[0.0], np.cumsum((weights * (labels > 0.5))[order])])

    def counts(self, items: Ids, ts: Ids, window_ms: int | None) -> tuple[Floats, Floats]:
        """([C] exposures, [C] positives) of each item in [ts - delay - window, ts - delay)."""
        code = np.searchsorted(self.items, items).clip(max=max(len(self.items) - 1, 0))
        known = self.items[code] == items if len(self.items) else np.zeros(len(items), bool)
        until = (ts - self.delay_ms - self._first).clip(0, self._span - 1)
        since = (
            np.zeros_like(until)
            if window_ms is None
            else (ts - self.delay_ms - window_ms - self._first).clip(0, self._span - 1)
        )
        begin, end = (np.searchsorted(self._keys, code * self._span + at, "left") for at in (since, until))
        shown, positive = (np.where(known, sums[end] - sums[begin], 0.0) for sums in (self._shown, self._positive))
        return shown, positive


class Popularity(NamedTuple):
    """A way to score items."""

    what: Literal["rate", "count"]
    window: str
    """A key of `WINDOWS`."""

    def scores(self, counts: WindowedCounts, items: Ids, ts: Ids) -> Floats:
        """[C]: the smoothed rate of positives, or how many there were."""
        shown, positive = counts.counts(items, ts, WINDOWS[self.window])
        return positive if self.what == "count" else (positive + STRENGTH * counts.base) / (shown + STRENGTH)

    def in_words(self, label: str) -> str:
        """`click rate of the item, 6 h`."""
        return f"{label} {self.what} of the item, {self.window}"


CHOICES = tuple(Popularity(what, window) for what in ("rate", "count") for window in WINDOWS)


def windowed(exposures: Exposures, schema: Schema, label: str) -> WindowedCounts:
    """A label's counts over some exposures."""
    window = parse_duration(next(each.window for each in schema.labels if each.name == label))
    return WindowedCounts(exposures.item, exposures.ts, exposures.labels[label], exposures.weights[label], int(window))


def choose(counts: WindowedCounts, day: Exposures, label: str) -> Popularity:
    """The choice of the largest GAUC on a training day; the first of `CHOICES` where it is undefined."""
    keep = day.weights[label] > 0
    user, labels, weights = day.user[keep], day.labels[label][keep], day.weights[label][keep]

    def reached(choice: Popularity) -> float:
        found = gauc(user, labels, choice.scores(counts, day.item[keep], day.ts[keep]), weights)
        return found if np.isfinite(found) else 0.0

    return max(CHOICES, key=reached)

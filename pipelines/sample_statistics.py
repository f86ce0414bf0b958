"""What the samples hold, leaf by leaf and day by day, how often joins found a partner, and how all that drifts.

A day's summaries (`leaf_summaries`), of any number of files, are one small Parquet file, `OUT/stats/dt=<day>.parquet`, a row per
leaf and file. Drift is the population stability index against the days before:

    PSI = sum over bins of (p - q) * ln(p / q)

with the bins of a number at the earlier days' deciles, of an id at their most frequent values, and one bin for missing. By custom,
below 0.1 is steady, above 0.25 is a shift someone should explain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from genrank.pipelines.leaf_summaries import SKETCH, length_of
from genrank.pipelines.merge_scan import Int
from genrank.pipelines.messages import LeafSummary
from genrank.schemas import UserError
from genrank.schemas.files import reading
from genrank.schemas.manifest import sample_days

DECILES = np.arange(1, 10) / 10
SHIFTED = 0.25
UNSTEADY = 0.1


@dataclass
class Summary:
    """One leaf over any number of files or days."""

    leaf: str
    kind: str
    count: int = 0
    missing: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    sketch: Int = field(default_factory=lambda: np.empty(0, np.int64))
    """The smallest hashes of different ids, ascending."""
    at_least: int = 0
    """Different ids of the file with most."""
    all_counted: bool = True
    """Whether every id went into the sketch."""
    values: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    ids: dict[int, float] = field(default_factory=dict)

    def add(self, part: LeafSummary) -> None:
        """Merge a file's summary in."""
        self.merge(
            Summary(
                self.leaf,
                self.kind,
                part.count,
                part.missing,
                part.total or 0.0,
                math.inf if part.low is None else part.low,
                -math.inf if part.high is None else part.high,
                np.asarray(part.sketch or (), np.int64),
                part.distinct or 0,
                part.sketch is not None and (part.counted or 0) == part.count,
                list(part.values),
                list(part.weights),
                dict(zip(part.ids, part.id_counts, strict=True)),
            )
        )

    def merge(self, other: Summary) -> None:
        """Merge another day's summary in."""
        self.count += other.count
        self.missing += other.missing
        self.total += other.total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.at_least = max(self.at_least, other.at_least)
        self.all_counted &= other.all_counted
        self.sketch = np.union1d(self.sketch, other.sketch)[:SKETCH]
        self.values += other.values
        self.weights += other.weights
        for id_, count in other.ids.items():
            self.ids[id_] = self.ids.get(id_, 0.0) + count

    @property
    def missing_rate(self) -> float:
        """Share of missing values; of a joined column, the share of rows without a partner or a value; of a join, without a partner."""
        return self.missing / self.count if self.count else 0.0

    @property
    def distinct(self) -> int:
        """Number of different ids: exact below `SKETCH`, estimated above; a lower bound unless `all_counted`."""
        if len(self.sketch) < SKETCH:
            return max(self.at_least, len(self.sketch))
        # Hashes are spread evenly over 64 bits: the k-th smallest says how densely.
        share = (int(self.sketch[-1]) + 2**63) / 2**64
        return max(self.at_least, round((SKETCH - 1) / share))

    @property
    def mean(self) -> float:
        """Weighted mean of a number: of a binary label, its rate."""
        weight = sum(self.weights)
        return self.total / weight if weight else math.nan

    def quantiles(self, levels: Sequence[float]) -> list[float]:
        """Of a number; empty where every value is missing."""
        if not self.values:
            return []
        order = np.argsort(self.values, kind="stable")
        value, weight = np.asarray(self.values)[order], np.asarray(self.weights)[order]
        reached = np.cumsum(weight) - weight / 2
        found: list[float] = np.interp(np.asarray(levels) * weight.sum(), reached, value).tolist()
        return found

    def psi(self, before: Summary) -> float:
        """Population stability index against an earlier summary."""
        if not self.count or not before.count:
            return math.nan
        ours, theirs = (self._shares(before), before._shares(before))
        p, q = (np.maximum(np.asarray(shares), 1e-4) for shares in (ours, theirs))
        return float(((p - q) * np.log(p / q)).sum())

    def _shares(self, reference: Summary) -> list[float]:
        present = 1 - self.missing_rate
        if self.kind == "join":
            return [present, self.missing_rate]
        if self.kind == "id":
            top = sorted(reference.ids, key=lambda id_: (-reference.ids[id_], id_))[:20]
            shares = [self.ids.get(id_, 0.0) / self.count for id_ in top]
            return [*shares, max(0.0, present - sum(shares)), self.missing_rate]
        edges = np.unique(reference.quantiles(DECILES.tolist()))
        bins = np.bincount(np.searchsorted(edges, self.values, "left"), self.weights, len(edges) + 1)
        return [*(bins / max(bins.sum(), 1e-12) * present).tolist(), self.missing_rate]


@dataclass
class DayStatistics:
    """One day, leaf by leaf, and each leaf's drift against the days before it."""

    dt: str
    summaries: dict[str, Summary]
    psi: dict[str, float]
    """Empty for the first day."""
    against: tuple[str, ...] = ()
    """The days before it that the drift is against, ascending."""

    @property
    def comparison(self) -> str:
        """The days compared, in words."""
        if not self.against:
            return "no day before it to compare with"
        first, last = self.against[0], self.against[-1]
        return f"drift against {first}" + ("" if first == last else f" .. {last} ({len(self.against)} days)")


def statistics(out: Path, dates: Sequence[str] | None = None, reference_days: int = 7) -> list[DayStatistics]:
    """Statistics of published days, ascending; drift is against up to `reference_days` published days before each.

    Raises:
        UserError: no published day, a day that isn't published, or one without statistics.
    """
    published = sample_days(Path(out) / "samples")
    if not published:
        raise UserError(f"--out {out}: no published day in it; give the --out folder of `genrank build`")
    wanted = list(dates) if dates is not None else published
    for dt in wanted:
        if dt not in published:
            raise UserError(f"--dates {dt}: the day isn't published under {out}; build it first")
    cache: dict[str, dict[str, Summary]] = {}

    def of(dt: str) -> dict[str, Summary]:
        if dt not in cache:
            cache[dt] = merge(read(Path(out), dt))
        return cache[dt]

    found = []
    for dt in sorted(wanted):
        earlier = [day for day in published if day < dt][-reference_days:]
        before = merge([row for day in earlier for row in read(Path(out), day)])
        drift = {leaf: summary.psi(before[leaf]) for leaf, summary in of(dt).items() if leaf in before}
        found.append(DayStatistics(dt, of(dt), drift, tuple(earlier)))
    return found


def path_of(out: Path, dt: str) -> Path:
    """Where a day's statistics lie."""
    return Path(out) / "stats" / f"dt={dt}.parquet"


def read(out: Path, dt: str) -> list[LeafSummary]:
    """A day's stored rows."""
    if not path_of(out, dt).is_file():
        raise UserError(f"{path_of(out, dt)} is missing; build {dt} again (--force)")
    with reading(path_of(out, dt), f"build {dt} again (--force)"):
        table = pq.read_table(path_of(out, dt))
    rows = LeafSummary.of_table(table)
    return rows if "sketch" in table.column_names else [_renamed(row) for row in rows]


def _renamed(row: LeafSummary) -> LeafSummary:
    """A row of statistics of before lengths had names of their own."""
    group, _, last = row.leaf.rpartition(".")
    return replace(row, leaf=length_of(group)) if row.kind == "number" and last == "length" else row


def merge(rows: Sequence[LeafSummary]) -> dict[str, Summary]:
    """Leaf -> all of its rows as one."""
    found: dict[str, Summary] = {}
    for row in rows:
        found.setdefault(row.leaf, Summary(row.leaf, row.kind)).add(row)
    return found

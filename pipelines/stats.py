"""What the samples hold, leaf by leaf and day by day, how often joins found a partner, and how all that drifts.

Tasks summarise each file while its rows are in memory; summaries merge, so a day of any size is one small Parquet file,
`OUT/stats/dt=<day>.parquet`, a row per leaf. Drift is the population stability index against the days before:

    PSI = sum over bins of (p - q) * ln(p / q)

with the bins of a number at the earlier days' deciles, of an id at their most frequent values, and one bin for missing. By custom,
below 0.1 is steady, above 0.25 is a shift someone should explain.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from genrank.pipelines.cross_feature_ops import evaluation_of
from genrank.pipelines.cross_features import key_sets
from genrank.schemas import Schema, UserError
from genrank.schemas.derive.sample_schema import leaves
from genrank.schemas.files import reading, write_atomically
from genrank.schemas.ids import MISSING_ID
from genrank.schemas.manifest import sample_days
from genrank.schemas.schema import USER

if TYPE_CHECKING:
    from rich.console import Console

SAMPLE = 512
"""Numbers kept of each leaf and file, evenly spread; each stands for its share of the file's."""
COUNTED = 1 << 18
"""Ids counted of each leaf and file at most, evenly spread."""
TOP = 64
"""Most frequent ids kept."""
DECILES = np.arange(1, 10) / 10
SHIFTED = 0.25
UNSTEADY = 0.1

SUMMARY = pa.schema(
    {
        "day": pa.int64(),
        "leaf": pa.string(),
        "kind": pa.string(),
        "count": pa.int64(),
        "missing": pa.int64(),
        "total": pa.float64(),
        "low": pa.float64(),
        "high": pa.float64(),
        "distinct": pa.int64(),
        "values": pa.list_(pa.float64()),
        "weights": pa.list_(pa.float64()),
        "ids": pa.list_(pa.int64()),
        "id_counts": pa.list_(pa.float64()),
    }
)
"""`kind`: number (also lengths and labels' values), id, or join (`count` rows asked, `missing` found none). `values` with `weights`: a sample of a number. `ids` with `id_counts`: the
most frequent ids, scaled to the whole."""


def summarise(table: pa.Table, schema: Schema, day: int) -> pa.Table:
    """A row per leaf of a file of samples: features, lengths of lists, and labels where they are mature."""
    rows = [{"day": day, "leaf": leaf, **row} for leaf, row in _rows(table.combine_chunks(), schema)]
    return pa.Table.from_pylist(rows, SUMMARY)


def _rows(table: pa.Table, schema: Schema) -> Iterator[tuple[str, dict[str, Any]]]:
    if not table.num_rows:
        return
    groups = {
        name: table.column(name).chunk(0)
        for name in table.column_names
        if pa.types.is_struct(table.schema.field(name).type)
    }
    for leaf in leaves(schema):
        column = groups[leaf.group].field(leaf.name)
        values = column if leaf.group == USER else column.flatten()
        if leaf.stored == "ids":
            yield (
                f"{leaf.group}.{leaf.name}.length",
                _number(pc.list_value_length(values).to_numpy(zero_copy_only=False)),
            )
            yield f"{leaf.group}.{leaf.name}", _id(values.flatten().to_numpy())
        elif leaf.stored == "id":
            yield f"{leaf.group}.{leaf.name}", _id(values.to_numpy())
        else:
            number = values.to_numpy().astype(np.float64)
            yield f"{leaf.group}.{leaf.name}", _number(np.where(number == MISSING_ID, np.nan, number))
    for name in ("candidates", *(sequence.name for sequence in schema.sequences)):
        lengths = pc.list_value_length(groups[name].field("ts")).to_numpy(zero_copy_only=False)
        yield f"{name}.length", _number(lengths)
    for label in schema.labels:
        value, weight = (groups["labels"].field(f"{label.name}{end}").flatten().to_numpy() for end in ("", "_weight"))
        yield f"labels.{label.name}", _number(np.where(weight > 0, value, np.nan), weight)
    for key_set in key_sets(schema):
        leaves_ = {feature: groups["candidates"].field(feature.name).flatten() for feature in key_set.features}
        found = np.any(
            [evaluation_of(feature).saw_events(feature, values.to_numpy()) for feature, values in leaves_.items()],
            axis=0,
        )
        by = f" by {', '.join(key_set.keys)}" if key_set.keys else ""
        yield f"candidates → {', '.join(sorted(key_set.windows(schema)))}{by}", _join(int(found.sum()), len(found))


def join_rows(day: int, joins: Mapping[str, tuple[int, int]]) -> pa.Table:
    """Rows of statistics from name -> (rows that found a partner, rows that asked)."""
    rows = [{"day": day, "leaf": name, **_join(found, asked)} for name, (found, asked) in joins.items()]
    return pa.Table.from_pylist(rows, SUMMARY)


def _join(found: int, asked: int) -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(("total", "low", "high", "distinct"))
    return {"kind": "join", "count": asked, "missing": asked - found, **empty} | {
        name: [] for name in ("values", "weights", "ids", "id_counts")
    }


def _number(values: NDArray[Any], weights: NDArray[Any] | None = None) -> dict[str, Any]:
    present = ~np.isnan(values)
    known = values[present].astype(np.float64)
    share = np.ones(len(known)) if weights is None else weights[present].astype(np.float64)
    step = max(1, -(-len(known) // SAMPLE))
    kept = known[step // 2 :: step] if len(known) else known
    return {
        "kind": "number",
        "count": len(values),
        "missing": int((~present).sum()),
        "total": float((known * share).sum()),
        "low": float(known.min()) if len(known) else None,
        "high": float(known.max()) if len(known) else None,
        "distinct": None,
        "values": kept.tolist(),
        "weights": [float(share.sum()) / max(1, len(kept))] * len(kept),
        "ids": [],
        "id_counts": [],
    }


def _id(values: NDArray[Any]) -> dict[str, Any]:
    missing = int((values == MISSING_ID).sum())
    step = max(1, -(-len(values) // COUNTED))
    ids, counts = np.unique(values[::step], return_counts=True)
    counts, ids = counts[ids != MISSING_ID], ids[ids != MISSING_ID]
    top = np.lexsort((ids, -counts))[:TOP]
    return {
        "kind": "id",
        "count": len(values),
        "missing": missing,
        "total": None,
        "low": None,
        "high": None,
        "distinct": len(ids),
        "values": [],
        "weights": [],
        "ids": ids[top].tolist(),
        "id_counts": (counts[top] * float(step)).tolist(),
    }


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
    distinct: int = 0
    """Of the file with most, among the ids counted: a lower bound."""
    values: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    ids: dict[int, float] = field(default_factory=dict)

    def add(self, row: dict[str, Any]) -> None:
        """Merge a stored row in."""
        self.count += row["count"]
        self.missing += row["missing"]
        self.total += row["total"] or 0.0
        self.low = min(self.low, math.inf if row["low"] is None else row["low"])
        self.high = max(self.high, -math.inf if row["high"] is None else row["high"])
        self.distinct = max(self.distinct, row["distinct"] or 0)
        self.values += row["values"]
        self.weights += row["weights"]
        for id_, count in zip(row["ids"], row["id_counts"], strict=True):
            self.ids[id_] = self.ids.get(id_, 0.0) + count

    @property
    def missing_rate(self) -> float:
        """Share of missing values; of a joined column, the share of rows without a partner or a value; of a join, without a partner."""
        return self.missing / self.count if self.count else 0.0

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


def read(out: Path, dt: str) -> list[dict[str, Any]]:
    """A day's stored rows."""
    if not path_of(out, dt).is_file():
        raise UserError(f"{path_of(out, dt)} is missing; build {dt} again (--force)")
    with reading(path_of(out, dt), f"build {dt} again (--force)"):
        rows: list[dict[str, Any]] = pq.read_table(path_of(out, dt)).to_pylist()
    return rows


def merge(rows: Sequence[dict[str, Any]]) -> dict[str, Summary]:
    """Leaf -> all of its rows as one."""
    found: dict[str, Summary] = {}
    for row in rows:
        found.setdefault(row["leaf"], Summary(row["leaf"], row["kind"])).add(row)
    return found


# ---------------------------------------------------------------------- for people

HEADINGS = ("leaf", "values", "missing", "mean", "median", "90%", "PSI")
"""The mean of a binary label is its rate; of an id, that column tells how many different ones there are."""
JOINS = ("join", "rows", "found", "PSI")
LEGEND = (
    f"PSI (population stability index): below {UNSTEADY} steady, from {SHIFTED} shifted (yellow between, red above). In a log's first days "
    "histories and window statistics still fill, so theirs are large. Times are in epoch ms, recencies in seconds."
)


def _cells(summary: Summary, psi: float | None) -> list[str]:
    median, high = summary.quantiles([0.5, 0.9]) or (math.nan, math.nan)
    middle = f"{_short(summary.distinct)} ids" if summary.kind == "id" else _number_text(summary.mean)
    return [
        summary.leaf,
        _short(summary.count),
        f"{summary.missing_rate:.1%}",
        middle,
        _number_text(median),
        _number_text(high),
        _psi_text(psi),
    ]


def _join_cells(summary: Summary, psi: float | None) -> list[str]:
    return [summary.leaf, _short(summary.count), f"{1 - summary.missing_rate:.2%}", _psi_text(psi)]


def _psi_text(psi: float | None) -> str:
    return "" if psi is None or math.isnan(psi) else f"{psi:.3f}"


def _number_text(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def _short(count: int) -> str:
    """At most five characters: 950, 12.3k, 4.56M."""
    value, unit = float(count), ""
    for bigger in ("k", "M", "G", "T"):
        if round(value) < 1000:
            break
        value, unit = value / 1000, bigger
    return f"{count}" if not unit else f"{value:.3g}{unit}"


def _tone(psi: float | None) -> str:
    if psi is None or math.isnan(psi) or psi < UNSTEADY:
        return ""
    return "red" if psi >= SHIFTED else "yellow"


def _by_kind(day: DayStatistics) -> tuple[list[str], list[str]]:
    """(leaves, joins), each what drifted first."""
    ordered = sorted(day.summaries, key=lambda leaf: (-_sortable(day.psi.get(leaf)), leaf))
    joins = [leaf for leaf in ordered if day.summaries[leaf].kind == "join"]
    return [leaf for leaf in ordered if leaf not in joins], joins


def print_statistics(days: Sequence[DayStatistics], console: Console | None = None) -> None:
    """The newest day in the terminal, what drifted first; 80 columns are enough."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = console or Console(highlight=False)
    if not days:
        console.print("no published day")
        return
    day = days[-1]
    console.print(f"[bold]{day.dt}[/], {day.comparison}")
    console.print(LEGEND)
    for headings, names, cells in zip((HEADINGS, JOINS), _by_kind(day), (_cells, _join_cells), strict=True):
        if names:
            table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
            for i, heading in enumerate(headings):
                table.add_column(heading, justify="right" if i else "left", no_wrap=bool(i), overflow="fold")
            for leaf in names:
                table.add_row(*cells(day.summaries[leaf], day.psi.get(leaf)), style=_tone(day.psi.get(leaf)))
            console.print(table)


def _sortable(psi: float | None) -> float:
    return -1.0 if psi is None or math.isnan(psi) else psi


def write_statistics(days: Sequence[DayStatistics], path: Path) -> None:
    """One self-contained HTML page: drift over all days, then each day's leaves and joins, newest first."""
    colours = {"": "#fff", "yellow": "#fff3bf", "red": "#ffc9c9"}

    def cell(psi: float | None) -> str:
        return f'<td style="background:{colours[_tone(psi)]}">{_psi_text(psi)}</td>'

    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>genrank: statistics of the samples</title>',
        "<style>body{font:14px system-ui;margin:2rem}table{border-collapse:collapse;margin:0 0 2rem}"
        "td,th{padding:2px 8px;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}</style>",
        f"<h1>Statistics of the samples</h1><p>{html.escape(LEGEND)}</p>",
        "<h2>Drift (PSI, each day against the days before it)</h2><table><tr><th>leaf</th>",
        *(f'<th title="{html.escape(day.comparison)}">{day.dt}</th>' for day in days),
        "</tr>",
    ]
    for leaf in sorted({leaf for day in days for leaf in day.summaries}):
        parts.append(f"<tr><td>{html.escape(leaf)}</td>{''.join(cell(day.psi.get(leaf)) for day in days)}</tr>")
    parts.append("</table>")
    for day in reversed(days):
        parts.append(f"<h2>{day.dt}</h2><p>{html.escape(day.comparison)}</p>")
        for headings, names, cells_of in zip((HEADINGS, JOINS), _by_kind(day), (_cells, _join_cells), strict=True):
            parts.append(f"<table><tr>{''.join(f'<th>{heading}</th>' for heading in headings)}</tr>")
            for leaf in sorted(names):
                *cells, _ = cells_of(day.summaries[leaf], day.psi.get(leaf))
                parts.append(
                    f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in cells)}{cell(day.psi.get(leaf))}</tr>"
                )
            parts.append("</table>")
    write_atomically(path, "\n".join(parts))

"""One sample, drawn: its tokens by group with values and times, and who sees whom."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from genrank.schemas.base import DAY_MS
from genrank.schemas.contract import stored_as
from genrank.schemas.errors import UserError
from genrank.schemas.files import reading
from genrank.schemas.manifest import sample_days, sample_files
from genrank.schemas.schema import CANDIDATES, USER, Schema
from genrank.schemas.tables import TYPE, event_names, logical_tables
from genrank.schemas.vocabulary import MISSING_ID, Enumerated, hash_string
from genrank.tokenization.batch import Batch, Ragged
from genrank.tokenization.plan import tokens_per_row
from genrank.tokenization.sample_columns import SampleColumns
from genrank.tokenization.tokens import arrange, group_kinds
from genrank.tokenization.views import view_of
from genrank.tokenization.visibility import CANDIDATE, HISTORY, REALTIME, Rule, mtgr
from genrank.tokenization.visibility import USER as USER_GROUP

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console, RenderableType

COLORS = {USER_GROUP: "#b07aa1", HISTORY: "#4e79a7", REALTIME: "#59a14f", CANDIDATE: "#f28e2b"}
NAMES = {USER_GROUP: "user", HISTORY: "history", REALTIME: "realtime", CANDIDATE: "candidates"}
HEADS = {
    USER_GROUP: [],
    HISTORY: ["event"],
    REALTIME: ["event", "available", "sees"],
    CANDIDATE: ["request", "item", "labels", "sees"],
}
"""What is told of each token before its features; `sees` counts realtime events."""
TERMINAL_CELLS = 64
"""Width of the visibility picture in a terminal: larger samples are drawn coarser."""


@dataclass
class Sample:
    """One stored sample with its tokens laid out; T tokens."""

    schema: Schema
    batch: Batch
    group: np.ndarray
    """[T]: 0 user, 1 history, 2 realtime, 3 candidate."""
    mask: np.ndarray
    """[T, T] bool: row q sees column k."""


def show(samples_root: Path | str, sample_id: str, *, schema: Schema, png: Path | None = None) -> None:
    """Draws a sample in the terminal, or into a PNG file.

    Args:
        sample_id: as stored, `<user>:<day>:<chunk>`.
        png: the file to write; None prints instead.

    Raises:
        UserError: no such sample, or a file of another kind.
    """
    if png is not None and png.suffix != ".png":
        raise UserError(f"--png {png}: end it in .png")
    sample = load_sample(samples_root, sample_id, schema)
    if png is None:
        from rich.console import Console

        print_sample(sample, Console())
    else:
        png.parent.mkdir(parents=True, exist_ok=True)
        draw_sample(sample, png)


def interesting_sample(samples_root: Path | str, schema: Schema, day: str) -> str:
    """The id of a sample of a day worth looking at: the first with history, realtime events, 5 to 40 candidates and a positive
    label; else the one that comes nearest. Deterministic.

    Raises:
        UserError: the day isn't published, or has no samples.
    """
    columns = ["sample_id", f"{CANDIDATES}.ts", *(f"{s.name}.ts" for s in schema.sequences)]
    columns += [f"labels.{label.name}" for label in schema.labels]
    best: tuple[int, str] | None = None
    for path in sample_files(samples_root, day, schema):
        with reading(path):
            batches = list(pq.ParquetFile(path).iter_batches(columns=columns))
        for rows in batches:
            candidates = pc.list_value_length(rows[CANDIDATES].field("ts")).to_numpy()
            score = 4 * ((candidates >= 5) & (candidates <= 40)).astype(int)
            for sequence in schema.sequences:
                events = pc.list_value_length(rows[sequence.name].field("ts")).to_numpy()
                score += 2 * (events > 0) + ((events >= 3) & (events <= 60))
            for label in schema.labels:
                values = rows["labels"].field(label.name)
                owner = np.repeat(np.arange(len(rows)), np.diff(values.offsets.to_numpy()))
                score += np.bincount(owner[values.flatten().to_numpy() > 0], minlength=len(rows)) > 0
            if len(score) and (best is None or score.max() > best[0]):
                best = int(score.max()), rows["sample_id"][int(score.argmax())].as_py()
    if best is None:
        raise UserError(f"{samples_root} has no samples on {day}")
    return best[1]


def _find(path: Path, sample_id: str, columns: SampleColumns) -> pa.Table | None:
    """The sample's row, if the file holds it."""
    first_row = 0
    with reading(path):
        file = pq.ParquetFile(path)
        for number in range(file.num_row_groups):
            ids = file.read_row_group(number, columns=["sample_id"])["sample_id"]
            at = pc.index(ids, sample_id).as_py()
            if at >= 0:
                columns.check_schema(file.schema_arrow, path)
                table = file.read_row_group(number, columns=columns.names).slice(at, 1)
                table = table.take([0])  # a slice's offsets don't begin at 0; a copy's do
                columns.check(table, path, first_row + at)
                return table
            first_row += len(ids)
    return None


def load_sample(samples_root: Path | str, sample_id: str, schema: Schema, rule: Rule = mtgr) -> Sample:
    """A stored sample by its id.

    Raises:
        UserError: no such sample.
    """
    days = sample_days(samples_root)
    named = [day for day in days if f":{day}:" in sample_id]
    columns = SampleColumns(schema)
    for day in named or days:
        for path in sample_files(samples_root, day, schema):
            if (table := _find(path, sample_id, columns)) is not None:
                return _lay_out(
                    schema, view_of(columns.stored_rows(table), schema, "user_day").batch(np.arange(1)), rule
                )
    where = f"days {days[0]} to {days[-1]}" if days else "no published day"
    raise UserError(f"{samples_root} has no sample {sample_id!r} ({where}); an id reads <user>:<day>:<chunk>")


def _lay_out(schema: Schema, batch: Batch, rule: Rule) -> Sample:
    place = arrange(schema, batch)
    begin, end = rule(place.layout)
    key = torch.arange(len(begin))
    mask = (key >= begin[:, None]) & (key < end[:, None]) | torch.eye(len(begin), dtype=torch.bool)
    return Sample(schema, batch, place.layout.group.numpy(), mask.numpy())


# ---------------------------------------------------------------------- values as people read them


class Reader:
    """Stored values as text: ids of an enumerated vocabulary by name, times in the schema's offset."""

    def __init__(self, sample: Sample) -> None:
        self.schema = sample.schema
        self.batch = sample.batch
        self.names = {
            feature: {hash_string(v) if isinstance(v, str) else v: str(v) for v in table.vocabulary.values}
            for table in logical_tables(self.schema)
            if isinstance(table.vocabulary, Enumerated)
            for feature in table.features
        }
        self.kinds = {(g, f.name): stored_as(f) for g, features in self.schema.groups() for f in features}
        self.types = {s.name: event_names(s) for s in self.schema.sequences}

    def time(self, ms: int) -> str:
        """`2026-01-05 07:03:21`, or only the time inside the sample's day."""
        when = dt.datetime.fromtimestamp((ms + self.schema.offset_ms) / 1000, dt.UTC)
        inside = 0 <= ms - int(self.batch.window_start[0]) < DAY_MS
        return when.strftime("%H:%M:%S" if inside else "%Y-%m-%d %H:%M:%S")

    def features(self, group: str) -> list[str]:
        """Stored features of a group, the ones least often missing first, then by name."""
        names = [name for name in self.batch.groups[group].features if name != TYPE]
        return sorted(names, key=lambda name: self._missing(group, name))

    def _missing(self, group: str, name: str) -> float:
        leaf = self.batch.groups[group].features[name]
        gone = leaf.offsets.diff() == 0 if isinstance(leaf, Ragged) else leaf.isnan() | (leaf == MISSING_ID)
        return float(gone.float().mean()) if len(gone) else 0.0

    def value(self, group: str, name: str, row: int) -> str:
        """One stored value; `·` where it's missing."""
        leaf = self.batch.groups[group].features[name]
        if isinstance(leaf, Ragged):
            ids = leaf.values[leaf.offsets[row] : leaf.offsets[row + 1]].tolist()
            return " ".join(self._id(group, name, each) for each in ids) or "·"
        value = leaf[row].item()
        if self.kinds.get((group, name)) == "number":
            return "·" if math.isnan(value) else f"{value:.4g}"
        if value == MISSING_ID:
            return "·"
        return self.time(int(value)) if self.kinds.get((group, name)) == "time" else self._id(group, name, int(value))

    def _id(self, group: str, name: str, value: int) -> str:
        known = self.names.get(f"{group}.{name}", {}).get(value)
        # A hashed string has no name any more; four hex digits tell two apart.
        return (
            "·" if value == MISSING_ID else known or (str(value) if abs(value) < 10**12 else f"#{value & 0xFFFF:04x}")
        )

    def event(self, group: str, row: int) -> str:
        """The type of a sequence's event."""
        types = self.types[group]
        at = int(self.batch.groups[group].features[TYPE][row])  # type: ignore[index]
        return types[at] if 0 <= at < len(types) else f"type {at}"

    def labels(self, row: int) -> str:
        """A candidate's labels: the tasks that are positive, `?` where one isn't mature."""
        told = []
        for task, values in self.batch.labels.items():
            if float(self.batch.weights[task][row]) == 0:
                told.append(f"{task}?")
            elif (value := float(values[row])) != 0:
                told.append(task if value == 1 else f"{task} {value:.3g}")
        return ", ".join(told) or "-"


def title_of(sample: Sample) -> str:
    """One line that says what the sample is."""
    counts = {name: len(group.ts) for name, group in sample.batch.groups.items() if name != USER}
    told = ", ".join(f"{n} {name}" for name, n in counts.items())
    requests = len(set(sample.batch.request.tolist()))
    return f"{sample.batch.sample_id[0]}: {len(sample.group)} tokens ({told}; {requests} requests)"


# ---------------------------------------------------------------------- terminal


def print_sample(sample: Sample, console: Console, rows: int = 12) -> None:
    """Prints a sample: a table per group, at most `rows` rows of each, and the visibility picture."""
    from rich.table import Table
    from rich.text import Text

    reader = Reader(sample)
    console.print(Text(title_of(sample), style="bold"))
    for name, kind in group_kinds(sample.schema).items():
        group = sample.batch.groups[name]
        if tokens_per_row(sample.schema, name) == 0:
            continue
        table = Table(title=f"{name} ({len(group.ts)})", title_justify="left", title_style=f"bold {COLORS[kind]}")
        heads = HEADS[kind]
        features = reader.features(name)
        shown = max(1, (console.width - 12 * (len(heads) + 1)) // 14)
        for column in ["time", *heads, *features[:shown]]:
            table.add_column(column, overflow="ellipsis", no_wrap=True, max_width=22)
        for row in _ends(len(group.ts), rows):
            if row is None:
                table.add_row("…")
                continue
            own = [str(each) for each in _head_values(sample, reader, name, kind, row)]
            table.add_row(
                reader.time(int(group.ts[row])), *own, *(reader.value(name, f, row) for f in features[:shown])
            )
        console.print(table)
        if len(features) > shown:
            console.print(Text(f"  and {len(features) - shown} more: {', '.join(features[shown:])}", style="dim"))
    cell = -(-len(sample.group) // TERMINAL_CELLS)
    each = "a row is a token" if cell == 1 else f"a row is {cell} tokens"
    if console.color_system:
        console.print(Text(f"who sees whom: {each}, coloured where it sees", style="bold"))
        console.print(_picture(sample))
    else:
        letters = ", ".join(f"{name[0]} {name}" for name in NAMES.values())
        console.print(Text(f"who sees whom: {each}, a letter what it sees there ({letters})", style="bold"))
        console.print(_letters(sample))


def _head_values(sample: Sample, reader: Reader, name: str, kind: int, row: int) -> list[Any]:
    batch = sample.batch
    if kind == CANDIDATE:
        return [int(batch.request[row]), int(batch.item[row]), reader.labels(row), int(batch.candidate_sees[row])]
    if kind == REALTIME:
        available = reader.time(int(batch.realtime_available[row]))
        return [reader.event(name, row), available, int(batch.realtime_sees[row])]
    return [reader.event(name, row)] if kind == HISTORY else []


def _ends(n: int, most: int) -> list[int | None]:
    """The first and last of n rows, None standing for those between."""
    if n <= most:
        return list(range(n))
    return [*range(most // 2), None, *range(n - (most - most // 2), n)]


def _picture(sample: Sample) -> RenderableType:
    """The mask in half-block characters: two rows of cells a line; a cell is coloured if any of its tokens sees."""
    from rich.text import Text

    cells = coarse(sample, TERMINAL_CELLS)
    lines = Text()
    for upper in range(0, len(cells), 2):
        for k in range(cells.shape[1]):
            top = cells[upper, k]
            bottom = cells[upper + 1, k] if upper + 1 < len(cells) else -1
            lines.append("▀", style=f"{COLORS.get(int(top), '#202020')} on {COLORS.get(int(bottom), '#202020')}")
        lines.append("\n")
    for kind, name in NAMES.items():
        lines.append("■ ", style=COLORS[kind])
        lines.append(f"{name}  ")
    return lines


def _letters(sample: Sample) -> str:
    """The picture without colours: the initial of the group that a cell sees, `.` where it sees none."""
    initials = np.array([*(NAMES[kind][0] for kind in sorted(NAMES)), "."])
    return "\n".join("".join(row) for row in initials[coarse(sample, TERMINAL_CELLS)])


def coarse(sample: Sample, most: int) -> np.ndarray:
    """[n, n] int with n <= most: the group of the keys that a cell's queries see, -1 where they see none."""
    t = len(sample.group)
    step = -(-t // most)
    edges = np.arange(0, t, step)
    seen = np.maximum.reduceat(np.maximum.reduceat(sample.mask.astype(np.int8), edges, 0), edges, 1)
    return np.where(seen > 0, sample.group[edges][None, :].astype(int), -1)


# ---------------------------------------------------------------------- picture


def draw_sample(sample: Sample, png: Path) -> None:
    """Draws a sample into a PNG: who sees whom, the day in time, and the tokens' values."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 10), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        2, 2, width_ratios=(1, 1.15), height_ratios=(3.4, 1), hspace=0.2, wspace=0.06, top=0.93, left=0.04, right=0.98
    )
    figure.suptitle(title_of(sample), x=0.02, ha="left", fontsize=13, fontweight="bold")
    _draw_mask(sample, figure.add_subplot(grid[0, 0]))
    _draw_values(sample, figure.add_subplot(grid[0, 1]))
    _draw_day(sample, figure.add_subplot(grid[1, :]))
    figure.savefig(png, bbox_inches="tight")


def _draw_mask(sample: Sample, axes: Axes) -> None:
    from matplotlib.colors import ListedColormap, to_rgb

    picture = np.where(sample.mask, sample.group[None, :] + 1, 0)
    colors = ListedColormap([(0.96, 0.96, 0.96), *(to_rgb(COLORS[kind]) for kind in sorted(COLORS))])
    axes.imshow(picture, cmap=colors, vmin=0, vmax=len(COLORS), interpolation="nearest", aspect="equal")
    ticks, names = [], []
    for kind in sorted(COLORS):
        at = np.flatnonzero(sample.group == kind)
        if len(at):
            ticks.append(float(at.mean()))
            names.append(f"{NAMES[kind]} ({len(at)})")
            for line in (axes.axhline, axes.axvline):
                line(at[-1] + 0.5, color="#444444", linewidth=0.6)
    axes.set_xticks(ticks, names, fontsize=8)
    axes.set_yticks(ticks, names, fontsize=8, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.set_title("Who sees whom: a row sees the coloured columns", fontsize=10, loc="left")


def _draw_values(sample: Sample, axes: Axes) -> None:
    axes.set_axis_off()
    axes.set_title("Tokens and some of their values", fontsize=10, loc="left")
    reader = Reader(sample)
    lines: list[tuple[str, str]] = []
    for name, kind in group_kinds(sample.schema).items():
        if tokens_per_row(sample.schema, name) == 0:
            continue
        group = sample.batch.groups[name]
        told = f"  (time  {' | '.join(HEADS[kind])}  features)" if HEADS[kind] else ""
        lines.append((f"{name}: {len(group.ts)}{told}", COLORS[kind]))
        features = reader.features(name)
        for row in _ends(len(group.ts), 9 if kind == CANDIDATE else 7):
            if row is None:
                lines.append(("   …", "#777777"))
                continue
            own = [str(each) for each in _head_values(sample, reader, name, kind, row)]
            values = [f"{f} {text}" for f in features if (text := reader.value(name, f, row)) != "·"]
            head = [reader.time(int(group.ts[row])), *([" | ".join(own)] if own else []), ", ".join(values)]
            text = f"   {'  '.join(head)}"
            lines.append((text if len(text) <= 118 else text[:117] + "…", "#222222"))
    for at, (text, color) in enumerate(lines):
        axes.text(
            0,
            1 - (at + 1) / (max(len(lines), 34) + 1),
            text,
            color=color,
            fontsize=7.2,
            family="monospace",
            fontweight="bold" if color in COLORS.values() else "normal",
            transform=axes.transAxes,
            parse_math=False,
        )


def _draw_day(sample: Sample, axes: Axes) -> None:
    """The window in time, pauses shortened: exposures above, stacked by request; realtime events below, each with a line from
    when it happened to when it was available."""
    batch, schema, reader = sample.batch, sample.schema, Reader(sample)
    exposed = batch.candidates.ts.numpy()
    happened = batch.groups[schema.realtime.name].ts.numpy() if schema.realtime else np.zeros(0, np.int64)
    available = batch.realtime_available.numpy()
    moments = np.unique(np.concatenate([exposed, happened, available]))
    places = np.concatenate([[0.0], np.cumsum(1 + np.log1p(np.diff(moments) / 1000))])

    def at(ms: np.ndarray) -> np.ndarray:
        return places[np.searchsorted(moments, ms)]

    positive = np.zeros(len(exposed), bool)
    for values in batch.labels.values():
        positive |= values.numpy() > 0
    stacked = np.array([int((exposed[:i] == ts).sum()) for i, ts in enumerate(exposed)])
    height = 1 + stacked / max(12, stacked.max() + 1)
    axes.scatter(
        at(exposed),
        height,
        s=22,
        facecolors=np.where(positive, COLORS[CANDIDATE], "white"),
        edgecolors=COLORS[CANDIDATE],
    )
    axes.hlines(np.zeros(len(happened)), at(happened), at(available), color=COLORS[REALTIME], linewidth=1.5)
    axes.scatter(at(happened), np.zeros(len(happened)), s=22, color=COLORS[REALTIME])
    axes.scatter(at(available), np.zeros(len(available)), s=90, marker="|", color=COLORS[REALTIME])
    ticks: list[int] = []
    for i in range(len(moments)):
        if not ticks or places[i] - places[ticks[-1]] > places[-1] / 16:
            ticks.append(i)
    axes.set_xticks(places[ticks], [reader.time(int(moments[i])) for i in ticks], fontsize=8)
    axes.set_yticks([0, 1], ["realtime", "exposures"], fontsize=8)
    axes.set_ylim(-0.6, 2.2)
    axes.set_title(
        "The window in time (pauses shortened): exposures, filled if a label is positive, see the realtime events available (|) "
        "left of them",
        fontsize=10,
        loc="left",
    )
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)

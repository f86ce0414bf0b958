"""A sample as a picture: what sees what, the tokens' values, and the day in time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure

from genrank.tokenization.batch import Ints
from genrank.tokenization.inspect_sample import Sample, SampleText, title_of
from genrank.tokenization.present.colors import COLORS, NAMES, ends
from genrank.tokenization.visibility import CANDIDATE, REALTIME


def draw_sample(sample: Sample, png: Path) -> None:
    """Draws a sample into a PNG: what each token sees, the day in time, and the tokens' values."""
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
    axes.set_title("What each token sees: a row sees the coloured columns", fontsize=10, loc="left")


def _draw_values(sample: Sample, axes: Axes) -> None:
    axes.set_axis_off()
    axes.set_title("Tokens and some of their values", fontsize=10, loc="left")
    lines = _value_lines(SampleText(sample))
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


def _value_lines(text: SampleText) -> list[tuple[str, str]]:
    """(line, colour) of each group's name and some of its rows."""
    lines: list[tuple[str, str]] = []
    for name, kind in text.shown_groups():
        group = text.batch.groups[name]
        headings = text.headings(name)
        names = f"  (time  {' | '.join(headings)}  features)" if headings else ""
        lines.append((f"{name}: {len(group.ts)}{names}", COLORS[kind]))
        features = text.features(name)
        for row in ends(len(group.ts), 9 if kind == CANDIDATE else 7):
            if row is None:
                lines.append(("   …", "#777777"))
                continue
            own = text.heading_values(name, row)
            values = [f"{f} {value}" for f in features if (value := text.value(name, f, row)) != "·"]
            head = [text.time(int(group.ts[row])), *([" | ".join(own)] if own else []), ", ".join(values)]
            line = f"   {'  '.join(head)}"
            lines.append((line if len(line) <= 118 else line[:117] + "…", "#222222"))
    return lines


def _draw_day(sample: Sample, axes: Axes) -> None:
    """The window in time, pauses shortened.

    Exposures above, stacked by request; realtime events below, each with a line from when it happened to when it was available.
    """
    batch, schema, text = sample.batch, sample.schema, SampleText(sample)
    exposed = batch.candidates.ts.numpy()
    happened = batch.groups[schema.realtime.name].ts.numpy() if schema.realtime else np.zeros(0, np.int64)
    available = batch.realtime_available.numpy()
    moments = np.unique(np.concatenate([exposed, happened, available]))
    places = np.concatenate([[0.0], np.cumsum(1 + np.log1p(np.diff(moments) / 1000))])

    def at(ms: Ints) -> npt.NDArray[np.float64]:
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
    axes.set_xticks(places[ticks], [text.time(int(moments[i])) for i in ticks], fontsize=8)
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

"""A sample in a terminal: a table per token group, and the picture of what sees what."""

from __future__ import annotations

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from genrank.tokenization.inspect_sample import Sample, SampleText, coarse, title_of
from genrank.tokenization.present.colors import COLORS, NAMES, ends

TERMINAL_CELLS = 64
"""Width of the visibility picture: larger samples are drawn coarser."""


def print_sample(sample: Sample, console: Console, rows: int = 12) -> None:
    """Prints a sample: a table per group, at most `rows` rows of each, and the visibility picture."""
    text = SampleText(sample)
    console.print(Text(title_of(sample), style="bold"))
    for name, kind in text.shown_groups():
        group = sample.batch.groups[name]
        table = Table(title=f"{name} ({len(group.ts)})", title_justify="left", title_style=f"bold {COLORS[kind]}")
        heads = text.headings(name)
        features = text.features(name)
        shown = max(1, (console.width - 12 * (len(heads) + 1)) // 14)
        for column in ["time", *heads, *features[:shown]]:
            table.add_column(column, overflow="ellipsis", no_wrap=True, max_width=22)
        for row in ends(len(group.ts), rows):
            if row is None:
                table.add_row("…")
                continue
            own = text.heading_values(name, row)
            table.add_row(text.time(int(group.ts[row])), *own, *(text.value(name, f, row) for f in features[:shown]))
        console.print(table)
        if len(features) > shown:
            console.print(Text(f"  and {len(features) - shown} more: {', '.join(features[shown:])}", style="dim"))
    cell = -(-len(sample.group) // TERMINAL_CELLS)
    each = "a row is a token" if cell == 1 else f"a row is {cell} tokens"
    if console.color_system:
        console.print(Text(f"what each token sees: {each}, coloured where it sees", style="bold"))
        console.print(_picture(sample))
    else:
        letters = ", ".join(f"{name[0]} {name}" for name in NAMES.values())
        console.print(Text(f"what each token sees: {each}, a letter what it sees there ({letters})", style="bold"))
        console.print(_letters(sample))


def _picture(sample: Sample) -> RenderableType:
    """The mask in half-block characters: two rows of cells a line; a cell is coloured if any of its tokens sees."""
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

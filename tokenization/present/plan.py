"""A plan's explanation in a terminal, and as the rows of a report."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from genrank.tokenization.explain import PlanExplanation, readable_bytes

COLUMNS = ("table", "logical tables", "rows", "dim", "bytes", "optimizer bytes", "why")


def table_rows(explanation: PlanExplanation) -> list[list[str | int]]:
    """A row per merged table, by `COLUMNS`."""
    return [
        [
            table.name,
            ", ".join(member.name for member in table.members),
            table.rows,
            table.dim,
            table.weight_bytes,
            table.optimizer_bytes,
            table.why,
        ]
        for table in explanation.tables
    ]


def render(explanation: PlanExplanation) -> RenderableType:
    """Tables for a terminal: what is merged, what is in it, what is not merged, tokens, and warnings."""
    merged = _table("Merged tables", "table", "rows", "dim", "bytes", "optimizer bytes")
    members = _table("What is in them", show_lines=True)
    members.add_column("table", no_wrap=True)
    members.add_column("logical tables")
    for table in explanation.tables:
        sizes = (readable_bytes(table.weight_bytes), readable_bytes(table.optimizer_bytes))
        merged.add_row(table.name, f"{table.rows:,}", str(table.dim), *sizes)
        members.add_row(table.name, f"{', '.join(member.name for member in table.members)}\n[dim]{table.why}[/]")
    groups = _table("Tokens a sample", "group", "tokens a row", "rows at most", "tokens at most")
    for name, each in explanation.tokens.items():
        groups.add_row(name, str(each.per_row), f"{each.rows:,}", f"{each.most:,}")
    parts: list[RenderableType] = [Text(explanation.summary), Text(), merged, members]
    if explanation.not_merged:
        refused = _table("Not merged")
        refused.add_column("tables")
        refused.add_column("why")
        for pair in explanation.not_merged:
            refused.add_row(" and ".join(pair.tables), pair.why)
        parts.append(refused)
    parts.append(groups)
    if len(explanation.bytes.ranks) > 1:
        parts.append(Text("bytes per rank: " + ", ".join(map(readable_bytes, explanation.bytes.ranks))))
    parts += [Text(f"warning: {warning}", style="yellow") for warning in explanation.warnings]
    return Group(*parts)


def _table(title: str, name: str = "", *numbers: str, show_lines: bool = False) -> Table:
    """A table with a column of names and columns of numbers."""
    table = Table(
        title=title,
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_lines=show_lines,
    )
    if name:
        table.add_column(name)
    for number in numbers:
        table.add_column(number, justify="right")
    return table

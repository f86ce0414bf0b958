"""Tables off a terminal."""

from __future__ import annotations

from io import StringIO

from rich.console import Console
from rich.table import Table

from genrank.schemas.console import print_whole


def test_no_number_is_cut_where_the_terminal_is_narrow() -> None:
    table = Table("metric", *(f"HR@{k}" for k in range(12)))
    table.add_row("retrieval", *(f"0.{k:04d}" for k in range(12)))
    report = StringIO()
    print_whole(table, console := Console(file=report, width=40))
    assert all(f"0.{k:04d}" in report.getvalue() and f"HR@{k}" in report.getvalue() for k in range(12))
    assert "…" not in report.getvalue() and console.width == 40

"""A refused day's page without Great Expectations, whose import would be most of what a small build takes."""

from __future__ import annotations

from pathlib import Path

from genrank.pipelines.gate.data_docs import PAGE


def plain_page(folder: Path) -> None:
    """As `data_docs.write_page`."""
    (folder / PAGE).write_text("<html></html>")

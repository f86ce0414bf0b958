"""`genrank clean` in the terminal."""

from __future__ import annotations

from genrank.pipelines.clean import Cleaned
from genrank.schemas.console import stdout


def print_cleaned(cleaned: Cleaned) -> None:
    """What was removed, in the terminal."""
    console = stdout()
    verb = "would remove" if cleaned.dry_run else "removed"
    for path in cleaned.paths:
        console.print(f"{verb} {path}")
    console.print(
        f"{len(cleaned.paths)} files and folders, {cleaned.bytes / 1e6:,.1f} MB"
        if cleaned.paths
        else "nothing to clean"
    )

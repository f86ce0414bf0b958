"""What is compacted and no build will read again."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from genrank.pipelines.compaction.records import USES, Compacted, Uses


def unused(root: Path, used: Collection[tuple[str, str, str]]) -> list[Path]:
    """Folders that `genrank clean` may remove: of uses that the schema built last doesn't have, of partials not `used` (source, day,
    key), half-made ones, and compacted histories but the newest two."""
    document = Uses.read(root / USES)
    known = document.root if document else {}
    found = []
    for use in sorted(root.glob("*/")):
        if use.name not in known:
            found.append(use)
            continue
        kept = []
        for folder in sorted(use.glob("dt=*/*")):
            compacted = Compacted.read(folder)
            covers = compacted.covers.items() if compacted else ()
            if compacted and all((known[use.name].source, dt, key) in used for dt, key in covers):
                kept.append(folder)
            else:
                found.append(folder)
        if known[use.name].snapshots:
            found += kept[:-2]
    return found

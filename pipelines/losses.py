"""What of the rows read didn't become samples, in words: duplicates and quarantined rows, source by source and reason by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from genrank.schemas.manifest import Counts


def losses(days: Iterable[Counts]) -> list[str]:
    """A line for each source that lost rows on some of the days: `clicks: 3 of 900 rows quarantined (ts is null: 3), 5 duplicates`."""
    rows: Counter[str] = Counter()
    duplicates: Counter[str] = Counter()
    reasons: dict[str, Counter[str]] = {}
    for counts in days:
        rows.update(counts.rows_in)
        duplicates.update(counts.duplicates)
        for source, quarantined in counts.quarantined.items():
            reasons.setdefault(source, Counter()).update(quarantined)
    lines = []
    for source in sorted(rows):
        parts = []
        if lost := {reason: count for reason, count in sorted(reasons.get(source, Counter()).items()) if count}:
            why = "; ".join(f"{reason}: {count:,}" for reason, count in lost.items())
            parts.append(f"{sum(lost.values()):,} of {rows[source]:,} rows quarantined ({why})")
        if duplicates[source]:
            parts.append(f"{duplicates[source]:,} of {rows[source]:,} rows are duplicates")
        if parts:
            lines.append(f"{source}: {', '.join(parts)}")
    return lines

"""What rows and columns of a source mean, as plain data: the parts of fingerprints that features, sequences and labels share.

Paths say where rows lie, not what they mean, so they have no part in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from genrank.schemas import expression
from genrank.schemas.source import EventLog, Snapshot
from genrank.schemas.type_rules import families, split

Meaning = dict[str, Any]
"""Part -> plain data (JSON) that says what it means."""


def rows_meaning(source: EventLog | Snapshot) -> Meaning:
    """Which rows of a source there are, who they are of, and when they are visible."""
    own: Meaning = {"name": source.name, "valid": sorted(source.valid)}
    read = {reference for condition in source.valid for reference in expression.columns(condition)}
    if isinstance(source, Snapshot):
        own |= {"key": column_meaning(source, source.key), "max_age": source.max_age}
    else:
        times = [source.time, *([source.arrival] if source.arrival else [])]
        # Without `dedup`, rows are one event if they agree on every declared column.
        read |= set(source.dedup or source.columns)
        own |= {
            "user": column_meaning(source, source.user),
            "times": [column_meaning(source, column) for column in times],
            "time_unit": None if all(source.columns[c] == "timestamp" for c in times) else source.time_unit,
            "delay": source.delay,
            "lateness": source.lateness,
            "dedup": sorted(source.dedup),
        }
    return own | {"columns": sorted([column, *column_meaning(source, column)] for column in read)}


def column_meaning(source: EventLog | Snapshot, column: str) -> list[str]:
    """[physical name, type up to its width], and the default if it has one."""
    default = [repr(source.defaults[column])] if column in source.defaults else []
    return [source.physical(column), *families([source.columns[column]]), *default]


def references_meaning(
    snapshots: Mapping[str, Snapshot], source: EventLog | Snapshot, references: Iterable[str]
) -> list[Any]:
    """What references mean when read from a row of `source`."""
    found: list[Any] = []
    for reference in references:
        snapshot, column = split(reference)
        owner = snapshots.get(snapshot or "", source)
        joined = owner.name != source.name and isinstance(owner, Snapshot)
        by = (
            column_meaning(source, owner.key)
            if joined and isinstance(owner, Snapshot) and owner.key in source.columns
            else None
        )
        found.append([column_meaning(owner, column), rows_meaning(owner) if joined else owner.name, by])
    return found


def sql_meaning(snapshots: Mapping[str, Snapshot], source: EventLog | Snapshot, text: str | None) -> list[Any] | None:
    """What a condition on a row of `source` means."""
    return [text, references_meaning(snapshots, source, expression.columns(text))] if text else None

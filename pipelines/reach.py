"""How far before and after a day built the rows of each source matter to it."""

from __future__ import annotations

from genrank.pipelines import cross_features, sequences
from genrank.pipelines.days import dt_of, whole_days
from genrank.schemas import EventLog, Schema, Snapshot
from genrank.schemas.base import parse_duration


def reach_of(schema: Schema) -> dict[str, tuple[int, int]]:
    """Source -> how many days before and after a day built its rows matter to it."""
    back = {source.name: 0 for source in schema.sources}
    ahead = dict(back)
    for name, days in cross_features.days_back(schema).items():
        back[name] = max(back[name], days)
    for sequence in schema.sequences:
        for entry in sequence.events:
            days = sequences.days_back(schema, sequence, schema.source(entry.source))
            back[entry.source] = max(back[entry.source], days)
    for label in schema.labels:
        if label.source:
            reach = schema.local_days.covering(parse_duration(label.window)) + 1
            ahead[label.source] = max(ahead[label.source], reach)
            if label.attribution == "last":
                exposures = schema.candidates.source
                ahead[exposures] = max(ahead[exposures], reach)
    return {name: (back[name], ahead[name]) for name in back}


def landed_days(schema: Schema, source: EventLog | Snapshot, first: int, last: int) -> tuple[str, str]:
    """The days of a source read through Spark that samples of first .. last may read, late rows and older snapshots included."""
    if isinstance(source, EventLog):
        back, ahead = reach_of(schema)[source.name]
        return dt_of(first - back), dt_of(last + ahead + whole_days(parse_duration(source.lateness)))
    back = max(back for back, _ in reach_of(schema).values())
    return dt_of(first - back - whole_days(parse_duration(source.max_age)) - 1), dt_of(last)

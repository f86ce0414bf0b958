"""What past days are read for: a log at the keys of a key set, or an entry of a history."""

from __future__ import annotations

from dataclasses import dataclass

from genrank.pipelines import cross_features
from genrank.pipelines.columns import sequence_features
from genrank.pipelines.cross_features import KeySet, key_sets
from genrank.schemas import EventLog, EventSequence, Schema
from genrank.schemas.digest import digest


@dataclass(frozen=True)
class TileUse:
    """A log at the keys of a key set."""

    source: str
    key_set: KeySet

    def name(self, schema: Schema) -> str:
        """Folder of its tiles: equal names, equal contents (given the partials)."""
        log = schema.event_log(self.source)
        columns = [column.name for column in cross_features.event_columns(self.key_set, log)]
        newest = sorted(cross_features.newest_ops(self.key_set, log))
        meaning = [*_of_source(schema, self.source), self.key_set.keys, self.key_set.distinct, columns, newest]
        hashed = digest([*meaning, log.arrival is not None])
        return f"{self.source}-by-{'-'.join(self.key_set.keys) or 'all'}-{hashed[:8]}"


@dataclass(frozen=True)
class SequenceUse:
    """An entry of a sequence. That of a realtime one is read from its partials alone."""

    source: str
    sequence: EventSequence
    kind: int
    """Position in the sequence's `events`."""

    def name(self, schema: Schema) -> str:
        """Folder of its histories: equal names, equal contents (given the partials)."""
        features = [
            feature.model_dump(mode="json", include={"name", "column", "expression", "max_values"}) | {"stored": stored}
            for feature, stored in sequence_features(self.sequence)
        ]
        entry = self.sequence.events[self.kind].model_dump(mode="json")
        hashed = digest([*_of_source(schema, self.source), features, entry, self.sequence.max_length])
        return f"{self.source}-{self.sequence.name}-{hashed[:8]}"


Use = TileUse | SequenceUse


def _of_source(schema: Schema, name: str) -> list[object]:
    source = schema.source(name)
    return [schema.utc_offset, source.delay if isinstance(source, EventLog) else None]


def tile_uses(schema: Schema) -> list[TileUse]:
    """Every log of every key set, in a fixed order."""
    return [TileUse(log, key_set) for key_set in key_sets(schema) for log in key_set.windows(schema)]


def sequence_uses(schema: Schema) -> list[SequenceUse]:
    """Every entry of every sequence, in a fixed order."""
    return [
        SequenceUse(entry.source, sequence, kind)
        for sequence in schema.sequences
        for kind, entry in enumerate(sequence.events)
    ]

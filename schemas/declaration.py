"""What is declared of one ranking problem, as it is written: sources, token groups, labels, training.

`schema.Schema` is this with validation and fingerprints on top; whatever derives something from a declaration, or looks for mistakes
in it, needs this alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from pydantic import Field

from genrank.schemas.base import CANDIDATES, USER, Declaration, Name
from genrank.schemas.drift import DriftLimits
from genrank.schemas.features import Feature
from genrank.schemas.group import Candidates, EventSequence, UserGroup
from genrank.schemas.label import Label, Training
from genrank.schemas.local_days import PATTERN, LocalDays
from genrank.schemas.source import EventLog, Snapshot, Source


def _is_default(value: object) -> bool:
    return value == DriftLimits()  # Declarations of before have no such field: theirs are the fingerprints without it.


class SchemaDeclaration(Declaration):
    """One ranking problem, declared once; nothing is checked but each field's own form."""

    name: Name
    sources: tuple[Source, ...] = Field(min_length=1)
    user: UserGroup = UserGroup()
    sequences: tuple[EventSequence, ...] = ()
    candidates: Candidates
    labels: tuple[Label, ...] = Field(min_length=1)
    training: Training = Training()
    drift: DriftLimits = Field(default=DriftLimits(), exclude_if=_is_default)
    """How far a day may lie from the days published before it."""
    utc_offset: str = Field(default="+00:00", pattern=PATTERN)
    """Days begin at midnight of this offset, and time parts are read in it: a fixed one ("+08:00"), or a time zone's ("Europe/Berlin"),
    whose days have 23 or 25 hours where its clocks are moved."""
    description: str = ""

    # ------------------------------------------------------------------ looking things up

    def source(self, name: str) -> EventLog | Snapshot:
        """The source of that name; KeyError if there is none."""
        return self._sources[name]

    def event_log(self, name: str) -> EventLog:
        """The event log of that name; KeyError if there is none."""
        source = self._sources[name]
        if not isinstance(source, EventLog):
            raise KeyError(name)
        return source

    @cached_property
    def _sources(self) -> dict[str, EventLog | Snapshot]:
        return {source.name: source for source in self.sources}

    @property
    def exposures(self) -> EventLog:
        """The event log whose rows are ranked."""
        return self.event_log(self.candidates.source)

    @property
    def histories(self) -> tuple[EventSequence, ...]:
        """Sequences of scope history, in declaration order."""
        return tuple(s for s in self.sequences if s.scope == "history")

    @property
    def realtime(self) -> EventSequence | None:
        """The one sequence of scope realtime, if declared."""
        return next((s for s in self.sequences if s.scope == "realtime"), None)

    def groups(self) -> Iterator[tuple[str, tuple[Feature, ...]]]:
        """(group name, features in canonical order: by name) in token order U | S | R | C."""
        yield USER, _by_name(self.user.features)
        for sequence in (*self.histories, *(s for s in self.sequences if s.scope == "realtime")):
            yield sequence.name, _by_name(sequence.features)
        yield CANDIDATES, _by_name(self.candidates.features)

    @cached_property
    def local_days(self) -> LocalDays:
        """When days begin, and what the clocks show."""
        return LocalDays(self.utc_offset)


def _by_name(features: tuple[Feature, ...]) -> tuple[Feature, ...]:
    return tuple(sorted(features, key=lambda feature: feature.name))

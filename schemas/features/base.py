"""What every feature kind knows of itself, and what it may ask of the schema it stands in.

A kind says what it reads, how the sample stores it, in which table it looks rows up, its part of the fingerprints, its mistakes and its
words for documentation. The defaults here are those of a feature that reads one column (`ColumnFeature`) or none.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import Literal, Protocol

import pyarrow as pa

from genrank.schemas.base import CANDIDATES, ColumnType, Name
from genrank.schemas.findings import ColumnValues, Finding
from genrank.schemas.kind import Kind
from genrank.schemas.messages import and_
from genrank.schemas.source import EventLog, Snapshot
from genrank.schemas.source_meaning import Meaning, references_meaning
from genrank.schemas.stored import Stored
from genrank.schemas.table import LogicalTable, Table
from genrank.schemas.transforms import Transform
from genrank.schemas.type_rules import Types, families, id_space
from genrank.schemas.vocabularies import Identity, Vocabulary


class Scope(Protocol):
    """The schema a feature stands in, as far as features ask about it: `derive.columns.SchemaScope`.

    A reference is `column` (of the row itself) or `snapshot.column`.
    """

    @property
    def event_logs(self) -> Mapping[str, EventLog]:
        """Event logs by name."""
        ...

    @property
    def snapshots(self) -> Mapping[str, Snapshot]:
        """Snapshots by name."""
        ...

    @property
    def exposures_name(self) -> str:
        """The name of the log whose rows are ranked, whether or not it exists."""
        ...

    def features(self, group: str) -> Mapping[str, Feature]:
        """Features of a group by name."""
        ...

    def rows(self, group: str) -> list[tuple[str, dict[str, ColumnType]]]:
        """(source name, reference -> type) of every kind of row in a group."""
        ...

    def offered(self, group: str) -> Types:
        """Reference -> type of what a feature of the group may read."""
        ...

    def joined(self, own: Types) -> Types:
        """A row's own columns, and those of snapshots that it can be joined with."""
        ...

    def unknown_column(self, group: str, reference: str) -> str:
        """What to say of a reference that the group's features can't read."""
        ...

    def unknown_log(self, name: str) -> str:
        """What to say of a source that is no event log."""
        ...

    def request_mistakes(self, at: str) -> Iterator[str]:
        """Why the schema's candidates can't be compared within their request."""
        ...


class Feature(Kind):
    """A value (where it comes from) and an encoding (how it becomes a vector)."""

    name: Name
    description: str = ""
    owner: str = ""

    # ------------------------------------------------------------------ what it reads

    @property
    def column_reference(self) -> str | None:
        """The one column it reads of its row; None for what reads none, several, or SQL."""
        return None

    @property
    def row_sql(self) -> str | None:
        """The SQL over its row that its value is computed by; None for what is no SQL."""
        return None

    def references(self) -> tuple[str, ...]:
        """Every reference it reads of its own row. ValueError if its SQL doesn't parse."""
        return (self.column_reference,) if self.column_reference else ()

    @property
    def past_logs(self) -> tuple[str, ...]:
        """Event logs whose past events it counts."""
        return ()

    def past_references(self, log: str) -> frozenset[str]:
        """What it reads of past events of a log, the keys they are found by aside."""
        return frozenset()

    @property
    def exposure_keys(self) -> tuple[str, ...]:
        """References of the exposure by which it finds past events."""
        return ()

    @property
    def derived_from(self) -> tuple[str, ...]:
        """Features whose stored values it is derived from: `name` of its own group, or `user.name`."""
        return ()

    def lineage(self, group: str, scope: Scope) -> Iterator[tuple[str, Collection[str]]]:
        """(source, references read when standing at a row of it)."""
        for source, own in scope.rows(group):
            yield source, [reference for reference in self.references() if reference in own]

    # ------------------------------------------------------------------ how it is stored

    @property
    @abstractmethod
    def stored(self) -> Stored | None:
        """How the sample keeps it; None where the reader derives it from what is stored."""

    @property
    def list_limit(self) -> int:
        """Most ids that a stored list of it holds; 0 for no limit. Read only of what is stored as `ids`."""
        return 0

    @property
    def vector_length(self) -> int:
        """Numbers of a stored vector of it; 0 for what is none."""
        return 0

    @property
    def comparable(self) -> bool:
        """Whether it is one number of a candidate's own, which others may be computed from when samples are read."""
        return self.stored == "number"

    @property
    def is_id(self) -> bool:
        """Whether it is one stored id, which may be crossed with others."""
        return False

    # ------------------------------------------------------------------ how it is encoded

    @property
    def number_transform(self) -> Transform | None:
        """How its number is encoded, defaults resolved; None for what is no number."""
        return None

    @property
    def shared_table(self) -> Table | None:
        """The table it shares by name."""
        return None

    @property
    def own_vocabulary(self) -> tuple[Vocabulary, int] | None:
        """(vocabulary, dim) of a table of its own."""
        return None

    @property
    def list_pooling(self) -> Literal["sum", "mean"] | None:
        """How the rows of a list of ids become one vector; None for one id."""
        return None

    @property
    def id_vocabulary(self) -> Vocabulary | None:
        """The vocabulary of its ids: its table's, or its own."""
        if self.shared_table:
            return self.shared_table.vocabulary
        return self.own_vocabulary[0] if self.own_vocabulary else None

    def looked_up(self, group: str) -> LogicalTable | None:
        """The table in which it looks rows up, with itself as the only user; None for numbers without buckets."""
        own = f"{group}.{self.name}"
        if table := self.shared_table:
            return LogicalTable(table.name, (own,), table.dim, table.vocabulary, table.initializer, table.optimizer)
        if self.own_vocabulary:
            vocabulary, dim = self.own_vocabulary
            return LogicalTable(own, (own,), dim, vocabulary)
        if self.number_transform and (shape := self.number_transform.table_shape):
            return LogicalTable(own, (own,), shape[1], Identity(size=shape[0]))
        return None

    # ------------------------------------------------------------------ its part of the fingerprints

    def samples_meaning(self, group: str, scope: Scope) -> Meaning:
        """What its stored value is made of, as plain data."""
        sources: list[object] = []
        known: dict[str, EventLog | Snapshot] = {**scope.event_logs, **scope.snapshots}
        for name, offered in scope.rows(group):
            read = [reference for reference in self.references() if reference in offered]
            sources.append(references_meaning(scope.snapshots, known[name], read))
        return {"sources": sources}

    def model_meaning(self) -> Meaning:
        """How its value becomes a vector, beyond its table and transform, as plain data."""
        return {"pooling": self.list_pooling} if self.list_pooling else {}

    # ------------------------------------------------------------------ its mistakes

    def mistakes(self, at: str, group: str, scope: Scope) -> Iterator[str]:
        """Why it can't be built: what it reads, and its encoding. A line each that begins with its place, `at`."""
        yield from ()

    def encoding_mistakes(self, at: str) -> Iterator[str]:
        """Of its transform and vocabulary."""
        if self.number_transform:
            yield from self.number_transform.mistakes(at)
        if self.id_vocabulary:
            yield from self.id_vocabulary.mistakes(at)

    def id_space(self, group: str, scope: Scope) -> str | None:
        """Which ids it looks up with: `strings`, `integers`, `crossed ids`; None for no id, or where that is a mistake."""
        return None

    def advice(self) -> Iterator[str]:
        """What it may say but had better not."""
        if self.number_transform:
            yield from self.number_transform.advice(long_tail=False)

    def findings(self, values: ColumnValues) -> Iterator[Finding]:
        """Where a sample of its column's values shows that it fits badly."""
        yield from ()

    # ------------------------------------------------------------------ its words

    def value_in_words(self) -> str:
        """What its value is."""
        return self.column_reference or self.name

    def encoding_in_words(self) -> str:
        """How the value becomes a vector: `16 quantile buckets × 8`, `log(1 + x)`, `dynamic, 16,384 rows × 32, mean of 4`."""
        if self.number_transform:
            return self.number_transform.in_words()
        table = self.looked_up(CANDIDATES)
        if table is None:
            return ""
        return f"{table.vocabulary.in_words()} × {table.dim}"


class ColumnFeature(Feature):
    """A feature that reads one column of its row."""

    @property
    @abstractmethod
    def column_reference(self) -> str | None:
        """The column."""

    @abstractmethod
    def type_mistakes(self, type_: ColumnType) -> Iterator[str]:
        """Why it can't read a column of this type, and what to use instead; without the column, which the caller names."""

    def mistakes(self, at: str, group: str, scope: Scope) -> Iterator[str]:
        """The column is there, of one type, that the kind can encode."""
        reference, types = self.column_reference, scope.offered(group)
        if reference is None:
            return
        if reference not in types:
            yield f"{at}: {scope.unknown_column(group, reference)}"
            return
        having = [(source, own[reference]) for source, own in scope.rows(group) if reference in own]
        if len(families(type_ for _, type_ in having)) > 1:
            each = [f"{type_} in {source}" for source, type_ in having]
            yield f"{at}: column {reference!r} is {and_(each)}; a feature has one type: declare one, or read them as two features"
            return
        for mistake in self.type_mistakes(types[reference]):
            yield f"{at}: column {reference!r} is of type {types[reference]}; {mistake}"
        if self.id_vocabulary and id_space(types[reference]):
            text = id_space(types[reference]) == "strings"
            yield from self.id_vocabulary.id_mistakes(at, reference, text=text)

    def id_space(self, group: str, scope: Scope) -> str | None:
        """Of its column."""
        return id_space(scope.offered(group).get(self.column_reference or ""))

    def findings(self, values: ColumnValues) -> Iterator[Finding]:
        """Of its vocabulary or transform."""
        present = values.present
        if self.id_vocabulary:
            if pa.types.is_boolean(present.type):
                present = present.cast(pa.int32())
            yield from self.id_vocabulary.findings(values, present)
        elif self.number_transform and (pa.types.is_floating(present.type) or pa.types.is_integer(present.type)):
            yield from self.number_transform.findings(values)

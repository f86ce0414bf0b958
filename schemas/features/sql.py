"""A SQL expression over one row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from genrank.schemas import expression
from genrank.schemas.base import ColumnType
from genrank.schemas.features.base import Scope
from genrank.schemas.features.embedded import TableLookup
from genrank.schemas.messages import and_
from genrank.schemas.source_meaning import Meaning
from genrank.schemas.stored import Stored
from genrank.schemas.table import Table
from genrank.schemas.transforms import Log1p, Transform
from genrank.schemas.type_rules import NUMBERS, id_space
from genrank.schemas.vocabularies import Vocabulary


class Sql(TableLookup):
    """Escape hatch: a SQL expression over the row's columns and its snapshots' (`price / items.list_price`)."""

    kind: Literal["sql"] = "sql"
    expression: str
    type: ColumnType
    transform: Transform | None = None
    table: Table | None = None
    vocabulary: Vocabulary | None = None
    dim: int | None = Field(default=None, gt=0)

    needs_table: ClassVar[bool] = False

    @property
    def embedded(self) -> bool:
        """Whether it is an id or a list of them; a number otherwise."""
        return bool(self.table or self.vocabulary)

    @property
    def row_sql(self) -> str:
        """`expression`."""
        return self.expression

    def references(self) -> tuple[str, ...]:
        """Columns of the expression."""
        return expression.columns(self.expression)

    @property
    def stored(self) -> Stored:
        """As a number, or with a table as an id or a list of ids."""
        if not self.embedded:
            return "number"
        return "ids" if self.type.startswith("list") else "id"

    @property
    def is_id(self) -> bool:
        """With a table, and no list."""
        return self.stored == "id"

    @property
    def number_transform(self) -> Transform | None:
        """Of a number: `transform`, or Log1p."""
        return None if self.embedded else self.transform or Log1p()

    @property
    def list_pooling(self) -> Literal["sum", "mean"] | None:
        """A list's mean."""
        return "mean" if self.type.startswith("list") else None

    def samples_meaning(self, group: str, scope: Scope) -> Meaning:
        """The expression, too."""
        return {"expression": self.expression, **super().samples_meaning(group, scope)}

    def model_meaning(self) -> Meaning:
        """Nothing more: the one pooling of lists follows from the type."""
        return {}

    def id_space(self, group: str, scope: Scope) -> str | None:
        """Of its type."""
        return id_space(self.type)

    def mistakes(self, at: str, group: str, scope: Scope) -> Iterator[str]:
        """A type that can be encoded, and an expression of that type that each source can evaluate."""
        if self.type in ("timestamp", "list<float32>"):
            yield f"{at}: a feature can't be of type {self.type}; declare an id, a list of ids or a number"
        elif not self.embedded and self.type not in NUMBERS:
            yield f"{at}: type {self.type} needs a table, or vocabulary and dim; without them a SQL feature is a number"
        elif self.embedded and self.type in ("float32", "float64"):
            yield f"{at}: type {self.type} with a vocabulary; declare int64 or string for an id, or drop the vocabulary for a number"
        if self.id_vocabulary is not None:
            yield from self.id_vocabulary.id_mistakes(at, self.expression, text="string" in self.type)
        yield from self._expression_mistakes(at, group, scope)

    def _expression_mistakes(self, at: str, group: str, scope: Scope) -> Iterator[str]:
        try:
            parsed = expression.parse(self.expression)
        except ValueError as error:
            yield f"{at}: {error}"
            return
        types = scope.offered(group)
        unknown = [reference for reference in parsed.columns if reference not in types]
        for reference in unknown:
            yield f"{at}: {scope.unknown_column(group, reference)}"
        if unknown:
            return
        whole = [own for _, own in scope.rows(group) if all(reference in own for reference in parsed.columns)]
        if not whole:
            yield f"{at}: no single source of the sequence has all of {and_(parsed.columns)}; write one feature per source"
        for own in whole:
            try:
                kind = parsed.kind(own)
            except ValueError as error:
                yield f"{at}: {error}"
                return
            if not expression.fits(kind, self.type):
                yield f"{at}: the expression gives {kind}, not {self.type}; declare that type, or CAST"
                return

    def encoding_mistakes(self, at: str) -> Iterator[str]:
        """A vocabulary or a transform, not both."""
        yield from super().encoding_mistakes(at)
        if self.transform and self.embedded:
            yield f"{at}: both a vocabulary and a transform are given; a vocabulary for an id, a transform for a number"

    def value_in_words(self) -> str:
        """The expression."""
        return self.expression

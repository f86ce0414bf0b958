"""Features that look a row of a table up by an id, or by each id of a list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from genrank.schemas.features.base import Feature
from genrank.schemas.table import Table
from genrank.schemas.vocabularies import Vocabulary


class TableLookup(Feature):
    """What a kind with the fields `table`, `vocabulary` and `dim` does with them."""

    if TYPE_CHECKING:
        table: Table | None
        vocabulary: Vocabulary | None
        dim: int | None

    needs_table: ClassVar[bool] = True
    """Whether it is an id in any case, so that it can't do without."""

    @property
    def shared_table(self) -> Table | None:
        """`table`."""
        return self.table

    @property
    def own_vocabulary(self) -> tuple[Vocabulary, int] | None:
        """`vocabulary` and `dim`."""
        return (self.vocabulary, self.dim) if self.vocabulary and self.dim else None

    @property
    def id_vocabulary(self) -> Vocabulary | None:
        """The table's, or its own, with or without a `dim`."""
        return self.table.vocabulary if self.table else self.vocabulary

    def encoding_mistakes(self, at: str) -> Iterator[str]:
        """Either a table, or vocabulary and dim."""
        own = [name for name in ("vocabulary", "dim") if getattr(self, name) is not None]
        if self.table and own:
            yield f"{at}: both table and {' and '.join(own)} are given; keep the table, or its own vocabulary and dim"
        elif not self.table and len(own) == 1:
            yield f"{at}: {own[0]} without {'dim' if own == ['vocabulary'] else 'vocabulary'}; give both, or a table"
        elif not self.table and not own and self.needs_table:
            yield f"{at}: no table; give table=, or vocabulary= and dim= for one of its own"
        yield from super().encoding_mistakes(at)


class EmbeddedFeature(TableLookup):
    """Encoded by a row of a table: a shared `table`, or one of its own from `vocabulary` and `dim`."""

    table: Table | None = None
    vocabulary: Vocabulary | None = None
    dim: int | None = Field(default=None, gt=0)

"""What every vocabulary knows of itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from genrank.schemas.findings import ColumnValues, Finding
from genrank.schemas.kind import Kind


class Vocabulary(Kind):
    """How ids become rows of an embedding table.

    A kind has a field or property `size`: the rows of its table beside the two special ones (see `schemas.ids`); at most so many, where
    ids get rows as training meets them.
    """

    if TYPE_CHECKING:

        @property
        def size(self) -> int:
            """Rows beside the two special ones."""
            ...

    @property
    def grows(self) -> bool:
        """Whether ids get their rows as training meets them, through the id map before the table."""
        return False

    @property
    def holds_hashes(self) -> bool:
        """Whether any int64 has a row: what crossed ids need."""
        return True

    @property
    def is_closed(self) -> bool:
        """Whether the declaration bounds the ids themselves, so that few of them need few dimensions."""
        return False

    def id_mistakes(self, at: str, what: str, *, text: bool) -> Iterator[str]:
        """Why it can't hold the ids of `what`: strings (`text`) or integers."""
        yield from ()

    def mistakes(self, at: str) -> Iterator[str]:
        """Of its own fields."""
        yield from ()

    def advice(self) -> Iterator[str]:
        """What it may say but had better not."""
        yield from ()

    def findings(self, values: ColumnValues, present: pa.ChunkedArray) -> Iterator[Finding]:
        """Where a sample of a column's values (`present`: no nulls, lists flattened, integers or strings) shows that it fits badly."""
        yield from ()

    def carries_over(self, new: Vocabulary) -> bool:
        """Whether every row keeps its id under `new`, a vocabulary of the same kind: only rows were added, at the end."""
        return self == new

    def model_meaning(self) -> dict[str, Any]:
        """What decides which row an id reads, as plain data: its part of the model's fingerprint."""
        return self.model_dump(mode="json")

    def in_words(self) -> str:
        """`hashed, 4,096`."""
        return f"{self.kind}, {self.size:,}"

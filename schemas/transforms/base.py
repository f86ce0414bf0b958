"""What every transform of a number knows of itself."""

from __future__ import annotations

from collections.abc import Iterator

from genrank.schemas.findings import ColumnValues, Finding
from genrank.schemas.kind import Kind


class Transform(Kind):
    """How a number becomes an input of its token: a dense input, or a row of a table of buckets."""

    @property
    def table_shape(self) -> tuple[int, int] | None:
        """(buckets, dim) of the table it looks its row up in; None where it looks nothing up."""
        return None

    def mistakes(self, at: str) -> Iterator[str]:
        """Of its fields, each a line that begins with the feature, `at`."""
        yield from ()

    def advice(self, *, long_tail: bool) -> Iterator[str]:
        """What it may say but had better not of a number; `long_tail`: most values are small and a few are huge."""
        yield from ()

    def findings(self, values: ColumnValues) -> Iterator[Finding]:
        """Where a sample of a numeric column's values shows that it fits badly."""
        yield from ()

    def moves_rows(self, new: Transform) -> bool:
        """Whether its table keeps its shape under `new` while its rows come to mean something else."""
        return False

    def in_words(self) -> str:
        """`16 quantile buckets × 8`."""
        return self.kind

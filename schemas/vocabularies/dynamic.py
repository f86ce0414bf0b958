"""Rows that ids get as training meets them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from genrank.schemas.base import Duration, parse_duration
from genrank.schemas.findings import ColumnValues, Finding
from genrank.schemas.vocabularies.base import Vocabulary


class Dynamic(Vocabulary):
    """Ids get rows as training meets them."""

    kind: Literal["dynamic"] = "dynamic"
    capacity: int = Field(gt=0)
    """Rows at most; beyond it `evict` chooses which to free."""
    admit_after: int = Field(default=1, ge=1)
    """An id gets a row of its own at this many sightings; until then it reads the unknown row."""
    evict: Literal["age", "frequency"] = "age"
    max_age: Duration | None = None
    """Rows unseen for longer are evicted even when the table is not full."""

    @property
    def size(self) -> int:
        """The capacity."""
        return self.capacity

    @property
    def grows(self) -> bool:
        """Yes."""
        return True

    def mistakes(self, at: str) -> Iterator[str]:
        """A max_age that keeps something."""
        if self.max_age and parse_duration(self.max_age) == 0:
            yield f"{at}: max_age 0 evicts every id at once; leave it out to evict only when the table is full"

    def advice(self) -> Iterator[str]:
        """Large tables admit what recurs."""
        if self.admit_after == 1 and self.capacity >= 1_000_000:
            yield "every id gets a row at first sight; admit_after=2 or more keeps ids seen once from pushing others out"

    def findings(self, values: ColumnValues, present: pa.ChunkedArray) -> Iterator[Finding]:
        """More ids in a day's sample than there are rows."""
        counts = pc.value_counts(present).field("counts")
        admitted = int(pc.sum(pc.greater_equal(counts, self.admit_after)).as_py())
        if admitted > self.capacity:
            yield values.warning(
                f"{admitted:,} values of {values.home} are admitted in one day's sample, capacity {self.capacity:,}: rows are evicted at "
                "once"
            )

    def carries_over(self, new: Vocabulary) -> bool:
        """It may grow; admission and eviction decide about rows that are still to come."""
        return isinstance(new, Dynamic) and new.capacity >= self.capacity

    def model_meaning(self) -> dict[str, Any]:
        """The capacity: admission and eviction change no row that is there."""
        return {"kind": self.kind, "capacity": self.capacity}

    def in_words(self) -> str:
        """`dynamic, at most 16,384 ids, admitted at sighting 3, evicted by age`."""
        admitted = f", admitted at sighting {self.admit_after}" if self.admit_after > 1 else ""
        return f"dynamic, at most {self.capacity:,} ids{admitted}, evicted by {self.evict}"

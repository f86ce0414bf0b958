"""Any id, by its hash."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from genrank.schemas.findings import ColumnValues, Finding
from genrank.schemas.vocabularies.base import Vocabulary


class Hashed(Vocabulary):
    """Any id, hashed into `size` buckets: no admission, collisions accepted."""

    kind: Literal["hashed"] = "hashed"
    size: int = Field(gt=0)

    def advice(self) -> Iterator[str]:
        """Buckets enough to distinguish ids."""
        if self.size < 8:
            yield f"{self.size} buckets mix most ids; use Enumerated or Identity for so few values"

    def findings(self, values: ColumnValues, present: pa.ChunkedArray) -> Iterator[Finding]:
        """Many ids that share their bucket: of d ids one shares with another with probability 1 - (1 - 1/size)^(d-1)."""
        different = int(pc.count_distinct(present).as_py())
        shared = 1 - math.exp((different - 1) * math.log1p(-1 / self.size)) if self.size > 1 else float(different > 1)
        if shared > 0.3 and different > 10:
            yield values.warning(
                f"{different:,} different values of {values.home} in {self.size:,} buckets: {shared:.0%} share theirs with another"
            )

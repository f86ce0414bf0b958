"""Which ids published samples hold, feature by feature: what `explain` compares a plan with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from genrank.schemas.derive.sample_schema import leaves
from genrank.schemas.files import reading
from genrank.schemas.ids import MISSING_ID
from genrank.schemas.manifest import opened
from genrank.schemas.schema import Schema
from genrank.tokenization.reader import SampleReader

COUNTED_ROWS = 1 << 18
"""Stored rows that ids are counted in at most, in row groups spread evenly over the days."""


@dataclass(frozen=True)
class ObservedIds:
    """The ids of one feature."""

    ids: npt.NDArray[np.int64]
    """[U], ascending, without the missing one; of a string column the hashes."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def range(self) -> str:
        """`low..high`."""
        return f"{self.ids[0]:,}..{self.ids[-1]:,}"


def observe_ids(
    samples_root: Path | str, schema: Schema, dates: Sequence[str], *, max_rows: int = COUNTED_ROWS
) -> dict[str, ObservedIds]:
    """`<group>.<feature>` -> its ids in some days' samples, for every feature that is stored as ids.

    Raises:
        UserError: as `SampleReader`.
    """
    units = SampleReader(samples_root, schema, dates, view="user_day", shuffle=False).row_groups
    share = max(1, -(-sum(unit.rows for unit in units) // max_rows))
    wanted = [leaf for leaf in leaves(schema) if leaf.stored in ("id", "ids")]
    found = {f"{leaf.group}.{leaf.name}": np.zeros(0, np.int64) for leaf in wanted}
    for unit in units[::share]:
        with reading(unit.path):
            table = pq.ParquetFile(opened(unit.path), memory_map=True).read_row_group(unit.number, columns=list(found))
        for leaf in wanted:
            name = f"{leaf.group}.{leaf.name}"
            for chunk in table[leaf.group].chunks:
                values = chunk.field(leaf.name)
                while pa.types.is_list(values.type):
                    values = values.flatten()
                found[name] = np.union1d(found[name], values.to_numpy())
    return {name: ObservedIds(ids[ids != MISSING_ID]) for name, ids in found.items()}

"""Rows that can't be used: the first check each fails, and the rows themselves, kept with that reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genrank.pipelines.arrays import frame_of
from genrank.pipelines.column_roles import Column
from genrank.pipelines.columns import compute
from genrank.pipelines.engine import Piece
from genrank.pipelines.merge_scan import Bool, Int
from genrank.pipelines.messages import QuarantinedRows
from genrank.schemas import EventLog, Snapshot


@dataclass(frozen=True)
class Reasons:
    """Why each row can't be used: the first check that it fails."""

    names: list[str]
    which: NDArray[np.int16]
    """Position among `names`; -1 for a good row."""

    @classmethod
    def first(cls, rows: int, checks: Iterable[tuple[str, Bool]]) -> Reasons:
        """Of rows that each check (name, which rows fail it) is asked about in turn."""
        names: list[str] = []
        which = np.full(rows, -1, np.int16)
        for name, failed in checks:
            if failed.any():
                which[failed & (which < 0)] = len(names)
            names.append(name)
        return cls(names, which)

    @property
    def good(self) -> Bool:
        """Rows that no check fails."""
        found: Bool = self.which < 0
        return found


def failed_conditions(source: EventLog | Snapshot, rows: pa.RecordBatch) -> Iterator[tuple[str, Bool]]:
    """(reason, rows that don't meet it) of each of the source's `valid` conditions."""
    if source.valid:
        checks = [Column("flag", condition, sql=True) for condition in source.valid]
        met = compute(frame_of(rows), source, tuple(checks))
        for check in checks:
            yield f"not valid: {check.expression}", ~met[check.name].to_numpy(zero_copy_only=False)


def quarantined(
    source: EventLog | Snapshot, rows: pa.RecordBatch, reasons: Reasons, day: Int, slots: NDArray[np.int32]
) -> Iterator[Piece]:
    """The bad rows on their way to their buckets' quarantine."""
    bad = np.flatnonzero(~reasons.good)
    if len(bad):
        table = pa.Table.from_batches([rows]).take(pa.array(bad))
        names = [reasons.names[i] for i in reasons.which[bad].tolist()]
        message = QuarantinedRows.because(table, names, day[bad])
        yield Piece(slots[bad], message.tag(source.name), message.table())

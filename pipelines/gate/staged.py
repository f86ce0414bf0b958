"""Staged files read back: what each holds, and the samples of the users to be recomputed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genrank.pipelines.arrays import single_array
from genrank.pipelines.engine import Piece
from genrank.pipelines.gate.invariants import broken_invariants
from genrank.pipelines.gate.users import draw
from genrank.pipelines.leaf_summaries import summarize
from genrank.pipelines.messages import DRIVER, LeafSummary, SampleReport, StagedReport
from genrank.pipelines.sample_columns import TS, USER_ID
from genrank.schemas import Schema
from genrank.schemas.files import reading
from genrank.schemas.schema import CANDIDATES


@dataclass(frozen=True)
class StagedReader:
    """Reads a file as it was staged; travels to tasks by pickle."""

    TAG: ClassVar[str] = "recomputed"

    schema: Schema
    as_of: int
    landed: Mapping[str, frozenset[int]]
    buckets: int
    below: Mapping[int, int]
    """Day -> users that draw less (`users.draw`) are to be recomputed; none of a day that isn't there."""

    @classmethod
    def tag(cls, day: int) -> str:
        """Samples of users to be recomputed."""
        return f"{cls.TAG}:{day}"

    def read(self, file: SampleReport) -> Iterator[Piece]:
        """Map step: the file's `StagedReport`, its `LeafSummary`s, and whole samples.

        Raises:
            UserError: the file is missing or can't be read.
        """
        path = Path(file.path)
        with reading(path, "nothing was published: build again", at="quality gate: staged file "):
            content = path.read_bytes()
            opened = pq.ParquetFile(pa.py_buffer(content), page_checksum_verification=True)
            table = opened.read(use_threads=False)
        broken = broken_invariants(table, self.schema, file.day, self.as_of, self.landed, file.bucket, self.buckets)
        sound = not (broken.counts["contract"] or broken.counts["lengths"])
        yield StagedReport(
            file.day,
            file.bucket,
            rows=table.num_rows,
            candidates=_candidates(table) if sound else 0,
            sha256=hashlib.sha256(content).hexdigest(),
            broken=broken.counts,
            examples=broken.examples,
        ).piece()
        if not sound:
            return
        yield LeafSummary.pieces(list(summarize(table, self.schema, file.day)))
        if file.day in self.below:
            chosen = draw(table.column(USER_ID), file.day) < np.uint64(self.below[file.day])
            if chosen.any():
                yield Piece(DRIVER, self.tag(file.day), table.filter(pa.array(chosen)).replace_schema_metadata())


def _candidates(table: pa.Table) -> int:
    times = single_array(table.column(CANDIDATES)).field(TS)
    total: int = pc.sum(pc.list_value_length(times)).as_py() or 0
    return total

"""Which items there are, and how often each was responded to: read off the samples' candidates, without batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from genrank.model.sample_files import read_columns
from genrank.schemas.ids import MISSING_ID
from genrank.schemas.manifest import sample_files
from genrank.schemas.schema import Schema

Events = tuple[str, str]
"""(sequence, feature) that holds items' ids, beside the candidates."""


def responses(
    samples: Path,
    schema: Schema,
    dates: Sequence[str],
    task: str,
    items: NDArray[np.int64],
    events: Events | None = None,
) -> NDArray[np.int64]:
    """[N] int64: how often each item (ascending) was a positive candidate on some days, or one of `events` in their samples."""
    counts = np.zeros(len(items), np.int64)
    for date in dates:
        for file in sample_files(samples, date, schema):
            table = read_columns(file, ["candidates.item", f"labels.{task}"])
            ids, labels = (
                pc.struct_field(table[group].combine_chunks(), name).flatten().to_numpy(zero_copy_only=False)
                for group, name in (("candidates", "item"), ("labels", task))
            )
            found = [ids[labels > 0.5]] + ([_ids(file, *events)] if events else [])
            for each in found:
                counts += np.bincount(np.searchsorted(items, each), minlength=len(items))
    return counts


def catalogue(samples: Path, schema: Schema, dates: Sequence[str], events: Events | None = None) -> Tensor:
    """[N] int64: every item that was a candidate on some day, or one of `events` in its samples, ascending."""
    found = [
        _ids(file, *column)
        for date in dict.fromkeys(dates)
        for file in sample_files(samples, date, schema)
        for column in (("candidates", "item"), *([events] if events else []))
    ]
    return torch.from_numpy(np.unique(np.concatenate(found)))


def _ids(file: Path, group: str, name: str) -> NDArray[np.int64]:
    """The ids of a file's column that are known."""
    column = pc.struct_field(read_columns(file, [f"{group}.{name}"])[group].combine_chunks(), name)
    ids: NDArray[np.int64] = column.flatten().to_numpy()
    known: NDArray[np.int64] = ids[ids != MISSING_ID]
    return known

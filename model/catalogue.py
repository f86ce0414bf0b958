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
from genrank.schemas.manifest import sample_files
from genrank.schemas.schema import Schema


def responses(
    samples: Path, schema: Schema, dates: Sequence[str], task: str, items: NDArray[np.int64]
) -> NDArray[np.int64]:
    """[N] int64: how often each item (ascending) was a positive candidate on some days."""
    counts = np.zeros(len(items), np.int64)
    for date in dates:
        for file in sample_files(samples, date, schema):
            table = read_columns(file, ["candidates.item", f"labels.{task}"])
            ids, labels = (
                pc.struct_field(table[group].combine_chunks(), name).flatten().to_numpy(zero_copy_only=False)
                for group, name in (("candidates", "item"), ("labels", task))
            )
            counts += np.bincount(np.searchsorted(items, ids[labels > 0.5]), minlength=len(items))
    return counts


def catalogue(samples: Path, schema: Schema, dates: Sequence[str]) -> Tensor:
    """[N] int64: every item that was a candidate on some day, ascending."""
    found = [
        pc.struct_field(read_columns(file, ["candidates.item"])["candidates"].combine_chunks(), "item")
        for date in dict.fromkeys(dates)
        for file in sample_files(samples, date, schema)
    ]
    return torch.from_numpy(np.unique(np.concatenate([each.flatten().to_numpy() for each in found])))

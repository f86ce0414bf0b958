"""Embedding rows for raw ids, and row-wise optimisers: see `op.py`."""

from genrank.kernels.idmap.op import (
    EMPTY,
    TOMBSTONE,
    IdMap,
    Inserted,
    rowwise_adagrad_,
    rowwise_adam_,
    sum_rows,
    unique_inverse_counts,
)

__all__ = [
    "EMPTY",
    "TOMBSTONE",
    "IdMap",
    "Inserted",
    "rowwise_adagrad_",
    "rowwise_adam_",
    "sum_rows",
    "unique_inverse_counts",
]

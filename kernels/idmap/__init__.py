"""Embedding rows for raw ids.

op.py     the map, and unique; on a GPU `kernels.vocabulary` is in its place
"""

from genrank.kernels.idmap.op import EMPTY, TOMBSTONE, IdMap, Inserted, unique_inverse_counts

__all__ = ["EMPTY", "TOMBSTONE", "IdMap", "Inserted", "unique_inverse_counts"]

"""Embedding rows for raw ids.

op.py     the map, unique, and what runs on CPU
gpu.py    launches on GPU; triton_probe.py: the kernels
"""

from genrank.kernels.idmap.op import EMPTY, TOMBSTONE, IdMap, Inserted, unique_inverse_counts

__all__ = ["EMPTY", "TOMBSTONE", "IdMap", "Inserted", "unique_inverse_counts"]

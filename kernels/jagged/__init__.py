"""Jagged tensors put one after the other, sample by sample: see `op.py`."""

from genrank.kernels.jagged.op import Permute, interleave, jagged_concat

__all__ = ["Permute", "interleave", "jagged_concat"]

"""Neighbouring rows of jagged sequences, K to a group.

op.py            the public op, checks, autograd
reference.py     the definition
gpu.py           on GPU: triton_merge.py
"""

from genrank.kernels.merge.op import group_offsets, merge_rows
from genrank.kernels.merge.reference import reference_merge_rows

__all__ = ["group_offsets", "merge_rows", "reference_merge_rows"]

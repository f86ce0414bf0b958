"""Sparse row-wise optimisers.

op.py     the public updates, and what runs on CPU
gpu.py    launches on GPU; triton_rowwise.py: the kernel
"""

from genrank.kernels.rowwise.op import rowwise_adagrad_, rowwise_adam_, sum_rows

__all__ = ["rowwise_adagrad_", "rowwise_adam_", "sum_rows"]

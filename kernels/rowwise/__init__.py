"""Sparse row-wise optimisers.

update.py one table's step
op.py     the public updates, and what runs on CPU
gpu.py    launches on GPU; triton_rowwise.py: the kernel
"""

from genrank.kernels.rowwise.op import ADAM_BETAS, rowwise_adagrad_, rowwise_adam_, rowwise_updates_, sum_rows
from genrank.kernels.rowwise.update import RowUpdate

__all__ = ["ADAM_BETAS", "RowUpdate", "rowwise_adagrad_", "rowwise_adam_", "rowwise_updates_", "sum_rows"]

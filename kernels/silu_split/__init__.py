"""A linear map whose result is split, SiLU on all or the first of its columns: the block's U, V, Q and K.

op.py           the public op: PyTorch's own operations, and on a GPU their backward in one pass
reference.py    the definition
gpu.py          launches on GPU; triton_pack.py: the kernel
"""

from genrank.kernels.silu_split.op import silu_split

__all__ = ["silu_split"]

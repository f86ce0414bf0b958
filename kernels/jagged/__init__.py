"""Jagged tensors put one after the other, sample by sample.

op.py     the public op, and what runs on CPU
gpu.py    launches and autograd on GPU; triton_move.py: the kernels; triton_arrange.py: the places of tokens, before they are computed
"""

from genrank.kernels.jagged.op import interleave, jagged_concat, permuted

__all__ = ["interleave", "jagged_concat", "permuted"]

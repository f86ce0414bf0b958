"""Jagged tensors put one after the other, sample by sample.

op.py     the public op, and what runs on CPU
gpu.py    launches and autograd on GPU; triton_move.py: the kernel; triton_arrange.py: the places of tokens, before they are computed
"""

from genrank.kernels.jagged.op import Permute, interleave, jagged_concat

__all__ = ["Permute", "interleave", "jagged_concat"]

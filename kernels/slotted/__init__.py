"""Linear maps and feed-forwards whose weights are a token's own: rows [C, T, D], weights [T, ...].

op.py           the public ops and their checks: one batched matrix product over the tokens, on CPU and GPU
reference.py    the definition, a token at a time
"""

from genrank.kernels.slotted.op import Activation, slotted_ffn, slotted_linear

__all__ = ["Activation", "slotted_ffn", "slotted_linear"]

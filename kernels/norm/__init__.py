"""LayerNorm with weights per token group, alone and fused with gate and dropout, or with the residual's addition before it.

op.py           the public ops and their checks
reference.py    the definition, which also runs on CPU
gpu.py          launches and autograd on GPU; triton_norm.py: the kernels
"""

from genrank.kernels.norm.op import add_norm, group_layer_norm, norm_gate
from genrank.kernels.norm.reference import Order

__all__ = ["Order", "add_norm", "group_layer_norm", "norm_gate"]

"""LayerNorm with weights per token group, alone and fused with gate and dropout: see `op.py`."""

from genrank.kernels.norm.op import Order, group_layer_norm, norm_gate

__all__ = ["Order", "group_layer_norm", "norm_gate"]

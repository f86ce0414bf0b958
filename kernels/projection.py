"""The block's input side in one op: norm, one projection for all of U, V, Q and K, and SiLU (HSTU, arXiv 2402.17152,
equation 1; MTGR, arXiv 2505.18654, equation 5 with its group norm)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genrank.kernels.dispatch import backend_for
from genrank.kernels.norm import check, reference_norm


def norm_linear_silu(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    group_ids: Tensor | None = None,
    activated: int | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """silu(norm(x) @ weight + bias), the SiLU on the first `activated` columns only (all by default).

    A candidate: no model uses it before a device has shown that it beats norm, cuBLAS and SiLU apart (`benchmarks/gpu`).

    Args:
        x: [T, D]; norm_weight, norm_bias: [G, D] with group_ids int32 [T] in [0, G) (`group_layer_norm`), or [1, D];
        weight: [D, E] and bias: [E], dtype of x.
    Returns: [T, E]. Differentiable in x and all four parameters.
    Raises: ValueError for shapes that disagree, TypeError for weight or bias of another dtype.
    """
    if group_ids is None:
        check(x, None, norm_weight.flatten(), norm_bias.flatten())
    else:
        check(x, group_ids, norm_weight, norm_bias)
    if weight.dim() != 2 or weight.shape[0] != x.shape[1] or (bias is not None and bias.shape != weight.shape[1:]):
        shapes = f"{list(weight.shape)} and {None if bias is None else list(bias.shape)}"
        raise ValueError(f"weight and bias must be [{x.shape[1]}, E] and [E], got {shapes}")
    if weight.dtype != x.dtype or (bias is not None and bias.dtype != x.dtype):
        raise TypeError(f"weight and bias must be {x.dtype} like x, got {weight.dtype}")
    activated = weight.shape[1] if activated is None else activated
    if not 0 <= activated <= weight.shape[1]:
        raise ValueError(f"activated must be in 0..{weight.shape[1]}, got {activated}")
    norm_weight, norm_bias = norm_weight.view(-1, x.shape[1]), norm_bias.view(-1, x.shape[1])
    if backend_for(x) == "triton":
        from genrank.kernels import projection_triton

        leaves = [t for t in (x, norm_weight, norm_bias, weight, bias) if t is not None]
        keep = torch.is_grad_enabled() and any(t.requires_grad for t in leaves)
        rest = (weight, bias, activated, eps, keep)
        return projection_triton.project_op(x, norm_weight, norm_bias, group_ids, *rest)[0]
    groups = norm_weight.new_zeros(len(x), dtype=torch.int32) if group_ids is None else group_ids
    z = reference_norm(x, groups, norm_weight, norm_bias, eps).to(x.dtype) @ weight
    if bias is not None:
        z = z + bias
    return torch.cat([F.silu(z[:, :activated]), z[:, activated:]], 1)

"""LayerNorm with weights per token group (MTGR's GLN), alone and fused with HSTU's gate and dropout."""

from __future__ import annotations

import torch
from torch import Tensor

from genrank.kernels.dispatch import backend_for, draw_seed
from genrank.kernels.norm.reference import Order, reference_norm, reference_norm_gate, reference_sum


def group_layer_norm(x: Tensor, group_ids: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """Group layer normalisation (GLN; MTGR, arXiv 2505.18654, section 3.3).

    y_t = (x_t - mean(x_t)) / sqrt(var(x_t) + eps) * weight[g_t] + bias[g_t], statistics per token over its D values.

    Args:
        x: [T, D]; group_ids: int32 [T], in [0, G): user, history, realtime, candidate, ...
        weight, bias: [G, D].
    Returns: [T, D]. Differentiable in x, weight and bias.
    Raises: ValueError for shapes that disagree.
    """
    check(x, group_ids, weight, bias)
    if backend_for(x) == "triton":
        from genrank.kernels.norm import gpu

        normed: Tensor = gpu.norm_gate_op(x, None, weight, bias, group_ids, gpu.PLAIN, eps, 0.0, 0)[0]
        return normed
    return reference_norm(x, group_ids, weight, bias, eps)


def add_norm(
    x: Tensor,
    change: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    group_ids: Tensor | None = None,
    scale: float = 1.0,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A residual's addition and the norm that reads it, in one pass over memory: s = x + scale * (change + shift), and norm(s).

    Backward is one pass, too: the norm's gradient and that of s itself are added where they are found, and summed over rows for the shift, which
    is the bias of the product that made `change`.

    Args:
        x, change: [T, D], of any float dtype each; weight, bias: [D], or [G, D] with group_ids int32 [T]; shift: [D].
        dtype: of the norm; None: x's.
    Returns: (s [T, D] in x's dtype, norm(s) [T, D]). Differentiable in x, change, weight, bias and shift.
    Raises: ValueError for shapes that disagree.
    """
    if change.shape != x.shape:
        raise ValueError(f"x {list(x.shape)} and change {list(change.shape)} must have one shape")
    check(x, group_ids, weight, bias)
    if shift is not None and shift.shape != x.shape[1:]:
        raise ValueError(f"shift must be [{x.shape[1]}], got {list(shift.shape)}")
    dtype = x.dtype if dtype is None else dtype
    if backend_for(x) == "triton":
        from genrank.kernels.norm import gpu

        weight, bias = weight.view(-1, weight.shape[-1]), bias.view(-1, bias.shape[-1])
        whole, normed, _ = gpu.add_norm_op(x, change, shift, weight, bias, group_ids, scale, eps, dtype)
        return whole, normed
    whole = reference_sum(x, change, shift, scale)
    return whole, reference_norm(whole, group_ids, weight, bias, eps).to(dtype)


def norm_gate(
    attn: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    order: Order,
    group_ids: Tensor | None = None,
    eps: float = 1e-6,
    dropout: float = 0.0,
    seed: int | None = None,
) -> Tensor:
    """What follows attention in the block: norm, gate by u, dropout, in one pass over memory.

    order "norm_gate": dropout(norm(attn) * u) (HSTU, arXiv 2402.17152, equation 3);
    order "gate_norm": dropout(norm(attn * u)) (MTGR, arXiv 2505.18654, equation 7).

    Args:
        attn, u: [T, D] (all heads side by side); weight, bias: [D], or [G, D] with group_ids int32 [T].
        dropout: probability of zeroing a value, the others are divided by `1 - dropout`; seed as in
            `interval_attention`.
    Returns: [T, D]. Differentiable in attn, u, weight and bias.
    """
    if order not in ("norm_gate", "gate_norm"):
        raise ValueError(f"order must be 'norm_gate' or 'gate_norm', got {order!r}")
    if u.shape != attn.shape:
        raise ValueError(f"attn {list(attn.shape)} and u {list(u.shape)} must have one shape")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    check(attn, group_ids, weight, bias)
    if dropout > 0.0 and seed is None and torch.compiler.is_compiling():
        # A seed drawn on the host can't be traced: the dropout becomes the compiler's.
        whole = norm_gate(attn, u, weight, bias, order=order, group_ids=group_ids, eps=eps)
        return torch.nn.functional.dropout(whole, dropout)
    if backend_for(attn) == "triton":
        from genrank.kernels.norm import gpu

        gate = gpu.NORM_GATE if order == "norm_gate" else gpu.GATE_NORM
        weight, bias = weight.view(-1, weight.shape[-1]), bias.view(-1, bias.shape[-1])
        seed = draw_seed(seed) if dropout > 0.0 else 0
        gated: Tensor = gpu.norm_gate_op(attn, u, weight, bias, group_ids, gate, eps, dropout, seed)[0]
        return gated
    out = reference_norm_gate(attn, u, weight, bias, order, group_ids, eps)
    if dropout > 0.0:
        generator = torch.Generator(out.device).manual_seed(draw_seed(seed))
        kept = torch.rand(out.shape, generator=generator, device=out.device) >= dropout
        out = out * kept.to(out.dtype).mul_(1.0 / (1.0 - dropout))
    return out


def check(x: Tensor, group_ids: Tensor | None, weight: Tensor, bias: Tensor) -> None:
    """Shapes and dtypes of x, groups and weights, or a ValueError or TypeError that names them."""
    if x.dim() != 2:
        raise ValueError(f"expected [tokens, dim], got {list(x.shape)}")
    wanted = 1 if group_ids is None else 2
    if weight.shape != bias.shape or weight.dim() != wanted or weight.shape[-1] != x.shape[1]:
        shape = f"[{x.shape[1]}]" if group_ids is None else f"[groups, {x.shape[1]}]"
        raise ValueError(f"weight {list(weight.shape)} and bias {list(bias.shape)} must both be {shape}")
    if group_ids is not None and (group_ids.dtype != torch.int32 or group_ids.shape != x.shape[:1]):
        raise TypeError(f"group_ids must be int32 [{len(x)}], got {group_ids.dtype} {list(group_ids.shape)}")

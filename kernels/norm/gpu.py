"""Norm, gate and dropout in one pass over memory, for GPU (kernels: `triton_norm.py`).

Weight gradients: each program sums a strip of rows, in order, into its own partial [G, D]; the partials are then
summed in order. Nothing depends on which program finishes first.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from genrank.kernels.launch import Tuned
from genrank.kernels.norm.triton_norm import norm_backward_kernel, norm_forward_kernel

PLAIN, NORM_GATE, GATE_NORM = 0, 1, 2
STRIPS = 528
"""Partial sums of the weight gradients: four programs for each of an H100's 132 processors."""


def config(rows: int, warps: int) -> triton.Config:
    """`rows` rows a step, in one stage."""
    return triton.Config({"ROWS": rows}, num_warps=warps, num_stages=1)


def fits(chosen: triton.Config, arguments: dict[str, Any], arch: int) -> bool:
    """Whether the rows (and in backward the weight gradients) of a program stay in registers."""
    values: int = chosen.kwargs["ROWS"] * arguments["WIDTH"] * (6 if "strip" in arguments else 4)
    values += 2 * arguments.get("GROUP_WIDTH", 0) * arguments["WIDTH"]
    return values <= 120 * 32 * int(chosen.num_warps)


KEY = ["WIDTH", "GATE", "GROUPED", "DROPOUT"]
forward_tuned = Tuned(
    norm_forward_kernel, [config(8, 4), config(4, 4), config(1, 4), config(4, 8), config(2, 8)], KEY, fits
)
backward_tuned = Tuned(
    norm_backward_kernel,
    [config(8, 4), config(4, 4), config(4, 8), config(2, 8), config(1, 16)],
    [*KEY, "GROUP_WIDTH"],
    fits,
)


@torch.library.custom_op("genrank::norm_gate", mutates_args=())
def norm_gate_op(
    attn: Tensor,
    u: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    group_ids: Tensor | None,
    gate: int,
    eps: float,
    dropout: float,
    seed: int,
) -> Tensor:
    """attn, u: [T, D]; weight, bias: [G, D]; gate: PLAIN (no u), NORM_GATE or GATE_NORM."""
    attn, gated = unit_stride(attn), attn if u is None else unit_stride(u)
    out = attn.new_empty(attn.shape)
    tokens, dim = attn.shape
    if not tokens:
        return out
    forward_tuned(
        lambda chosen: (triton.cdiv(tokens, chosen["ROWS"]),),
        [
            *(attn, gated, weight.contiguous(), bias.contiguous(), weight if group_ids is None else group_ids, out),
            *(tokens, dim, eps, seed, round(dropout * 2**24), 1.0 / (1.0 - dropout), attn.stride(0), gated.stride(0)),
        ],
        flags(dim, group_ids, gate, dropout),
    )
    return out


@torch.library.custom_op("genrank::norm_gate_backward", mutates_args=())
def norm_gate_backward_op(
    grad: Tensor,
    attn: Tensor,
    u: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    group_ids: Tensor | None,
    gate: int,
    eps: float,
    dropout: float,
    seed: int,
) -> list[Tensor]:
    """dattn, du (empty without u), dweight, dbias."""
    grad, attn, gated = unit_stride(grad), unit_stride(attn), attn if u is None else unit_stride(u)
    tokens, dim = attn.shape
    groups = weight.shape[0]
    dattn = attn.new_empty(attn.shape)
    du = attn.new_empty(attn.shape if u is not None else (0, dim))
    strip = max(8, triton.next_power_of_2(triton.cdiv(tokens, STRIPS)))
    strips = triton.cdiv(tokens, strip)
    partial = torch.empty(2, strips, groups, dim, dtype=torch.float32, device=attn.device)
    if tokens:
        backward_tuned(
            lambda chosen: (strips,),
            [
                *(
                    grad,
                    attn,
                    gated,
                    weight.contiguous(),
                    bias.contiguous(),
                    weight if group_ids is None else group_ids,
                ),
                *(dattn, du if u is not None else dattn, partial[0], partial[1]),
                *(tokens, dim, eps, seed, round(dropout * 2**24), 1.0 / (1.0 - dropout)),
                *(grad.stride(0), attn.stride(0), gated.stride(0), strip),
            ],
            flags(dim, group_ids, gate, dropout) | {"GROUPS": groups, "GROUP_WIDTH": triton.next_power_of_2(groups)},
        )
    return [dattn, du, partial[0].sum(0).to(weight.dtype), partial[1].sum(0).to(bias.dtype)]


def flags(dim: int, group_ids: Tensor | None, gate: int, dropout: float) -> dict[str, Any]:
    """Compile-time arguments that both kernels have."""
    return {
        "GATE": gate,
        "GROUPED": group_ids is not None,
        "DROPOUT": dropout > 0.0,
        "WIDTH": max(16, triton.next_power_of_2(dim)),
    }


def unit_stride(x: Tensor) -> Tensor:
    """x [tokens, dim] with adjacent columns, copied only if they are not."""
    return x if x.stride(1) == 1 else x.contiguous()


@norm_gate_op.register_fake
def _(attn: Tensor, *rest: object) -> Tensor:
    return attn.new_empty(attn.shape)


@norm_gate_backward_op.register_fake
def _(grad: Tensor, attn: Tensor, u: Tensor | None, weight: Tensor, bias: Tensor, *rest: object) -> list[Tensor]:
    du = attn.new_empty(attn.shape if u is not None else (0, attn.shape[1]))
    return [attn.new_empty(attn.shape), du, weight.new_empty(weight.shape), bias.new_empty(bias.shape)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.rest = inputs[5:]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dattn, du, dweight, dbias = torch.ops.genrank.norm_gate_backward(grad, *ctx.saved_tensors, *ctx.rest)
    return dattn, None if ctx.saved_tensors[1] is None else du, dweight, dbias, *[None] * 5


norm_gate_op.register_autograd(_differentiate, setup_context=_save)

"""Norm, gate and dropout in one pass over memory, for GPU (kernels: `triton_norm.py`); and the residual's addition with the norm after it.

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
STRIPS = 1056
"""Partial sums of the weight gradients: eight programs for each of an H100's 132 processors."""


def config(rows: int, warps: int, stages: int = 1) -> triton.Config:
    """`rows` rows a step."""
    return triton.Config({"ROWS": rows}, num_warps=warps, num_stages=stages)


def backward_config(rows: int, warps: int, stages: int) -> triton.Config:
    """`rows` rows a step, whose loads are begun `stages` steps ahead."""
    return triton.Config({"ROWS": rows, "STAGES": stages}, num_warps=warps, num_stages=1)


def fits(chosen: triton.Config, arguments: dict[str, Any], arch: int) -> bool:
    """Whether the rows (and in backward the weight gradients) of a program stay in registers."""
    each = 7 + arguments["SHIFT"] if "strip" in arguments else 4
    values: int = chosen.kwargs["ROWS"] * arguments["WIDTH"] * each
    values += 2 * arguments.get("GROUP_WIDTH", 0) * arguments["WIDTH"]
    return values <= 120 * 32 * int(chosen.num_warps)


KEY = ["WIDTH", "GATE", "ADD", "SHIFT", "GROUPED", "DROPOUT"]
forward_tuned = Tuned(
    norm_forward_kernel, [config(8, 4), config(4, 4), config(1, 4), config(4, 8), config(2, 8)], KEY, fits
)
backward_tuned = Tuned(
    norm_backward_kernel,
    [
        # Three steps ahead spill a register or two of wide rows with eight warps, and of two rows with four; two don't, and of four rows one.
        *(backward_config(*each) for each in ((4, 4, 3), (2, 4, 2), (2, 2, 3), (4, 8, 1), (2, 8, 2), (4, 4, 1))),
        *(backward_config(*each) for each in ((1, 8, 2), (1, 16, 1))),
    ],
    [*KEY, "ABOVE", "GROUP_WIDTH"],
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
) -> tuple[Tensor, Tensor]:
    """attn, u: [T, D]; weight, bias: [G, D]; gate: PLAIN (no u), NORM_GATE or GATE_NORM. Also the statistics, float32 [2, T]."""
    attn, gated = unit_stride(attn), attn if u is None else unit_stride(u)
    out, statistics = attn.new_empty(attn.shape), attn.new_empty((2, len(attn)), dtype=torch.float32)
    _forward(
        *(attn, gated, attn, None, weight, bias, group_ids, out, out, statistics, gate, False, 1.0, eps, dropout, seed)
    )
    return out, statistics


@torch.library.custom_op("genrank::norm_gate_backward", mutates_args=())
def norm_gate_backward_op(
    grad: Tensor,
    attn: Tensor,
    u: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    group_ids: Tensor | None,
    statistics: Tensor,
    gate: int,
    dropout: float,
    seed: int,
) -> list[Tensor]:
    """dattn, du (empty without u), dweight, dbias."""
    grad, attn, gated = unit_stride(grad), unit_stride(attn), attn if u is None else unit_stride(u)
    dattn = attn.new_empty(attn.shape)
    du = attn.new_empty(attn.shape if u is not None else (0, attn.shape[1]))
    second = du if u is not None else dattn
    of_weights = _backward(
        *(grad, attn, gated, None, None, weight, bias, group_ids, statistics, dattn, second),
        *(gate, False, 1.0, dropout, seed),
    )
    return [dattn, du, *of_weights]


@torch.library.custom_op("genrank::add_norm", mutates_args=())
def add_norm_op(
    x: Tensor,
    change: Tensor,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    group_ids: Tensor | None,
    scale: float,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """x + scale * (change + shift) in x's dtype; its norm in `dtype`; the statistics. x, change: [T, D]; shift: [D]; weight, bias: [G, D]."""
    x, change = unit_stride(x), unit_stride(change)
    whole, normed = x.new_empty(x.shape), x.new_empty(x.shape, dtype=dtype)
    statistics = x.new_empty((2, len(x)), dtype=torch.float32)
    _forward(x, x, change, shift, weight, bias, group_ids, whole, normed, statistics, PLAIN, True, scale, eps, 0.0, 0)
    return whole, normed, statistics


@torch.library.custom_op("genrank::add_norm_backward", mutates_args=())
def add_norm_backward_op(
    above: Tensor | None,
    grad: Tensor,
    whole: Tensor,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    group_ids: Tensor | None,
    statistics: Tensor,
    scale: float,
    dtype: torch.dtype,
) -> list[Tensor]:
    """dx, dchange in `dtype`, dweight, dbias, and where there is a shift dshift. above: the gradient of the sum itself; grad: of its norm."""
    grad = unit_stride(grad)
    dx, dchange = whole.new_empty(whole.shape), whole.new_empty(whole.shape, dtype=dtype)
    of_weights = _backward(
        *(
            grad,
            whole,
            whole,
            None if above is None else unit_stride(above),
            shift,
            weight,
            bias,
            group_ids,
            statistics,
        ),
        *(dx, dchange, PLAIN, True, scale, 0.0, 0),
    )
    return [dx, dchange, *of_weights]


def _forward(
    attn: Tensor,
    gated: Tensor,
    change: Tensor,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    group_ids: Tensor | None,
    whole: Tensor,
    out: Tensor,
    statistics: Tensor,
    gate: int,
    add: bool,
    scale: float,
    eps: float,
    dropout: float,
    seed: int,
) -> None:
    tokens, dim = attn.shape
    if not tokens:
        return
    forward_tuned(
        lambda chosen: (triton.cdiv(tokens, chosen["ROWS"]),),
        [
            *(attn, gated, change, weight if shift is None else shift.contiguous(), weight.contiguous()),
            *(bias.contiguous(), weight if group_ids is None else group_ids),
            *(whole, out, statistics, tokens, dim, eps, scale, seed, round(dropout * 2**24), 1.0 / (1.0 - dropout)),
            *(attn.stride(0), gated.stride(0), change.stride(0)),
        ],
        flags(dim, group_ids, gate, dropout) | {"ADD": add, "SHIFT": shift is not None},
    )


def _backward(
    grad: Tensor,
    attn: Tensor,
    gated: Tensor,
    above: Tensor | None,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    group_ids: Tensor | None,
    statistics: Tensor,
    dattn: Tensor,
    second: Tensor,
    gate: int,
    add: bool,
    scale: float,
    dropout: float,
    seed: int,
) -> list[Tensor]:
    """dweight, dbias, and where there is a shift dshift; dattn and `second` are written."""
    tokens, dim = attn.shape
    groups = weight.shape[0]
    # A multiple of 16, which Triton compiles a kernel for: whatever the batch, it is the same one.
    strip = max(16, triton.cdiv(triton.cdiv(tokens, STRIPS), 16) * 16)
    strips = triton.cdiv(tokens, strip)
    shifts = int(shift is not None)
    partial = torch.empty(strips, 2 * groups + shifts, dim, dtype=torch.float32, device=attn.device)
    beside = grad if above is None else above
    if tokens:
        backward_tuned(
            lambda chosen: (strips,),
            [
                *(grad, attn, gated, beside, weight.contiguous(), bias.contiguous()),
                *(weight if group_ids is None else group_ids, statistics, dattn, second, partial),
                *(tokens, dim, scale, seed, round(dropout * 2**24), 1.0 / (1.0 - dropout)),
                *(grad.stride(0), attn.stride(0), gated.stride(0), beside.stride(0), strip),
            ],
            flags(dim, group_ids, gate, dropout)
            | {"ADD": add, "SHIFT": bool(shifts), "ABOVE": above is not None}
            | {"GROUPS": groups, "GROUP_WIDTH": triton.next_power_of_2(groups)},
        )
    # A sum each: parts of one sum would have to be copied, as an op's results must not share memory.
    of_weight, of_bias, of_shift = torch.split(partial, [groups, groups, shifts], 1)
    found = [of_weight.sum(0).to(weight.dtype), of_bias.sum(0).to(bias.dtype)]
    return found if shift is None else [*found, of_shift.sum((0, 1)).to(shift.dtype)]


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
def _(attn: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    return attn.new_empty(attn.shape), attn.new_empty((2, attn.shape[0]), dtype=torch.float32)


@norm_gate_backward_op.register_fake
def _(grad: Tensor, attn: Tensor, u: Tensor | None, weight: Tensor, bias: Tensor, *rest: object) -> list[Tensor]:
    du = attn.new_empty(attn.shape if u is not None else (0, attn.shape[1]))
    return [attn.new_empty(attn.shape), du, weight.new_empty(weight.shape), bias.new_empty(bias.shape)]


@add_norm_op.register_fake
def _(
    x: Tensor,
    change: Tensor,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    group_ids: Tensor | None,
    scale: float,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty((2, x.shape[0]), dtype=torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=dtype), statistics


@add_norm_backward_op.register_fake
def _(
    above: Tensor | None,
    grad: Tensor,
    whole: Tensor,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    group_ids: Tensor | None,
    statistics: Tensor,
    scale: float,
    dtype: torch.dtype,
) -> list[Tensor]:
    of_weights = [like.new_empty(like.shape) for like in (weight, bias, shift) if like is not None]
    return [whole.new_empty(whole.shape), whole.new_empty(whole.shape, dtype=dtype), *of_weights]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], output[1])
    ctx.gate, _, ctx.dropout, ctx.seed = inputs[5:]
    ctx.set_materialize_grads(False)  # nothing reads the statistics: zeros for their gradient would be a launch


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    found = torch.ops.genrank.norm_gate_backward(grad, *ctx.saved_tensors, ctx.gate, ctx.dropout, ctx.seed)
    dattn, du, dweight, dbias = found
    return dattn, None if ctx.saved_tensors[1] is None else du, dweight, dbias, *[None] * 5


def _save_sum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, change, shift, weight, bias, group_ids, ctx.scale, _, _ = inputs
    whole, _, statistics = output
    ctx.save_for_backward(whole, shift, weight, bias, group_ids, statistics)
    ctx.dtype = change.dtype
    ctx.set_materialize_grads(False)


def _differentiate_sum(
    ctx: Any, above: Tensor | None, grad: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad is None:
        grad = torch.zeros_like(ctx.saved_tensors[0])
    found = torch.ops.genrank.add_norm_backward(above, grad, *ctx.saved_tensors, ctx.scale, ctx.dtype)
    dx, dchange, dweight, dbias, *dshift = found
    return dx, dchange, dshift[0] if dshift else None, dweight, dbias, *[None] * 4


norm_gate_op.register_autograd(_differentiate, setup_context=_save)
add_norm_op.register_autograd(_differentiate_sum, setup_context=_save_sum)

"""Jagged tensors: concatenation and split of token groups, per-group projections, position and time encoding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genrank.kernels.attention import time_row
from genrank.kernels.dispatch import backend_for


def jagged_concat(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Put the token groups of each sample one after the other: sample b becomes part 0's tokens of b, part 1's, ...

    Args: parts: [(values [T_i, D], offsets [B+1])], offsets int32 or int64, one B and one D for all.
    Returns: (values [sum T_i, D] of the dtype that all promote to, offsets [B+1] of the first part's dtype). Differentiable
        in all values.
    Raises: ValueError without parts or when B or D differ.
    """
    if not parts:
        raise ValueError("jagged_concat needs at least one part")
    check_parts([offsets for _, offsets in parts], [values for values, _ in parts])
    if backend_for(parts[0][0]) == "triton":
        from genrank.kernels import jagged_triton

        # Under autocast some parts are bfloat16, others not.
        dtype = reduce(torch.promote_types, (values.dtype for values, _ in parts))
        whole = jagged_triton.concat_op([values.to(dtype) for values, _ in parts], [offsets for _, offsets in parts])
        return whole, torch.stack([offsets for _, offsets in parts]).sum(0).to(parts[0][1].dtype)
    order, inverse, offsets = interleave([offsets for _, offsets in parts], [len(values) for values, _ in parts])
    return Permute.apply(torch.cat([values for values, _ in parts]), order, inverse), offsets


def jagged_split(
    values: Tensor, offsets: Tensor, part_offsets: Sequence[Tensor], part_tokens: Sequence[int] | None = None
) -> list[Tensor]:
    """The inverse of `jagged_concat`: values [T, D] back into parts [T_i, D].

    Args:
        values: [T, D], with offsets [B+1]; part_offsets: one [B+1] a part, their lengths adding up to those of
            `offsets`; part_tokens: T_i of each part, if the host knows them: otherwise it waits for the device to read
            the ends of `part_offsets`.
    Returns: one [T_i, D] a part, in order. Differentiable in values.
    Raises: ValueError when the parts do not add up to the whole.
    """
    if not part_offsets:
        raise ValueError("jagged_split needs at least one part")
    check_parts([*part_offsets, offsets], [])
    lengths = [int(part[-1]) for part in part_offsets] if part_tokens is None else list(part_tokens)
    if len(lengths) != len(part_offsets):
        raise ValueError(f"{len(part_offsets)} part_offsets and {len(lengths)} part_tokens")
    if sum(lengths) != len(values):
        raise ValueError(f"the parts have {sum(lengths)} tokens together, values has {len(values)}")
    if backend_for(values) == "triton":
        from genrank.kernels import jagged_triton

        return jagged_triton.split_op(values, list(part_offsets), lengths)
    order, inverse, _ = interleave(part_offsets, lengths)
    return list(torch.split(Permute.apply(values, inverse, order), lengths))


def interleave(
    part_offsets: Sequence[Tensor], part_tokens: Sequence[int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Row order that turns parts laid end to end into samples laid end to end, its inverse, and the samples'
    offsets. part_tokens as in `jagged_split`.
    """
    tokens_of = [int(offsets[-1]) for offsets in part_offsets] if part_tokens is None else part_tokens
    lengths = torch.stack([offsets[1:] - offsets[:-1] for offsets in part_offsets])
    starts = torch.stack([offsets[:-1] for offsets in part_offsets])
    offsets = torch.stack(list(part_offsets)).sum(0).to(part_offsets[0].dtype)
    before = torch.cumsum(lengths, 0) - lengths
    base = offsets[:-1] + before
    device = offsets.device
    places = []
    for part in range(len(part_offsets)):
        tokens = torch.arange(tokens_of[part], device=device, dtype=torch.int64)
        sample = torch.searchsorted(part_offsets[part], tokens.to(part_offsets[part].dtype), right=True) - 1
        places.append(tokens + (base[part] - starts[part])[sample])
    inverse = torch.cat(places)
    order = torch.empty_like(inverse)
    order[inverse] = torch.arange(len(inverse), device=device)
    return order, inverse, offsets


class Permute(torch.autograd.Function):
    """Rows in a new order; the gradient is a gather by the inverse, not a scatter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None


def check_parts(offsets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for other in offsets:
        if other.dim() != 1 or other.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"offsets must be int32 or int64 [B+1], got {other.dtype} {list(other.shape)}")
        if len(other) != len(offsets[0]):
            raise ValueError(
                f"parts have {len(offsets[0]) - 1} and {len(other) - 1} samples; they must be the same batch"
            )
    for part in values:
        if part.dim() != 2 or part.shape[1] != values[0].shape[1]:
            raise ValueError(f"parts must be [tokens, {values[0].shape[-1]}], got {list(part.shape)}")


def grouped_linear(x: Tensor, group_ids: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A projection of its own for each token group: y_t = x_t @ weight[g_t] + bias[g_t].

    Args: x: [T, Din]; group_ids: int32 [T] in [0, G); weight: [G, Din, Dout]; bias: [G, Dout]; one dtype for x, weight and
        bias.
    Returns: [T, Dout]. Differentiable in x, weight and bias.
    """
    if x.dim() != 2 or weight.dim() != 3 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x {list(x.shape)} and weight {list(weight.shape)} must be [T, Din] and [G, Din, Dout]")
    if group_ids.dtype != torch.int32 or group_ids.shape != x.shape[:1]:
        raise TypeError(f"group_ids must be int32 [{len(x)}], got {group_ids.dtype} {list(group_ids.shape)}")
    if bias is not None and bias.shape != weight[:, 0].shape:
        raise ValueError(f"bias must be {list(weight[:, 0].shape)}, got {list(bias.shape)}")
    if len({t.dtype for t in (x, weight, bias) if t is not None}) > 1:
        raise TypeError(f"x and weight must share one dtype, also with bias; got {x.dtype} and {weight.dtype}")
    if backend_for(x) == "triton":
        from genrank.kernels import jagged_triton

        return jagged_triton.linear_op(x, group_ids, weight, bias)
    order = torch.argsort(group_ids, stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=x.device)
    counts = torch.bincount(group_ids, minlength=len(weight)).tolist()
    pieces = torch.split(Permute.apply(x, order, inverse), counts)
    out = [F.linear(piece, weight[g].t(), None if bias is None else bias[g]) for g, piece in enumerate(pieces)]
    return Permute.apply(torch.cat(out), inverse, order)


def position_time_encoding(
    x: Tensor,
    position_table: Tensor | None = None,
    positions: Tensor | None = None,
    time_table: Tensor | None = None,
    elapsed: Tensor | None = None,
    *,
    scale: float = 1.0,
) -> Tensor:
    """scale * x_t + position_table[min(position_t, P-1)] + time_table[bucket(elapsed_t)] (HSTU's input encoding).

    Args:
        x: [T, D]; position_table: [P, D] with positions int32 [T], each token's own;
        time_table: [buckets, D] with elapsed int64 [T]: time from the token to a moment of the caller's choice, such as
            the sample's window start, never one after the token was scored. Buckets are those of `RelativeBias`.
    Returns: [T, D], dtype of x. Differentiable in x and both tables.
    """
    if position_table is not None and (
        positions is None or positions.shape != x.shape[:1] or position_table.shape[1] != x.shape[1]
    ):
        raise ValueError(f"position_table must be [P, {x.shape[1]}] and come with positions [{len(x)}]")
    if time_table is not None and (
        elapsed is None or elapsed.shape != x.shape[:1] or time_table.shape[1] != x.shape[1]
    ):
        raise ValueError(f"time_table must be [buckets, {x.shape[1]}] and come with elapsed [{len(x)}]")
    if backend_for(x) == "triton":
        from genrank.kernels import jagged_triton

        return jagged_triton.encode_op(x, position_table, positions, time_table, elapsed, scale)
    out = x * scale
    if position_table is not None and positions is not None:
        out = out + F.embedding(positions.long().clamp(0, len(position_table) - 1), position_table)
    if time_table is not None and elapsed is not None:
        out = out + F.embedding(time_row(elapsed, len(time_table)), time_table)
    return out.to(x.dtype)

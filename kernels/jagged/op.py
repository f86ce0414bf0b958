"""Jagged tensors: the token groups of each sample put one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

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
        from genrank.kernels.jagged import gpu

        # Under autocast some parts are bfloat16, others not.
        dtype = reduce(torch.promote_types, (values.dtype for values, _ in parts))
        whole = gpu.concat_op([values.to(dtype) for values, _ in parts], [offsets for _, offsets in parts])
        return whole, torch.stack([offsets for _, offsets in parts]).sum(0).to(parts[0][1].dtype)
    order, inverse, offsets = interleave([offsets for _, offsets in parts], [len(values) for values, _ in parts])
    whole = permuted(torch.cat([values for values, _ in parts]), order, inverse)
    return whole, offsets


def interleave(
    part_offsets: Sequence[Tensor], part_tokens: Sequence[int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Row order that turns parts laid end to end into samples laid end to end, its inverse, and the samples'
    offsets. part_tokens: tokens of each part, if the
    host knows them: otherwise it waits for the device to read the ends of `part_offsets`.
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


def permuted(
    x: Tensor, order: Tensor, inverse: Tensor | None, table: Tensor | None = None, rows: Sequence[Tensor] = ()
) -> Tensor:
    """out[t] = x[order[t]] + sum over r of table[r[order[t]]]: one pass over memory on a GPU, whatever is added.

    Args:
        x: [T, D].
        order: [T] int64, a permutation; inverse: its inverse, for the gradient; None: there is none.
        table: [R, D], whose last row is zero and stays so.
        rows: each [T] int64, of the table.

    Returns: [T, D] of the dtype that x and table promote to. Differentiable in both; the table's gradient is summed in a fixed order.
    """
    out: Tensor = Permute.apply(x, order, inverse, table, *rows)  # type: ignore[no-untyped-call]
    return out


class Permute(torch.autograd.Function):
    """`permuted`. The gradient is a gather by the inverse, not a scatter."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, order: Tensor, inverse: Tensor | None, table: Tensor | None, *rows: Tensor
    ) -> Tensor:
        """As `permuted`."""
        ctx.save_for_backward(inverse, *rows)
        ctx.dtype, ctx.table = x.dtype, 0 if table is None else len(table)
        if table is None or not rows:
            return x.index_select(0, order)
        # A compiler fuses the passes by itself.
        if backend_for(x) == "triton" and not torch.compiler.is_compiling() and len(x):
            from genrank.kernels.jagged import gpu

            return gpu.assemble(x, order, table, rows)
        whole = x.index_select(0, order).to(torch.promote_types(x.dtype, table.dtype))
        for each in rows:
            whole += table.index_select(0, each.index_select(0, order))
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of x and of the table."""
        inverse, *rows = ctx.saved_tensors
        grad = grad.index_select(0, inverse)
        of_table = None
        for each in rows if ctx.table else ():
            part = table_gradient(grad, each, ctx.table)
            of_table = part if of_table is None else of_table.add_(part)
        return grad.to(ctx.dtype), None, None, of_table, *(None for _ in rows)


@torch.library.custom_op("genrank::table_gradient", mutates_args=())
def table_gradient(grad: Tensor, rows: Tensor, size: int) -> Tensor:
    """[size, D]: grad [T, D] summed by rows [T], in a fixed order; the last row stays zero. Opaque: a compiler would add in any order."""
    summed: Tensor = torch.ops.aten.embedding_dense_backward(grad, rows, size, size - 1, False)
    return summed


@table_gradient.register_fake
def _(grad: Tensor, rows: Tensor, size: int) -> Tensor:
    return grad.new_empty(size, grad.shape[1])


def check_parts(offsets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Raises TypeError or ValueError, naming what differs, unless all parts are of one batch and one D."""
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

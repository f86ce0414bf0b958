"""Jagged concatenation, and the split that is its gradient, for GPU.

Nothing here waits for the device: row counts come from shapes, samples are found by binary search inside the kernels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from genrank.kernels.jagged.triton_arrange import arrange_kernel
from genrank.kernels.jagged.triton_move import move_rows_kernel
from genrank.kernels.launch import Tuned, to_device

move_tuned = Tuned(
    move_rows_kernel,
    [triton.Config({"ROWS": r, "COLUMNS": c}, num_warps=4, num_stages=1) for r, c in ((16, 128), (8, 256), (32, 64))],
    ["dim"],
)


def move(parts: list[Tensor], whole: Tensor, offsets: list[Tensor], split: bool) -> None:
    """Rows beyond a part's last offset, if any, count as one more sample: they never land on another's place."""
    offsets = [torch.cat([o, o.new_full((1,), len(part))]) for o, part in zip(offsets, parts, strict=True)]
    lengths = torch.stack([o.diff() for o in offsets])
    before = lengths.cumsum(0) - lengths
    whole_offsets = torch.stack(offsets).sum(0)
    batch = len(offsets[0]) - 1
    for part, own, ahead in zip(parts, offsets, before, strict=True):
        tokens, dim = part.shape
        if not tokens or not dim:
            continue

        def grid(chosen: dict[str, Any], tokens: int = tokens, dim: int = dim) -> tuple[int, int]:
            return triton.cdiv(tokens, chosen["ROWS"]), triton.cdiv(dim, chosen["COLUMNS"])

        move_tuned(
            grid,
            [
                *(part, whole, own, whole_offsets, ahead.contiguous(), tokens, dim, batch, batch.bit_length()),
                *(part.stride(0), whole.stride(0)),
            ],
            {"SPLIT": split},
        )


@torch.library.custom_op("genrank::jagged_concat", mutates_args=())
def concat_op(parts: list[Tensor], offsets: list[Tensor]) -> Tensor:
    """Parts [T_i, D] and their offsets [B+1] -> [sum T_i, D], sample by sample."""
    parts = [unit_stride(part) for part in parts]
    whole = parts[0].new_empty(sum(len(part) for part in parts), parts[0].shape[1])
    move(parts, whole, offsets, split=False)
    return whole


@torch.library.custom_op("genrank::jagged_split", mutates_args=())
def split_op(whole: Tensor, offsets: list[Tensor], tokens: list[int]) -> list[Tensor]:
    """tokens: rows of each part."""
    parts = [whole.new_empty(n, whole.shape[1]) for n in tokens]
    move(parts, unit_stride(whole), offsets, split=True)
    return parts


@concat_op.register_fake
def _(parts: list[Tensor], offsets: list[Tensor]) -> Tensor:
    return parts[0].new_empty(sum(part.shape[0] for part in parts), parts[0].shape[1])


@split_op.register_fake
def _(whole: Tensor, offsets: list[Tensor], tokens: list[int]) -> list[Tensor]:
    return [whole.new_empty(n, whole.shape[1]) for n in tokens]


def _save_concat(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.tokens = [len(part) for part in inputs[0]]
    ctx.save_for_backward(*inputs[1])


def _differentiate_concat(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    parts = torch.ops.genrank.jagged_split(grad, list(ctx.saved_tensors), ctx.tokens)
    return parts, [None] * len(ctx.tokens)


concat_op.register_autograd(_differentiate_concat, setup_context=_save_concat)


def unit_stride(x: Tensor) -> Tensor:
    """x [tokens, dim] with adjacent columns, copied only if they are not."""
    return x if x.stride(1) == 1 else x.contiguous()


# --- the places of tokens ---------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """Tokens of one sort: a row of what `arrange_kernel` reads. Pointers are addresses of tensors."""

    offsets: int
    """[B+1] int64 of the rows; 0: one row a sample."""
    ts: int
    """[N] int64: the rows' times."""
    tokens: int
    """Of all rows."""
    per_row: int
    kind: int
    """As `tokenization.visibility` numbers them."""
    first: int
    """Tokens of the parts before."""
    sees: int
    """[N] int32: realtime events seen, of a realtime part's rows or of candidates; 0: none."""
    positions: int
    """First place among the positions; -1: has none."""
    limit: int
    """Largest position."""
    newest: int
    """1: positions count from the newest row."""
    buckets: int
    """First place among the time buckets, one a row; -1: has none."""


class Arranged(NamedTuple):
    """What `arrange_kernel` writes, int64 unless said otherwise; see `tokenization.tokens.Arrangement`."""

    order: Tensor
    inverse: Tensor
    timestamps: Tensor
    groups: Tensor
    """[T] int32."""
    position: Tensor
    users: Tensor
    known: Tensor
    sees: Tensor
    offsets: Tensor
    users_of: Tensor
    known_of: Tensor
    positions: Tensor
    """Of the parts that have some, one part after another."""
    buckets: Tensor
    """Likewise, one a row."""


# Every part shares a launch, and the work is moving bytes: one configuration.
arrange_tuned = Tuned(arrange_kernel, [triton.Config({"BLOCK": 256}, num_warps=4, num_stages=1)], [])


def arrange_tokens(parts: list[Part], starts: Tensor, kinds: tuple[int, int, int, int]) -> Arranged:
    """Where the tokens of a batch go, sample by sample, part by part.

    Args:
        starts: [B] int64: each sample's window.
        kinds: the numbers of user, history, realtime and candidate.
    """
    device, samples, tokens = starts.device, len(starts), sum(part.tokens for part in parts)
    positions = sum(part.tokens for part in parts if part.positions >= 0)
    buckets = sum(part.tokens // part.per_row for part in parts if part.buckets >= 0)
    sizes = [*[tokens] * 3, tokens, *[tokens] * 4, samples + 1, samples, samples, positions, buckets]
    made = Arranged(
        *(
            torch.empty(size, dtype=torch.int32 if i == 3 else torch.int64, device=device)
            for i, size in enumerate(sizes)
        )
    )
    table = to_device([n for part in parts for n in part], device)
    most = max(max(part.tokens for part in parts), samples + 1)
    arrange_tuned(
        lambda chosen: (triton.cdiv(most, chosen["BLOCK"]), len(parts) + 1),
        [table, starts, *made, tokens, samples, (samples + 1).bit_length()],
        {
            **dict(zip(("USER", "HISTORY", "REALTIME", "CANDIDATE"), kinds, strict=True)),
            "PARTS": len(parts),
            "FIELDS": len(Part._fields),
        },
    )
    return made

"""Jagged concatenation, and the split that is its gradient, for GPU.

Nothing here waits for the device: row counts come from shapes, samples are found by binary search inside the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from genrank.kernels.jagged.triton_arrange import arrange_kernel
from genrank.kernels.jagged.triton_move import assemble_kernel, move_rows_kernel
from genrank.kernels.launch import Tuned, to_device

TILES = [
    triton.Config({"ROWS": r, "COLUMNS": c}, num_warps=4, num_stages=1) for r, c in ((16, 128), (8, 256), (32, 64))
]
move_tuned = Tuned(move_rows_kernel, TILES, ["dim"])
assemble_tuned = Tuned(assemble_kernel, TILES, ["dim"])


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
                *(part, whole, own, whole_offsets, ahead.contiguous(), tokens, dim, batch, (batch + 1).bit_length()),
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


def assemble(x: Tensor, order: Tensor, table: Tensor, rows: Sequence[Tensor]) -> Tensor:
    """`op.permuted` with one or two rows of the table added to each."""
    x, table = unit_stride(x), table.contiguous()
    tokens, dim = x.shape
    out = torch.empty(tokens, dim, dtype=torch.promote_types(x.dtype, table.dtype), device=x.device)
    assemble_tuned(
        lambda chosen: (triton.cdiv(tokens, chosen["ROWS"]), triton.cdiv(dim, chosen["COLUMNS"])),
        [x, order, table, rows[0], rows[-1], out, tokens, dim, x.stride(0)],
        {"TWO": len(rows) > 1},
    )
    return out


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
    """The positional table's row of position 0; -1: has none."""
    limit: int
    """Largest position."""
    newest: int
    """1: positions count from the newest row."""
    buckets: int
    """The positional table's row of time bucket 0; -1: has none."""


class Arranged(NamedTuple):
    """What `arrange_kernel` writes; see `tokenization.arrangement.Arrangement`."""

    order: Tensor
    """[T] int64, as the next two."""
    inverse: Tensor
    timestamps: Tensor
    groups: Tensor
    """[T] int32, as the next four."""
    position: Tensor
    users: Tensor
    known: Tensor
    sees: Tensor
    offsets: Tensor
    """[B+1] int32."""
    users_of: Tensor
    """[B] int64, as the next."""
    known_of: Tensor
    positions: Tensor
    """[T] int64, part after part: rows of the positional table."""
    buckets: Tensor
    """Likewise."""


# Every part shares a launch, and the work is moving bytes: one configuration.
arrange_tuned = Tuned(arrange_kernel, [triton.Config({"BLOCK": 256}, num_warps=4, num_stages=1)], [])


def arrange_tokens(parts: list[Part], starts: Tensor, kinds: tuple[int, int, int, int], zero: int) -> Arranged:
    """Where the tokens of a batch go, sample by sample, part by part.

    Args:
        starts: [B] int64: each sample's window.
        kinds: the numbers of user, history, realtime and candidate.
        zero: the positional table's row for tokens without a position or a time.
    """
    device, samples, tokens = starts.device, len(starts), sum(part.tokens for part in parts)
    sizes = [*[tokens] * 8, samples + 1, samples, samples, tokens, tokens]
    short = range(3, 9)
    made = Arranged(
        *(
            torch.empty(size, dtype=torch.int32 if i in short else torch.int64, device=device)
            for i, size in enumerate(sizes)
        )
    )
    table = to_device([n for part in parts for n in part], device)
    most = max(max(part.tokens for part in parts), samples + 1)
    arrange_tuned(
        lambda chosen: (triton.cdiv(most, chosen["BLOCK"]), len(parts) + 1),
        [table, starts, *made, tokens, samples, (samples + 1).bit_length(), zero],
        {
            **dict(zip(("USER", "HISTORY", "REALTIME", "CANDIDATE"), kinds, strict=True)),
            "PARTS": len(parts),
            "FIELDS": len(Part._fields),
        },
    )
    return made

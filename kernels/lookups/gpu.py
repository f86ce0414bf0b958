"""Launches of the kernels that look a batch's features up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from genrank.kernels.launch import Tuned, to_device
from genrank.kernels.lookups.instructions import GroupPlace, RowInstruction, RowPlace, VectorInstruction, VectorPlace
from genrank.kernels.lookups.triton_rows import rows_kernel
from genrank.kernels.lookups.triton_vectors import vectors_backward_kernel, vectors_kernel

ROWS = triton.Config({"BLOCK": 256}, num_warps=4, num_stages=1)
# All features share a launch: what would be best for one of them says little, so there is one configuration.
rows_tuned = Tuned(rows_kernel, [ROWS], [])
vectors_tuned = Tuned(vectors_kernel, [triton.Config({"BLOCK": 16}, num_warps=4, num_stages=1)], [])
vectors_backward_tuned = Tuned(vectors_backward_kernel, [triton.Config({"BLOCK": 16}, num_warps=4, num_stages=1)], [])


@dataclass(frozen=True)
class RowProgram:
    """The instructions of `rows_kernel` and their constants, on the device."""

    instructions: Tensor
    """[P, 8] int64, as `RowInstruction`."""
    scales: Tensor
    """[P, 2] float32: shift and scale (DENSE)."""
    ids: Tensor
    """int64: ascending ids of each enumerated vocabulary, one after another."""
    id_rows: Tensor
    """Their rows."""
    edges: Tensor
    """float64: ascending edges of each number in buckets."""
    moments: Tensor
    """int64 epoch ms at which the clocks' offset changes."""
    clocks: Tensor
    """[moments + 1] int64 ms: the offsets."""
    histories: Tensor
    """int64: groups of history sequences."""
    realtime: int
    """Group of the realtime sequence; -1: none."""
    searched: int
    """Most values that a search among the constants looks through."""

    def __post_init__(self) -> None:
        assert self.instructions.shape[1] == len(RowInstruction._fields)


def find_rows(
    program: RowProgram,
    places: list[RowPlace],
    groups: list[GroupPlace],
    operands: list[tuple[int, int]],
    seen: Tensor,
    samples: int,
    rows: Tensor,
    numbers: Tensor,
) -> None:
    """Write the rows and numbers of all instructions.

    Args:
        places, groups: of the batch.
        operands: (address of an int64 column, 1 if it is the user's) of each operand of a cross.
        seen: [C] int32: realtime events that each candidate sees.
        samples: how many there are.
        rows: int64, written; numbers: float32, written.
    """
    most = max((place.length for place in places), default=0)
    if not most:
        return
    flat = [n for part in (places, groups, operands) for each in part for n in each]
    table = to_device(flat, rows.device)
    sizes = [len(places) * len(RowPlace._fields), len(groups) * len(GroupPlace._fields), 2 * len(operands)]
    of_places, of_groups, of_operands = torch.split(table, sizes)
    rows_tuned(
        lambda chosen: (triton.cdiv(most, chosen["BLOCK"]), len(places)),
        [
            *(program.instructions, program.scales, program.ids, program.id_rows, program.edges, program.moments),
            *(program.clocks, program.histories, of_operands, of_places, of_groups, seen, rows, numbers),
            *(samples, (samples + 1).bit_length(), program.searched.bit_length(), len(program.moments)),
            program.realtime,
        ],
        {"HISTORIES": len(program.histories)},
    )


def gather_vectors(
    instructions: Tensor,
    places: Tensor,
    weights: Tensor,
    rows: Tensor,
    numbers: Tensor,
    out: Tensor,
    inverse: Tensor,
    *,
    most: int,
    dim: int,
    norm: bool,
    eps: float,
) -> None:
    """Write all features' columns.

    Args:
        instructions: [J, 6] int64 as `VectorInstruction`; places: [J * 9] as `VectorPlace`; weights: [T] addresses of the tables.
        rows: int64; numbers: float32: what `find_rows` found.
        out: float32, written: the groups' matrices; inverse: float32, written with `norm`.
        most: rows of the largest group; dim: the widest feature's columns.
        norm: features at one scale; eps: added to a vector's mean square.
    """
    assert instructions.shape[1] == len(VectorInstruction._fields) and len(VectorPlace._fields) == 9
    if most and len(instructions):
        vectors_tuned(
            lambda chosen: (triton.cdiv(most, chosen["BLOCK"]), len(instructions)),
            [instructions, places, weights, rows, numbers, out, inverse, eps],
            {"NORM": norm, "WIDTH": max(16, triton.next_power_of_2(dim))},
        )


def scatter_gradients(
    instructions: Tensor,
    places: Tensor,
    gradients: Tensor,
    table_grads: Tensor,
    block_grads: Tensor,
    out: Tensor,
    inverse: Tensor,
    *,
    most: int,
    rows: int,
    dim: int,
    norm: bool,
) -> None:
    """Write the gradient of every row that was read, each time by itself, and of the blocks.

    Args:
        gradients: [2 G] int64, address and stride of each matrix's gradient.
        table_grads, block_grads: float32, written.
        most: entries of the feature that has most; rows: of the largest group.
        The rest as in `gather_vectors`.
    """
    if most and len(instructions):
        vectors_backward_tuned(
            lambda chosen: (triton.cdiv(most, chosen["BLOCK"]), len(instructions)),
            [instructions, places, gradients, table_grads, block_grads, out, inverse, (rows + 1).bit_length()],
            {"NORM": norm, "WIDTH": max(16, triton.next_power_of_2(dim))},
        )

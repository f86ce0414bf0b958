"""What `merged_lookups` found to the matrices of token groups, and back, as autograd has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from genrank.kernels.lookups.instructions import VectorPlace

if TYPE_CHECKING:
    from genrank.tokenization.torch_tables import TorchTables


class Scales(Protocol):
    """What brings features to one scale: `tokenization.feature_norm.FeatureNorms`."""

    @property
    def eps(self) -> float:
        """Added to a vector's mean square."""

    def moments(self, group: str, feature: str) -> Tensor:
        """[2] float32: mean and deviation of a number."""


class Matrix(NamedTuple):
    """A token group's features among all groups' elements."""

    first: int
    rows: int
    width: int


@dataclass(frozen=True)
class Gathering:
    """What the launches of a batch read and write."""

    instructions: Tensor
    """[J, 6] int64, as `kernels.lookups.instructions.VectorInstruction`."""
    places: Sequence[VectorPlace]
    """Of the J features."""
    matrices: Sequence[Matrix]
    """Of the groups."""
    size: int
    """Elements of all matrices."""
    norms: int
    """Places of vectors' norms."""
    block_elements: int
    """Of the gradients of what is computed elsewhere."""
    widest: int
    """Columns of the widest feature."""
    rows: dict[str, Tensor]
    """Merged table -> [K] int64 physical rows."""
    flat: Tensor
    """[K of all tables] int64: the same, one table after another."""
    numbers: Tensor
    """float32: transformed numbers, NaN where missing."""

    @property
    def most(self) -> int:
        """Rows of the largest group."""
        return max((matrix.rows for matrix in self.matrices), default=0)


class Vectors(torch.autograd.Function):
    """Rows and numbers to the groups' matrices; backward updates the tables, a step of each."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        anchor: Tensor,
        batch: Gathering,
        tables: TorchTables,
        eps: float | None,
        learns: bool,
        *computed: Tensor,
    ) -> tuple[Tensor, ...]:
        """Each group's matrix.

        Args:
            eps: of features at one scale; None: as they are.
            learns: whether the tables take their steps in backward.
            computed: [N, columns] of each family whose columns are computed elsewhere.
        """
        from genrank.kernels.launch import to_device
        from genrank.kernels.lookups import gpu

        weights = [tables.tables[name].weight.data_ptr() for name in batch.rows]
        out = torch.empty(batch.size, device=anchor.device)
        inverse = torch.empty(batch.norms if eps is not None else 0, device=anchor.device)
        table = to_device([*(n for place in batch.places for n in place), *weights], anchor.device)
        places, of_weights = torch.split(table, [len(table) - len(weights), len(weights)])
        gpu.gather_vectors(
            *(batch.instructions, places, of_weights, batch.flat, batch.numbers, out, inverse),
            most=batch.most,
            dim=batch.widest,
            norm=eps is not None,
            eps=0.0 if eps is None else eps,
        )
        ctx.state = (batch, tables, places, out, inverse)  # type: ignore[attr-defined]
        ctx.norm, ctx.learns = eps is not None, learns  # type: ignore[attr-defined]
        ctx.shapes = [block.shape for block in computed]  # type: ignore[attr-defined]
        ends = [(m.first, m.first + m.rows * m.width, m) for m in batch.matrices]
        return tuple(out[a:b].view(m.rows, m.width) for a, b, m in ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of what is computed elsewhere; the tables take their steps here."""
        from genrank.kernels.launch import to_device
        from genrank.kernels.lookups import gpu

        batch, tables, places, out, inverse = ctx.state  # type: ignore[attr-defined]
        grads = tuple(grad.float() if grad.stride(-1) == 1 else grad.float().contiguous() for grad in grads)
        addresses = to_device([n for grad in grads for n in (grad.data_ptr(), grad.stride(0))], out.device)
        dims = {name: tables.tables[name].table.dim for name in batch.rows}
        sizes = [len(rows) * dims[name] for name, rows in batch.rows.items()]
        of_tables = torch.empty(sum(sizes), device=out.device)
        of_blocks = torch.empty(batch.block_elements, device=out.device)
        gpu.scatter_gradients(
            *(batch.instructions, places, addresses, of_tables, of_blocks, out, inverse),
            most=max((place.entries for place in batch.places), default=0),
            rows=batch.most,
            dim=batch.widest,
            norm=ctx.norm,  # type: ignore[attr-defined]
        )
        if ctx.learns:  # type: ignore[attr-defined]
            own = zip(batch.rows.items(), torch.split(of_tables, sizes), strict=True)
            tables.learn({name: (rows, grad.view(-1, dims[name])) for (name, rows), grad in own})
        shapes = ctx.shapes  # type: ignore[attr-defined]
        parts = torch.split(of_blocks, [shape.numel() for shape in shapes])
        return *[None] * 5, *(part.view(shape) for part, shape in zip(parts, shapes, strict=True))

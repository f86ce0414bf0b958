"""Logical embedding tables: what features share rows, and how those rows are initialised and learned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from genrank.schemas.base import Declaration, Name
from genrank.schemas.ids import SPECIAL_ROWS
from genrank.schemas.vocabularies import Vocabulary


class Normal(Declaration):
    """N(0, std^2)."""

    kind: Literal["normal"] = "normal"
    std: float = Field(default=0.02, gt=0)


class Uniform(Declaration):
    """U(-bound, bound)."""

    kind: Literal["uniform"] = "uniform"
    bound: float = Field(default=0.05, gt=0)


class Zeros(Declaration):
    """Every row starts at zero."""

    kind: Literal["zeros"] = "zeros"


Initializer = Annotated[Normal | Uniform | Zeros, Field(discriminator="kind")]


class SparseOptimizer(Declaration):
    """How rows are learned. Tables with equal settings form one learning-rate group."""

    kind: Literal["rowwise_adagrad", "rowwise_adam"] = "rowwise_adagrad"
    lr_scale: float = Field(default=1.0, gt=0)
    """Multiplies the trainer's sparse learning rate."""
    weight_decay: float = Field(default=0.0, ge=0)


class Table(Declaration):
    """A logical embedding table; features that name the same one share its rows."""

    name: Name
    dim: int = Field(gt=0)
    vocabulary: Vocabulary
    initializer: Initializer = Normal()
    optimizer: SparseOptimizer = SparseOptimizer()

    @property
    def rows(self) -> int:
        """Rows with the two special ones."""
        return self.vocabulary.size + SPECIAL_ROWS


@dataclass(frozen=True)
class LogicalTable:
    """One logical embedding table, float32: row 0 missing, row 1 unknown, values from row 2."""

    name: str
    features: tuple[str, ...]
    """Who looks rows up here, as `<group>.<feature>`, in token order."""
    dim: int
    vocabulary: Vocabulary
    initializer: Initializer = field(default_factory=Normal)
    optimizer: SparseOptimizer = field(default_factory=SparseOptimizer)

    @property
    def rows(self) -> int:
        """Rows with the two special ones; of a dynamic table, at most."""
        return self.vocabulary.size + SPECIAL_ROWS

    @property
    def dynamic(self) -> bool:
        """Whether ids get their rows as training meets them."""
        return self.vocabulary.grows

    @property
    def weight_bytes(self) -> int:
        """Bytes of the float32 weights."""
        return self.rows * self.dim * 4

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of the float32 optimizer state.

        One number a row for rowwise Adagrad; for rowwise Adam also a first moment per weight.
        """
        return self.rows * 4 * (1 if self.optimizer.kind == "rowwise_adagrad" else self.dim + 1)

"""What keeps and trains merged tables: the interface of the two backends, `torch_tables` and `torchrec_tables`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

Backend = Literal["auto", "torchrec", "torch"]
Sharding = Literal["auto", "row_wise", "table_wise"]
StatePlace = Literal["device", "host"]
EPS = 1e-8
"""Of the sparse optimizers' denominators."""


@dataclass
class Shard:
    """Consecutive rows of a merged table that this process holds; writing to the tensors writes to the table."""

    first: int
    """First physical row."""
    weight: Tensor
    """[n, dim] float32."""
    state: dict[str, Tensor]
    """The optimizer's, by name: `second` [n] float32; `first` [n, dim] with Adam."""


class Tables(Protocol):
    """The merged tables of a plan, as a backend keeps them."""

    lr: float
    """Sparse learning rate, multiplied by each table's `lr_scale`."""
    seed: int
    """Of the initial rows, those given to new ids included."""

    def lookup(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Merged table -> [K] int64 physical rows, to [K, dim] float32; under autograd, backward updates the rows."""

    def dispatch(self, rows: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        """The part of `lookup` that doesn't read rows; the rest when called."""

    def hold(self, held: bool) -> None:
        """While held, backward gathers gradients without applying them; the next backward after it applies all at once."""

    def reset(self, merged: str, rows: Tensor) -> None:
        """Initial weights, and no optimizer state, for [K] int64 physical rows; on a GPU those below 0, which come last, are none."""

    def shards(self, merged: str) -> list[Shard]:
        """The rows of a merged table that this process holds."""

    def updates(self, merged: str) -> int:
        """Optimizer steps of a merged table so far, where the optimizer counts them (Adam); else 0."""

    def set_updates(self, merged: str, count: int) -> None:
        """Go on after so many steps."""

"""Merged tables that are only read: weights from elsewhere, such as a file in memory-mapped pages, and no optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from genrank.tokenization.table_backend import Shard


class FrozenTables:
    """The merged tables of a plan, for inference.

    Args:
        weights: merged table -> [rows, dim] float32.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights
        self.lr = 0.0
        self.seed = 0

    def lookup(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Merged table -> [K] int64 physical rows, to [K, dim] float32."""
        return {name: self.weights[name].index_select(0, at) for name, at in rows.items()}

    def dispatch(self, rows: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        """The whole `lookup` when called."""
        return lambda: self.lookup(rows)

    def hold(self, held: bool) -> None:
        """Nothing learns."""

    def reset(self, merged: str, rows: Tensor) -> None:
        """No row gets a new owner."""
        raise TypeError(f"table {merged} is only read")

    def shards(self, merged: str) -> list[Shard]:
        """All rows."""
        return [Shard(0, self.weights[merged], {})]

    def updates(self, merged: str) -> int:
        """None."""
        return 0

    def set_updates(self, merged: str, count: int) -> None:
        """Nothing learns."""
        raise TypeError(f"table {merged} is only read")

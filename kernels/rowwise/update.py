"""One table's step of a sparse row-wise optimiser."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RowUpdate(NamedTuple):
    """Adam where `mean` is given, Adagrad where not; as `op.rowwise_adam_` and `op.rowwise_adagrad_` define them."""

    table: Tensor
    """[R, D]; changed in place, as `mean` and `state` are."""
    mean: Tensor | None
    """float32 [R, D]."""
    state: Tensor
    """float32 [R]."""
    rows: Tensor
    """int64 [N]; repeats allowed."""
    grads: Tensor
    """[N, D]."""
    lr: float
    eps: float
    betas: tuple[float, float] = (0.0, 0.0)
    step: int = 1
    """1 for the first."""
    weight_decay: float = 0.0

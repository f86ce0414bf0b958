"""One number as two inputs: its value, shifted and scaled or as a logarithm, and whether it is missing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genrank.schemas.transforms import Dense, Log1p
from genrank.tokenization.transforms.interface import InputEncoder


class ScalarInputs(InputEncoder[Dense | Log1p]):
    """[value, missing flag] of each number; the value is 0 where it is missing. Logarithms lie before dense numbers."""

    STATE_NAME = "scalars"
    shift: Tensor
    scale: Tensor

    def __init__(self, features: Sequence[tuple[str, Dense | Log1p]]) -> None:
        super().__init__(features)
        dense = [transform for _, transform in self.features if transform.kind == "dense"]
        self.logs = len(self.features) - len(dense)
        if any(transform.kind == "dense" for _, transform in self.features[: self.logs]):
            raise ValueError("logarithms must lie before dense numbers")
        self.register_buffer("shift", torch.tensor([[t.shift] for t in dense]), persistent=False)
        self.register_buffer("scale", torch.tensor([[t.scale] for t in dense]), persistent=False)

    def prepare(self, numbers: Tensor) -> Tensor:
        """[F, N] float32, NaN where missing -> [N, 2 F] float32."""
        missing, x = numbers.isnan(), numbers.nan_to_num(0.0)
        logs, dense = x[: self.logs], x[self.logs :]
        y = torch.cat([signed_log(logs), (dense - self.shift) * self.scale]) if len(dense) else signed_log(logs)
        return torch.stack([y.masked_fill(missing, 0.0), missing.float()], 1).flatten(0, 1).t()

    def forward(self, prepared: Tensor) -> Tensor:
        """[N, 2 F], as prepared."""
        return prepared


def signed_log(x: Tensor) -> Tensor:
    """sign(x) * log(1 + |x|)."""
    return torch.sign(x) * torch.log1p(x.abs())

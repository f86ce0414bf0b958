"""Task heads: a candidate's vector to one logit a task. Probabilities and conditional tasks are `model.losses`'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from genrank.model.validation import Checked, Positive, Share


@dataclass(frozen=True)
class HeadConfig(Checked):
    """`mlp`: a tower per task. `mmoe`: experts shared by the tasks, a gate a task, then a tower a task (Ma et al., KDD 2018)."""

    kind: Literal["mlp", "mmoe"] = "mlp"
    hidden: tuple[Positive, ...] = (64,)
    """Widths of each tower's hidden layers."""
    experts: Positive = 4
    expert_dim: Positive = 64
    dropout: Share = 0.0


def mlp(width: int, hidden: Sequence[int], out: int, dropout: float = 0.0) -> nn.Sequential:
    """Linear and ReLU layers, the last one linear."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
        width = size
    return nn.Sequential(*layers, nn.Linear(width, out))


class Heads(nn.Module):
    """[C, dim] of any float dtype -> {task: logit [C]}, computed in the parameters' (float32) under autocast too: bfloat16's
    logits would tie candidates.

    Args:
        dim: width of the candidates' vectors.
        tasks: names, in the order of their parameters.
    """

    def __init__(self, dim: int, tasks: Sequence[str], config: HeadConfig | None = None) -> None:
        super().__init__()
        config = config or HeadConfig()
        self.tasks = tuple(tasks)
        self.kind = config.kind
        width = dim
        if config.kind == "mmoe":
            width = config.expert_dim
            self.experts = nn.ModuleList(
                nn.Sequential(mlp(dim, (), width, config.dropout), nn.ReLU()) for _ in range(config.experts)
            )
            self.gates = nn.ModuleDict({task: nn.Linear(dim, config.experts, bias=False) for task in tasks})
        self.towers = nn.ModuleDict({task: mlp(width, config.hidden, 1, config.dropout) for task in tasks})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """[C, dim] -> {task: logit [C]}."""
        # Outside autocast nothing else casts what a model's last layer left in bfloat16.
        x = x.to(next(self.parameters()).dtype)
        if torch.amp.is_autocast_available(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self._logits(x)
        return self._logits(x)

    def _logits(self, x: Tensor) -> dict[str, Tensor]:
        if self.kind == "mlp":
            return {task: tower(x).squeeze(-1) for task, tower in self.towers.items()}
        experts = torch.stack([expert(x) for expert in self.experts], 1)  # [C, experts, expert_dim]
        result = {}
        for task, tower in self.towers.items():
            gate = self.gates[task](x).softmax(-1)
            result[task] = tower(torch.einsum("ce,ced->cd", gate, experts)).squeeze(-1)
        return result

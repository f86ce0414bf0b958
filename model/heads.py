"""Task heads: a candidate's vector to one logit a task. Probabilities and conditional tasks are `model.losses`'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from genrank.model.validation import Checked, Positive, Share
from genrank.tokenization.stacked_parameters import stack_parameters


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
    logits would tie candidates. Each task's tower has parameters of its own; a layer of all towers is one product.

    Args:
        dim: width of the candidates' vectors.
        tasks: names, in the order of their parameters.
    """

    def __init__(self, dim: int, tasks: Sequence[str], config: HeadConfig | None = None) -> None:
        super().__init__()
        config = config or HeadConfig()
        self.tasks = tuple(tasks)
        self.kind, self.dropout = config.kind, config.dropout
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
        if self.kind == "mmoe":
            weight, bias = stack_parameters(_linear([expert[0][0] for expert in self.experts]))  # type: ignore[index]
            (gates,) = stack_parameters([[gate.weight for gate in self.gates.values()]])  # type: ignore[misc]
            experts = torch.relu(nn.functional.linear(x, weight.flatten(0, 1), bias.flatten()))
            shares = nn.functional.linear(x, gates.flatten(0, 1)).view(len(x), *gates.shape[:2]).softmax(-1)
            x = torch.bmm(shares, experts.view(len(x), *weight.shape[:2])).transpose(0, 1)
        logits = torch.unbind(self._towers(x).squeeze(-1))
        return dict(zip(self.towers, logits, strict=True))

    def _towers(self, x: Tensor) -> Tensor:
        """[C, width] of all tasks, or [tasks, C, width], to [tasks, C, 1]: every task's tower, a product a layer."""
        layers = zip(*(tower.children() for tower in self.towers.values()), strict=True)
        linear = [layer for layer in layers if isinstance(layer[0], nn.Linear)]
        kinds = stack_parameters([kind for layer in linear for kind in _linear(layer)])
        for number, (weight, bias) in enumerate(zip(kinds[::2], kinds[1::2], strict=True)):
            if number:
                x = nn.functional.dropout(torch.relu(x), self.dropout, self.training)
            if x.ndim == 2:
                x = nn.functional.linear(x, weight.flatten(0, 1), bias.flatten())
                x = x.view(len(x), *weight.shape[:2]).transpose(0, 1)
            else:
                x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
        return x


def _linear(layers: Sequence[nn.Module]) -> list[list[Tensor]]:
    """Weights, and biases, of linear layers."""
    return [[layer.get_parameter(name) for layer in layers] for name in ("weight", "bias")]

"""Task heads: a candidate's vector to one logit a task. Probabilities and conditional tasks are `model.losses`'."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from genrank.kernels.dispatch import backend_for
from genrank.model.validation import Checked, Positive, Share
from genrank.tokenization.stacked_parameters import gather_parameters, stack_parameters


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
        self.dim, self.tasks = dim, tuple(tasks)
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
        with _full_precision(x):
            if self.kind == "mmoe":
                x = self._mixed(x)
            layers = self.layers()
            kinds = stack_parameters([kind for layer in layers for kind in _linear(layer)])
            logits = _towers(x, kinds, self.dropout if self.training else 0.0)
        return dict(zip(self.tasks, logits.unbind(), strict=True))

    def layers(self) -> list[list[nn.Module]]:
        """The towers' linear layers, of each the tasks'."""
        layers = zip(*(tower.children() for tower in self.towers.values()), strict=True)
        return [list(layer) for layer in layers if isinstance(layer[0], nn.Linear)]

    def _mixed(self, x: Tensor) -> Tensor:
        """[C, dim] -> [tasks, C, expert_dim]: the experts by each task's gate."""
        weight, bias = stack_parameters(_linear([expert[0][0] for expert in self.experts]))  # type: ignore[index]
        (gates,) = stack_parameters([[gate.weight for gate in self.gates.values()]])  # type: ignore[misc]
        experts = torch.relu(nn.functional.linear(x, weight.flatten(0, 1), bias.flatten()))
        shares = nn.functional.linear(x, gates.flatten(0, 1)).view(len(x), *gates.shape[:2]).softmax(-1)
        return torch.bmm(shares, experts.view(len(x), *weight.shape[:2])).transpose(0, 1)


class JointHeads(nn.Module):
    """Several heads of one configuration, each of which reads the first columns of one matrix: a layer of all their towers is one product, in
    which the columns that a head doesn't read have weights of zero. Their parameters are their own; this module saves none.

    Args:
        heads: of the same tasks' number and layers; the first reads all columns.
    """

    places: Tensor
    inverse: Tensor
    zero: Tensor

    def __init__(self, heads: Sequence[Heads]) -> None:
        super().__init__()
        # No submodules: they are saved under the names that their owner gives them.
        self.__dict__["heads"] = list(heads)
        places: list[Tensor] = []
        shapes: list[torch.Size] = []
        count = 0
        for kind in self._kinds():
            widest = max(each.shape[-1] for each in kind)
            padded = []
            for each in kind:
                own = torch.arange(count, count + each.numel()).view(each.shape)
                padded.append(nn.functional.pad(own, (0, widest - each.shape[-1]), value=-1))
                count += each.numel()
            stacked = torch.stack(padded)
            places.append(stacked.flatten())
            shapes.append(stacked.shape)
        self.shapes = shapes
        whole = torch.cat(places)
        whole = torch.where(whole < 0, count, whole)
        self.register_buffer("places", whole, persistent=False)
        self.register_buffer("inverse", whole.argsort()[:count], persistent=False)
        self.register_buffer("zero", torch.zeros(1), persistent=False)

    def forward(self, inputs: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Of each heads {task: logit [C]}.

        Args:
            inputs: [C, dim] of each; the others' are the first columns of the first one's.
        """
        heads: list[Heads] = self.__dict__["heads"]
        # A CPU multiplies zeros as slowly as anything else. Experts read the vector as it is, and no two heads share one.
        if heads[0].kind == "mmoe" or backend_for(inputs[0]) != "triton":
            return [each(own) for each, own in zip(heads, inputs, strict=True)]
        x = inputs[0].to(self.zero.dtype)
        with _full_precision(x):
            sizes, parameters = (
                [shape.numel() for shape in self.shapes],
                [each for kind in self._kinds() for each in kind],
            )
            parts = gather_parameters(self.places, self.inverse, self.zero, sizes, parameters)
            kinds = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
            logits = iter(_towers(x, kinds, heads[0].dropout if heads[0].training else 0.0).unbind())
        return [{task: next(logits) for task in each.tasks} for each in heads]

    def _kinds(self) -> list[list[Tensor]]:
        """Weights, and biases, of a layer of all towers; layer by layer."""
        heads: list[Heads] = self.__dict__["heads"]
        layers = zip(*(each.layers() for each in heads), strict=True)
        return [kind for layer in layers for kind in _linear([each for own in layer for each in own])]


def _towers(x: Tensor, kinds: Sequence[Tensor], dropout: float) -> Tensor:
    """[C, width] of all of N towers, or [N, C, width], to [N, C]: a product a layer.

    Args:
        kinds: each layer's weights [N, out, in] and biases [N, out]; ReLU and dropout between layers.
    """
    for number, (weight, bias) in enumerate(zip(kinds[::2], kinds[1::2], strict=True)):
        if number:
            x = nn.functional.dropout(torch.relu(x), dropout)
        if x.ndim == 2:
            x = nn.functional.linear(x, weight.flatten(0, 1), bias.flatten())
            x = x.view(len(x), *weight.shape[:2]).transpose(0, 1)
        else:
            x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
    return x.squeeze(-1)


def _full_precision(x: Tensor) -> AbstractContextManager[object]:
    """No autocast on the tensor's device."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _linear(layers: Sequence[nn.Module]) -> list[list[Tensor]]:
    """Weights, and biases, of linear layers."""
    return [[layer.get_parameter(name) for layer in layers] for name in ("weight", "bias")]

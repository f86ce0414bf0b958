"""DLRM (Naumov et al., 2019, arXiv:1906.00091), one row per exposure: every feature a vector, pairwise dot products, an MLP.

Sequences enter as the mean of their events, the realtime one as the mean of what the candidate sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.baselines.context import Context
from model.heads import HeadConfig, Heads
from schemas.schema import CANDIDATES, USER
from tokenization.batch import Batch
from tokenization.embedding import Embeddings


@dataclass(frozen=True)
class DlrmConfig:
    dim: int = 16
    """Width of a feature's vector in the interactions."""
    hidden: tuple[int, ...] = (128, 64)
    """The top MLP, shared by the tasks."""
    dropout: float = 0.1


class Dlrm(nn.Module):
    """Batch -> {task: logit [C]}."""

    def __init__(self, embeddings: Embeddings, tasks: Sequence[str], config: DlrmConfig, head: HeadConfig) -> None:
        super().__init__()
        self.context = Context(embeddings)
        self.groups = [USER, *self.context.sequences, CANDIDATES]
        self.widths = {group: [c.stop - c.start for c in embeddings.layout[group].values()] for group in self.groups}
        widths = [width for group in self.groups for width in self.widths[group]]
        self.fields = nn.ModuleList(nn.Linear(width, config.dim) for width in widths)
        count = len(widths)
        self.register_buffer("upper", torch.triu_indices(count, count, 1), persistent=False)
        width = count * config.dim + count * (count - 1) // 2
        layers: list[nn.Module] = []
        for size in config.hidden:
            layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(config.dropout)]
            width = size
        self.top = nn.Sequential(*layers)
        self.heads = Heads(width, tasks, head)

    @property
    def embeddings(self) -> Embeddings:
        return self.context.embeddings

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x = self.context.pooled(batch, self.context(batch))
        features = [each for group in self.groups for each in x[group].split(self.widths[group], 1)]
        fields = [field(each) for field, each in zip(self.fields, features, strict=True)]
        stacked = torch.stack(fields, 1)  # [C, fields, dim]
        dots = torch.bmm(stacked, stacked.transpose(1, 2))[:, self.upper[0], self.upper[1]]
        return self.heads(self.top(torch.cat([stacked.flatten(1), dots], 1)))

"""DLRM (Naumov et al., 2019, arXiv:1906.00091), one row per exposure: every feature a vector, pairwise dot products, an MLP.

Sequences enter as the mean of their events, the realtime one as the mean of what the candidate sees.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from genrank.model.baselines.context import mean, visible_mean
from genrank.model.baselines.tower import Baseline, Tower, weights_of
from genrank.model.heads import HeadConfig, Heads
from genrank.model.validation import Checked, Positive, Share
from genrank.schemas.schema import CANDIDATES, USER
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings

INTERACTIONS = 1 << 21
"""Dot products of a piece of a batch: with all of them at once the system spends its time on mapping fresh memory."""


@dataclass(frozen=True)
class DlrmConfig(Checked):
    """Fields that `--set` changes."""

    dim: Positive = 16
    """Width of a feature's vector in the interactions."""
    hidden: tuple[Positive, ...] = (128, 64)
    """The top MLP, shared by the tasks."""
    dropout: Share = 0.1


class Dlrm(Baseline):
    """Batch -> {task: logit [C]}."""

    pairs: Tensor

    def __init__(self, embeddings: Embeddings, tasks: Sequence[str], config: DlrmConfig, head: HeadConfig) -> None:
        super().__init__(embeddings)
        self.groups = [USER, *self.context.sequences, CANDIDATES]
        widths = {group: [c.stop - c.start for c in embeddings.layout[group].values()] for group in self.groups}
        self.fields = nn.ModuleDict({f"of_{group}": Fields(widths[group], config.dim) for group in self.groups})
        count = sum(map(len, widths.values()))
        first, second = torch.triu_indices(count, count, 1)
        self.register_buffer("pairs", first * count + second, persistent=False)
        width = count * config.dim + len(self.pairs)
        self.top = Tower(width, config.hidden, config.dropout)
        self.heads = Heads(self.top.out_dim, tasks, head)

    def operations(self, batch: Batch) -> int:
        """Of each group's rows their vectors, of candidates the dot products and the rest."""
        fields = 0
        for name in self.groups:
            fields += len(batch.groups[name].ts) * sum(weight.numel() for weight in self._field(name).weights)
        vectors = sum(len(self._field(name).bias) for name in self.groups)
        dots = vectors**2 * self._field(USER).dim
        return 2 * (fields + len(batch.item) * (dots + weights_of(self.top, self.heads)))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{task: logit [C]}."""
        context, x = self.context, self.context(batch)
        owner = context.owner(batch)
        # Fields are linear and so are means: what belongs to a user or an event is computed once for it, then spread.
        found = {group: self.fields[f"of_{group}"](x[group]) for group in self.groups}
        found[USER] = found[USER][owner]
        for name in context.histories:
            found[name] = mean(found[name], batch.groups[name].offsets)[owner]
        if context.realtime:
            found[context.realtime] = visible_mean(found[context.realtime], *context.prefix(batch, owner))
        vectors = torch.cat([self._field(group).shifted(found[group]) for group in self.groups], 1)
        rows = max(1, INTERACTIONS // vectors.shape[1] ** 2)
        return self.logits(torch.cat([self._interact(part) for part in torch.split(vectors, rows)]))

    def _interact(self, vectors: Tensor) -> Tensor:
        """[C, F, dim] -> [C, top]: the vectors and the dot product of every pair of them."""
        dots = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        top: Tensor = self.top(torch.cat([vectors.flatten(1), dots], 1))
        return top

    def _field(self, group: str) -> Fields:
        return cast(Fields, self.fields[f"of_{group}"])


class Fields(nn.Module):
    """A linear map per feature of a group, each to one vector. Features of equal width that lie side by side are one product."""

    def __init__(self, widths: Sequence[int], dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.runs = [(width, len(list(run))) for width, run in itertools.groupby(widths)]
        self.weights = nn.ParameterList(
            torch.empty(count, width, dim).uniform_(-(width**-0.5), width**-0.5) for width, count in self.runs
        )
        self.bias = nn.Parameter(torch.zeros(len(widths), dim))

    def forward(self, x: Tensor) -> Tensor:
        """[N, width of the group] -> [N, features * dim], before the bias."""
        parts = torch.split(x, [width * count for width, count in self.runs], 1)
        found = [
            torch.bmm(part.reshape(len(x), count, width).transpose(0, 1), weight).transpose(0, 1).flatten(1)
            for part, weight, (width, count) in zip(parts, self.weights, self.runs, strict=True)
        ]
        return torch.cat(found, 1) if found else x[:, :0]

    def shifted(self, found: Tensor) -> Tensor:
        """[C, features * dim] -> [C, features, dim], with the bias."""
        return found.view(-1, len(self.bias), self.dim) + self.bias

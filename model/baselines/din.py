"""DIN (Zhou et al., KDD 2018, arXiv:1706.06978), one row per exposure: each candidate attends to the events it sees.

v_U(A) = sum_j a(e_j, v_A) e_j (equation 3), the weights not normalised. History and the visible realtime prefix are one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genrank.model.baselines.context import segment_sum
from genrank.model.baselines.tower import Baseline, Tower, weights_of
from genrank.model.heads import HeadConfig, Heads
from genrank.model.target_attention import ActivationUnit
from genrank.model.validation import Checked, Positive, Share
from genrank.schemas.schema import CANDIDATES, USER
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings


@dataclass(frozen=True)
class DinConfig(Checked):
    """Fields that `--set` changes."""

    dim: Positive = 32
    """Width of an event and of the candidate in attention."""
    attention_hidden: Positive = 32
    """Hidden width of the activation unit."""
    hidden: tuple[Positive, ...] = (128, 64)
    dropout: Share = 0.1
    feature_norm: bool = False
    """Bring every feature to one scale, as `BlockConfig.feature_norm`; the paper's model has nothing like it."""


class Din(Baseline):
    """Batch -> {task: logit [C]}."""

    def __init__(self, embeddings: Embeddings, tasks: Sequence[str], config: DinConfig, head: HeadConfig) -> None:
        super().__init__(embeddings, config.feature_norm)
        self.events = nn.ModuleDict(
            {name: nn.Linear(embeddings.width(name), config.dim) for name in self.context.sequences}
        )
        self.candidate = nn.Linear(embeddings.width(CANDIDATES), config.dim)
        self.unit = ActivationUnit(config.dim, config.attention_hidden)
        width = embeddings.width(USER) + embeddings.width(CANDIDATES) + 2 * config.dim
        self.top = Tower(width, config.hidden, config.dropout, nn.PReLU)
        self.heads = Heads(self.top.out_dim, tasks, head)

    def operations(self, batch: Batch) -> int | Tensor:
        """Of events once each, of pairs the products and their weights, of candidates the rest."""
        unit, context = self.unit, self.context
        rows = len(batch.item) * weights_of(self.candidate, self.top, self.heads)
        if not context.sequences:
            return 2 * rows
        for name in context.sequences:
            rows += len(batch.groups[name].ts) * weights_of(self.events[name], unit.of_event)
        rows += len(batch.item) * weights_of(unit.of_candidate)
        return 2 * (rows + context.pair_count(batch) * weights_of(unit.of_product, unit.weight))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{task: logit [C]}."""
        x = self.context(batch)
        owner = self.context.owner(batch)
        candidate = self.candidate(x[CANDIDATES])
        if self.context.sequences:
            events = torch.cat([self.events[name](x[name]) for name in self.context.sequences])
            offsets, of, rows = self.context.pairs(batch, owner)
            interest = segment_sum(self.unit(candidate, events, of, rows), offsets)
        else:
            interest = torch.zeros_like(candidate)
        return self.logits(self.top(torch.cat([x[USER][owner], x[CANDIDATES], interest, interest * candidate], 1)))

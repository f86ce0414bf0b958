"""DCN-v2 (Wang et al., WWW 2021, arXiv:2008.13535), one row per exposure: explicit crosses beside a deep network.

x_{l+1} = x_0 * (W_l x_l + b_l) + x_l (equation 1), parallel structure. Sequences enter as means, as in `dlrm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genrank.model.baselines.tower import Baseline, Tower, weights_of
from genrank.model.heads import HeadConfig, Heads
from genrank.model.validation import Checked, Count, Positive, Share
from genrank.schemas.schema import CANDIDATES, USER
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings


@dataclass(frozen=True)
class DcnConfig(Checked):
    """Fields that `--set` changes."""

    layers: Count = 3
    rank: Positive = 64
    """W = U V with this inner width (section 3.2); at least the input's width means a full W."""
    hidden: tuple[Positive, ...] = (128, 64)
    dropout: Share = 0.1


class Dcn(Baseline):
    """Batch -> {task: logit [C]}."""

    def __init__(self, embeddings: Embeddings, tasks: Sequence[str], config: DcnConfig, head: HeadConfig) -> None:
        super().__init__(embeddings)
        self.groups = [USER, *self.context.sequences, CANDIDATES]
        width = sum(embeddings.width(group) for group in self.groups)
        self.norm = nn.LayerNorm(width)
        self.crosses = nn.ModuleList(self._cross(width, config.rank) for _ in range(config.layers))
        self.deep = Tower(width, config.hidden, config.dropout)
        self.heads = Heads(width + self.deep.out_dim, tasks, head)

    @staticmethod
    def _cross(width: int, rank: int) -> nn.Module:
        if rank >= width:
            return nn.Linear(width, width)
        return nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))

    def operations(self, batch: Batch) -> int:
        """Of candidates alone: means of sequences are no products."""
        return 2 * len(batch.item) * weights_of(self.crosses, self.deep, self.heads)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{task: logit [C]}."""
        pooled = self.context.pooled(batch, self.context(batch))
        first = x = self.norm(torch.cat([pooled[group] for group in self.groups], 1))
        for cross in self.crosses:
            x = first * cross(x) + x
        return self.logits(torch.cat([x, self.deep(first)], 1))

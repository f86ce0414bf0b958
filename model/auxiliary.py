"""The network that `--phase sparse` trains the tables' rows through (GRAB, arXiv:2602.01865): no prediction comes from it.

    logits of an exposure = heads(MLP([its features ++ its user's ++ the mean of each sequence as it sees it]))

The sequence network then finds rows that single shuffled exposures have shaped, whatever it makes of a user's packed events.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genrank.model.baselines.context import Context
from genrank.model.baselines.tower import Tower
from genrank.model.heads import HeadConfig, Heads
from genrank.schemas.schema import CANDIDATES, USER
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings


class Auxiliary(nn.Module):
    """A pointwise network on a model's tables.

    Args:
        embeddings: the model's.
        tasks: names of the labels.
        hidden: widths of its layers.
    """

    def __init__(self, embeddings: Embeddings, tasks: Sequence[str], hidden: Sequence[int], head: HeadConfig) -> None:
        super().__init__()
        # No submodule: the tables are the model's own, and are saved with it.
        self.__dict__["context"] = context = Context(embeddings)
        self.groups = [CANDIDATES, USER, *context.sequences]
        self.tower = Tower(sum(map(context.width, self.groups)), hidden, 0.0)
        self.heads = Heads(self.tower.out_dim, tasks, head)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{label: logit [C]}."""
        context: Context = self.__dict__["context"]
        pooled = context.pooled(batch, context(batch))
        logits: dict[str, Tensor] = self.heads(self.tower(torch.cat([pooled[name] for name in self.groups], 1)))
        return logits

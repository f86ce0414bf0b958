"""SASRec (Kang & McAuley, ICDM 2018, arXiv:1808.09781) as a ranker: causal softmax attention over the user's events, and the state
after the last event a candidate sees scored against the candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrank.kernels.jagged import jagged_concat
from genrank.model.baselines.tower import Baseline, Tower, weights_of
from genrank.model.heads import HeadConfig, Heads
from genrank.model.validation import Checked, Positive, Share
from genrank.schemas.schema import CANDIDATES, USER
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings


@dataclass(frozen=True)
class SasrecConfig(Checked):
    """Fields that `--set` changes."""

    dim: Positive = 64
    layers: Positive = 2
    heads: Positive = 2
    max_positions: Positive = 1024
    """Positions count from the newest event back; older events share the last one."""
    hidden: tuple[Positive, ...] = (128, 64)
    dropout: Share = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % self.heads:
            raise self.refuse("dim", f"must be a multiple of heads, {self.heads}")


class Sasrec(Baseline):
    """Batch -> {task: logit [C]}."""

    def __init__(self, embeddings: Embeddings, tasks: Sequence[str], config: SasrecConfig, head: HeadConfig) -> None:
        super().__init__(embeddings)
        self.config = config
        self.events = nn.ModuleDict(
            {name: nn.Linear(embeddings.width(name), config.dim) for name in self.context.sequences}
        )
        self.start = nn.Parameter(0.02 * torch.randn(1, config.dim))
        self.positions = nn.Embedding(config.max_positions, config.dim)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)
        self.candidate = nn.Linear(embeddings.width(CANDIDATES), config.dim)
        width = embeddings.width(USER) + embeddings.width(CANDIDATES) + 2 * config.dim
        self.top = Tower(width, config.hidden, config.dropout)
        self.heads = Heads(self.top.out_dim, tasks, head)

    def operations(self, batch: Batch) -> int:
        """Of every place of the padded sequences the layers, of candidates the rest."""
        events = [batch.groups[name] for name in self.context.sequences]
        places = 1 + int(torch.stack([each.host_lengths for each in events]).sum(0).max())
        rows = len(batch) * places * (weights_of(self.layers) + 2 * len(self.layers) * places * self.config.dim)
        for name, each in zip(self.context.sequences, events, strict=True):
            rows += len(each.ts) * weights_of(self.events[name])
        return 2 * (rows + len(batch.item) * weights_of(self.candidate, self.top, self.heads))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{task: logit [C]}."""
        x = self.context(batch)
        owner = self.context.owner(batch)
        samples = len(batch)
        # Every sequence begins with a learned state: a user without events has one too.
        starts = torch.arange(samples + 1, device=owner.device)
        parts = [(self.start.expand(samples, -1), starts)]
        parts += [(self.events[name](x[name]), batch.groups[name].offsets) for name in self.context.sequences]
        values, offsets = jagged_concat(parts)
        lengths = offsets.diff()
        realtime = batch.groups[self.context.realtime].lengths if self.context.realtime else torch.zeros_like(lengths)

        sample = torch.repeat_interleave(lengths, output_size=len(values))
        place = torch.arange(len(values), device=owner.device) - offsets[:-1][sample]
        # Counted back from the window's start, so that no position depends on how much came after an exposure.
        back = ((lengths - realtime)[sample] - 1 - place).clamp(0, self.config.max_positions - 1)
        events = torch.stack([batch.groups[name].host_lengths for name in self.context.sequences]).sum(0)
        padded = values.new_zeros((samples, 1 + int(events.max()), values.shape[1]))
        padded[sample, place] = values + self.positions(back)
        for layer in self.layers:
            padded = layer(padded)
        seen = (lengths - realtime)[owner] - 1 + (batch.candidate_sees if self.context.realtime else 0)
        state = self.norm(padded[owner, seen])
        candidate = self.candidate(x[CANDIDATES])
        return self.logits(self.top(torch.cat([x[USER][owner], x[CANDIDATES], state, state * candidate], 1)))


class _Layer(nn.Module):
    """Pre-norm causal self-attention and feed-forward. Padding comes last, so causality hides it."""

    def __init__(self, config: SasrecConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.norm, self.norm2 = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.qkv, self.out = nn.Linear(config.dim, 3 * config.dim), nn.Linear(config.dim, config.dim)
        self.feed = nn.Sequential(
            nn.Linear(config.dim, config.dim), nn.ReLU(), nn.Linear(config.dim, config.dim), nn.Dropout(config.dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, dim] -> [B, L, dim]."""
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0
        )
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        change: Tensor = self.feed(self.norm2(x))
        return x + change

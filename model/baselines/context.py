"""What a pointwise model sees of a candidate: the user, its history and the realtime events before the exposure."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genrank.schemas.schema import CANDIDATES, USER
from genrank.tokenization.batch import Batch, ranges
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.feature_norm import FeatureNorms


class Context(nn.Module):
    """Embeddings of a batch, per candidate.

    Args:
        embeddings: its groups' matrices are read once a batch.
        feature_norm: every feature at one scale, see `tokenization.feature_norm`.
    """

    def __init__(self, embeddings: Embeddings, feature_norm: bool = False) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.norms = FeatureNorms(embeddings) if feature_norm else None
        schema = embeddings.plan.schema
        self.histories = [sequence.name for sequence in schema.histories]
        self.realtime = schema.realtime.name if schema.realtime else None
        self.sequences = [*self.histories, *([self.realtime] if self.realtime else [])]

    def width(self, group: str) -> int:
        """Columns of a group's matrix."""
        return self.embeddings.width(group)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Group -> [N, width] float32."""
        matrices: dict[str, Tensor] = self.embeddings(batch, norms=self.norms)
        return matrices

    def owner(self, batch: Batch) -> Tensor:
        """[C] int64: the sample of each candidate."""
        return torch.repeat_interleave(batch.candidates.lengths, output_size=len(batch.item))

    def pooled(self, batch: Batch, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """[C, width] per group: the candidate itself, its user, and the mean of each sequence as the candidate sees it."""
        owner = self.owner(batch)
        out = {CANDIDATES: x[CANDIDATES], USER: x[USER][owner]}
        for name in self.histories:
            out[name] = mean(x[name], batch.groups[name].offsets)[owner]
        if self.realtime:
            out[self.realtime] = visible_mean(x[self.realtime], *self.prefix(batch, owner))
        return out

    def pair_count(self, batch: Batch) -> Tensor:
        """int64 scalar on the device: pairs of a candidate and an event it sees."""
        pairs = torch.zeros((), dtype=torch.int64, device=batch.user.device)
        for name in self.histories:
            pairs = pairs + (batch.groups[name].lengths * batch.candidates.lengths).sum()
        return pairs + batch.candidate_sees.sum() if self.realtime else pairs

    def prefix(self, batch: Batch, owner: Tensor) -> tuple[Tensor, Tensor]:
        """(begin, end), each [C] int64: the realtime rows a candidate sees."""
        assert self.realtime
        begin = batch.groups[self.realtime].offsets[:-1][owner]
        return begin, begin + batch.candidate_sees

    def pairs(self, batch: Batch, owner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Every (candidate, event it sees): offsets [C+1], candidate [P] and row [P], all int64.

        Rows count the sequences' events laid end to end, in the order of `sequences`.
        """
        begins, ends, base = [], [], 0
        for name in self.histories:
            offsets = batch.groups[name].offsets
            begins.append(offsets[:-1][owner] + base)
            ends.append(offsets[1:][owner] + base)
            base += len(batch.groups[name].ts)
        if self.realtime:
            begin, end = self.prefix(batch, owner)
            begins.append(begin + base)
            ends.append(end + base)
        begin, end = torch.stack(begins, 1).flatten(), torch.stack(ends, 1).flatten()
        parts, rows = ranges(begin, end)
        offsets = parts[:: len(self.sequences)]
        candidate = torch.repeat_interleave(offsets.diff(), output_size=len(rows))
        return offsets, candidate, rows


def mean(x: Tensor, offsets: Tensor) -> Tensor:
    """[N, D], [B+1] -> [B, D]: the mean of each segment, zeros for an empty one."""
    return segment_sum(x, offsets) / offsets.diff().clamp(min=1)[:, None]


def segment_sum(x: Tensor, offsets: Tensor) -> Tensor:
    """[N, D], [B+1] -> [B, D]."""
    owner = torch.repeat_interleave(offsets.diff(), output_size=len(x))
    return x.new_zeros((len(offsets) - 1, x.shape[1])).index_add(0, owner, x)


def visible_mean(x: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """[N, D], [C], [C] -> [C, D]: the mean of rows [begin, end), zeros where there is none; overlapping ranges cost nothing."""
    running = torch.cat([x.new_zeros((1, x.shape[1])), x.double().cumsum(0).to(x.dtype)])
    return (running[end] - running[begin]) / (end - begin).clamp(min=1)[:, None]

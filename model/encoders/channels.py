"""A sample's sequences apart: a channel for each, with the user's rows before it (ULTRA-HSTU's transducers, GRAB's action channels).

`Tokens.sequence_ids` says which sequence a row is of; a realtime sequence is a channel, too. The rows of all channels lie channel after
channel, each as a batch of its own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from genrank.model.encoders.jagged_rows import places
from genrank.tokenization.jagged_tokens import Candidates, Tokens
from genrank.tokenization.visibility import HISTORY


@dataclass
class Channel:
    """One channel of B samples."""

    tokens: Tokens
    """The user's rows and the channel's, with intervals that count them."""
    before: Tensor
    """[T+1] int64: how many of the first rows of the whole are of the channel."""
    starts: Tensor
    """[B] int64: where the whole's samples begin."""

    def seen(self, candidates: Candidates) -> Candidates:
        """The same candidates, whose intervals count the channel's rows."""
        start = self.starts[candidates.owner]
        begin, end = (self._count(start, bound) for bound in (candidates.begin, candidates.end))
        return dataclasses.replace(candidates, begin=begin, end=end)

    def _count(self, start: Tensor, bound: Tensor) -> Tensor:
        return (self.before[start + bound] - self.before[start]).to(torch.int32)


def channels_of(sequence: Tokens, number: int) -> list[Channel]:
    """The channels 1 to `number` of sequences without candidates.

    Waits for the device, to count their rows.
    """
    ids = sequence.sequence_ids
    if ids is None:
        raise ValueError("channels need Tokens.sequence_ids: ask for them by Wants(sequence_ids=True)")
    offsets = sequence.offsets.long()
    starts = offsets[:-1]
    sample = torch.repeat_interleave(offsets.diff(), output_size=len(ids))
    made = []
    for at in range(1, number + 1):
        kept = (ids == 0) | (ids == at)
        before = torch.nn.functional.pad(kept.cumsum(0), (1, 0))
        bounds = before[offsets]
        history = kept & (sequence.group_ids == HISTORY)
        of_history = torch.zeros_like(starts).index_add_(0, sample, history.long())
        lengths, histories = torch.stack([bounds.diff(), of_history]).cpu()
        rows = places(kept, int(lengths.sum()))
        channel = Channel(sequence, before, starts)
        start = starts[sample[rows]]
        channel.tokens = dataclasses.replace(
            sequence,
            x=sequence.x.index_select(0, rows),
            offsets=bounds.to(sequence.offsets.dtype),
            group_ids=sequence.group_ids[rows],
            begin=channel._count(start, sequence.begin[rows]),
            end=channel._count(start, sequence.end[rows]),
            timestamps=sequence.timestamps[rows],
            max_length=int(lengths.max()) if len(lengths) else 0,
            lengths=lengths,
            history_lengths=histories,
            slots=None,
            sequence_ids=ids[rows],
        )
        made.append(channel)
    return made

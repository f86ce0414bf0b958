"""Rows of jagged sequences, for encoders that ask for fewer rows than they read: what a sample is made of, which rows stay, and the
keys that candidates read beside the sequences'.

    rows_of(sequence) -> Rows             which rows are user, history and realtime, and where
    newest(rows, n, lengths)              all rows but the history older than its newest n
    evenly(rows, n, lengths)              all rows but of the history n, evenly spread over it, the newest among them
    Joined(offsets, owner, tokens)        the rows of sequences and of their candidates, laid out sample by sample

Every row of the history is known before the window that the candidates are of, and candidates see all of it: history can be merged and
cut off without asking who sees what. Realtime rows can't: each candidate sees those that were available before its exposure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from genrank.tokenization.jagged_tokens import Candidates, Tokens
from genrank.tokenization.visibility import HISTORY, REALTIME, USER


class Rows(NamedTuple):
    """The T rows of B samples, each U | S | R."""

    offsets: Tensor
    """[B+1] int64."""
    sample: Tensor
    """[T] int64."""
    place: Tensor
    """[T] int64: the row's place in its sample."""
    group: Tensor
    """[T] int32: `visibility.USER`, HISTORY or REALTIME."""
    users: Tensor
    history: Tensor
    realtime: Tensor
    """[B] int64: how many of each a sample has."""
    end: Tensor
    """[T] int64: one past the last row that was available before a realtime row was; of use for realtime rows alone."""
    seconds: Tensor
    """[T] int64 epoch seconds."""

    @property
    def known(self) -> Tensor:
        """[B] int64: user and history rows."""
        return self.users + self.history

    def take(self, kept: Tensor, dropped: Tensor) -> Rows:
        """The rows [kept] ([R] int64), where `dropped` ([B] int64) history rows of each sample are not among them."""
        offsets = self.offsets - torch.nn.functional.pad(dropped.cumsum(0), (1, 0))
        sample = self.sample[kept]
        place = torch.arange(len(kept), device=kept.device) - offsets[sample]
        end = self.end[kept] - dropped[sample]
        return Rows(
            offsets,
            sample,
            place,
            self.group[kept],
            self.users,
            self.history - dropped,
            self.realtime,
            end,
            self.seconds[kept],
        )


def rows_of(sequence: Tokens) -> Rows:
    """The rows of sequences without candidates, whose rule is `visibility.causal` (or another that shows a realtime row all history, and
    what was available before it)."""
    offsets = sequence.offsets.long()
    total, batch = len(sequence.x), len(sequence.lengths)
    sample = torch.repeat_interleave(offsets.diff(), output_size=total)
    users, history, realtime = (
        torch.zeros(batch, dtype=torch.int64, device=offsets.device).index_add_(
            0, sample, (sequence.group_ids == g).long()
        )
        for g in (USER, HISTORY, REALTIME)
    )
    place = torch.arange(total, device=offsets.device) - offsets[sample]
    seconds = sequence.timestamps // 1000
    return Rows(offsets, sample, place, sequence.group_ids, users, history, realtime, sequence.end.long(), seconds)


def newest(rows: Rows, history: int, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """All rows but the history rows that are older than the newest `history` of their sample.

    Args:
        lengths: [B] int64 on the host: history rows of each sample.

    Returns:
        [R] int64 which rows, and [B] int64 how many of each sample are dropped.
    """
    return _with_history(rows, history, lengths, _behind_newest(rows) < history)


def evenly(rows: Rows, history: int, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """As `newest`, of a history of h rows those whose distance b from the newest one is the first at which floor(b * history / h) has its value."""
    of = rows.history[rows.sample]
    spread = _behind_newest(rows) * history % of.clamp(min=1) < history
    return _with_history(rows, history, lengths, spread | (of <= history))


def _behind_newest(rows: Rows) -> Tensor:
    """[T] int64: of a history row, how many of its sample's history are newer."""
    return rows.users[rows.sample] + rows.history[rows.sample] - 1 - rows.place


def _with_history(rows: Rows, history: int, lengths: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """What `newest` returns, of the history rows that are kept ([T] bool): `history` of each sample that has more."""
    kept = kept | (rows.group != HISTORY)
    dropped = (rows.history - history).clamp(min=0)
    return places(kept, len(rows.sample) - int((lengths - history).clamp(min=0).sum())), dropped


def places(chosen: Tensor, count: int) -> Tensor:
    """[count] int64: where `chosen` ([T] bool) holds, as often as the caller knows: `nonzero` would ask the device."""
    return torch.searchsorted(chosen.cumsum(0), torch.arange(1, count + 1, device=chosen.device))


# ---------------------------------------------------------------------- beside candidates


@dataclass
class InOrder:
    """Candidates sample by sample, as kernels take queries."""

    candidates: Candidates
    order: Tensor
    """[C] int64: which candidate stands where."""

    def back(self, x: Tensor) -> Tensor:
        """[C, ...] in the order in which they were given."""
        given = torch.empty_like(self.order)
        given[self.order] = torch.arange(len(self.order), device=self.order.device)
        return x[given]


def in_order(candidates: Candidates) -> InOrder:
    """Sorted by sample; stable."""
    order = torch.argsort(candidates.owner, stable=True)
    return InOrder(candidates.take(order), order)


class Joined:
    """Rows of B sequences and of their candidates' tokens, laid out sample by sample: the sequence, then its candidates' tokens.

    Args:
        offsets: [B+1] int64 of the sequences.
        owner: [C] int64, ascending.
        tokens: of each candidate, side by side.
    """

    def __init__(self, offsets: Tensor, owner: Tensor, tokens: int = 1) -> None:
        self.q_offsets = torch.searchsorted(owner, torch.arange(offsets.shape[0], device=owner.device)) * tokens
        self.k_offsets = offsets + self.q_offsets
        lengths = offsets.diff()
        of = torch.repeat_interleave(owner, tokens, output_size=owner.shape[0] * tokens) if tokens > 1 else owner
        self._lengths = lengths
        self.places = torch.arange(of.shape[0], device=owner.device) + offsets[1:][of]
        """[C * tokens] int64: each token's place among all keys."""
        self.q_positions = (self.places - self.k_offsets[:-1][of]).to(torch.int32)
        """[C * tokens] int32: each token's place among its sample's keys."""

    def rows(self, sequence: Tensor, candidates: Tensor) -> Tensor:
        """[S, ...] and [C * tokens, ...] -> [S + C * tokens, ...]."""
        ahead = torch.repeat_interleave(self.q_offsets[:-1], self._lengths, output_size=sequence.shape[0])
        of_sequence = torch.arange(sequence.shape[0], device=ahead.device) + ahead
        out = sequence.new_empty((sequence.shape[0] + candidates.shape[0], *sequence.shape[1:]))
        out = out.index_copy(0, of_sequence, sequence)
        return out.index_copy(0, self.places, candidates.to(out.dtype))

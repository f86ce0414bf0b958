"""What an encoder reads. Torch only: a GPU image without the schemas' libraries runs the encoders, too."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Candidates:
    """Candidates to score against user states; C of them, each of Tc tokens."""

    x: Tensor
    """[C, Tc, dim]."""
    owner: Tensor
    """[C] int64: the sample of each, a row of the state."""
    begin: Tensor
    """[C] int32: the first token of its sample's sequence that the candidate sees."""
    end: Tensor
    """[C] int32: one past the last it sees."""
    timestamps: Tensor
    """[C] int64 epoch ms."""
    requests: Tensor | None = None
    """[C] int64, where the encoder wants them: the request of each."""

    def take(self, which: Tensor | slice) -> Candidates:
        """Some of them, or all in another order."""
        return Candidates(
            self.x[which],
            self.owner[which],
            self.begin[which],
            self.end[which],
            self.timestamps[which],
            None if self.requests is None else self.requests[which],
        )


@dataclass
class Tokens:
    """Jagged tokens of a batch: T tokens, sample after sample, each in the order U | S... | R | C; without C where an encoder wants
    several tokens a candidate."""

    x: Tensor
    """[T, d_model]."""
    offsets: Tensor
    """[B+1] int32."""
    group_ids: Tensor
    """[T] int32: 0 user, 1 history (of any sequence), 2 realtime, 3 candidate."""
    begin: Tensor
    """[T] int32: first visible token, local to the sample."""
    end: Tensor
    """[T] int32: one past the last visible token; a token also sees itself."""
    timestamps: Tensor
    """[T] int64 epoch ms: the token's own; `window_start` for user tokens."""
    candidate_rows: Tensor
    """[C] int64: which rows of `x` are the candidates, in the batch's candidate order; empty where they are in `candidates`."""
    max_length: int
    """Tokens of the longest sample."""
    lengths: Tensor
    """[B] int64: tokens of each sample. On the host, whatever the device: what is needed there never has to be read back."""
    history_lengths: Tensor
    """[B] int64 on the host: history tokens of each."""
    slots: Tensor | None = None
    """[T] int32, where the encoder wants them: 0 for events and separators, whose weights are shared, else 1 + the token's place among the
    user's. A candidate's tokens follow: its place j is slot 1 + user tokens + j."""
    sequence_ids: Tensor | None = None
    """[T] int32, where the encoder wants them: 0 user, then 1 + the place of the token's sequence in token order, realtime last, then the
    candidates; a separator is of the sequence before it."""
    event_types: Tensor | None = None
    """[T] int32, where the encoder wants them (`Wants.event_actions`): of an event's first token the event's type, counted on from sequence
    to sequence of the schema; -1 of every other token."""
    requests: Tensor | None = None
    """[C] int64, where the encoder wants them (`Wants.requests`): the request of each candidate, in the order of `candidate_rows`."""
    candidates: Candidates | None = None
    """The candidates, where their tokens are no rows of `x`."""

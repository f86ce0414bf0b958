"""What an encoder reads. Torch only: a GPU image without the schemas' libraries runs the encoders, too."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Tokens:
    """Jagged tokens of a batch: T tokens, sample after sample, each in the order U | S... | R | C."""

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
    """[C] int64: which rows of `x` are the candidates, in the batch's candidate order."""
    max_length: int
    """Tokens of the longest sample."""
    lengths: Tensor
    """[B] int64: tokens of each sample. On the host, whatever the device: what is needed there never has to be read back."""
    history_lengths: Tensor
    """[B] int64 on the host: history tokens of each."""

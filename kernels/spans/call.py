"""What a call of span attention is given beside q, k and v: spans, bias, and all of it in one value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Weighting = Literal["softmax", "silu"]


class Spans(NamedTuple):
    """Which query of which sample sees which keys: those of its S spans, which do not overlap."""

    q_offsets: Tensor
    """int32 or int64 [B+1]: sample b owns queries `q_offsets[b]:q_offsets[b+1]`."""
    k_offsets: Tensor
    """[B+1] of the keys, of the same dtype."""
    begin: Tensor
    end: Tensor
    """int32 [S, Tq], local to the sample's keys; a span with `begin >= end` is empty."""

    @property
    def seen(self) -> Tensor:
        """int64 [Tq]: the keys that each query sees."""
        return (self.end - self.begin).clamp(min=0).sum(0)


def make_spans(q_offsets: Tensor, k_offsets: Tensor, spans: Sequence[tuple[Tensor, Tensor]]) -> Spans:
    """The union of spans that may overlap: what an earlier one covers is taken from the later ones.

    Args:
        q_offsets, k_offsets: int32 or int64 [B+1].
        spans: (begin, end), each int [Tq], local to the sample's keys; begins rise from span to span (empty spans may stand anywhere).
    """
    begins: list[Tensor] = []
    ends: list[Tensor] = []
    reached: Tensor | None = None
    for begin, end in spans:
        begin = begin if reached is None else torch.maximum(begin, reached)
        begins.append(begin.to(torch.int32))
        ends.append(end.to(torch.int32))
        last = torch.where(begin < end, end, 0)
        reached = last if reached is None else torch.maximum(reached, last)
    return Spans(q_offsets, k_offsets, torch.stack(begins), torch.stack(ends))


class SpanBias(NamedTuple):
    """Relative position and time bias, added to the scores; tables as in `kernels.attention.RelativeBias`, whose rows
    they read. Queries and keys have positions (int32) and times (int64) of their own."""

    position_table: Tensor | None = None
    """[2P-1, H]."""
    time_table: Tensor | None = None
    """[buckets, H]."""
    q_positions: Tensor | None = None
    k_positions: Tensor | None = None
    """int32 [Tq], [Tk]; needed by `position_table`."""
    q_times: Tensor | None = None
    k_times: Tensor | None = None
    """int64 [Tq], [Tk]; needed by `time_table`."""

    @property
    def tables(self) -> list[Tensor]:
        """Whichever tables there are, the position table first."""
        return [table for table in self[:2] if table is not None]


class SpanCall(NamedTuple):
    """What one call of the op is given beside q, k and v."""

    spans: Spans
    scale: Tensor
    """float32 [Tq]: what a query's output is multiplied by (SiLU's 1/n; softmax: not read)."""
    bias: SpanBias
    alpha: float
    """Scale of the scores."""
    softmax: bool
    max_length: int = -1
    """Keys of the longest sample, -1 if not known."""

    def flat(self) -> tuple[Any, ...]:
        """The arguments of PyTorch's op, in the order of `FLAT_SCHEMA`."""
        return (*self.spans, self.scale, *self.bias, *self[3:])

    @classmethod
    def of(cls, flat: tuple[Any, ...]) -> SpanCall:
        """The inverse of `flat`."""
        return cls(Spans(*flat[:4]), flat[4], SpanBias(*flat[5:11]), *flat[11:])


FLAT_SCHEMA = (
    "Tensor q_offsets, Tensor k_offsets, Tensor begin, Tensor end, Tensor scale, Tensor? position_table, "
    "Tensor? time_table, Tensor? q_positions, Tensor? k_positions, Tensor? q_times, Tensor? k_times, "
    "float alpha, bool softmax, SymInt max_length"
)
TENSORS = 11
"""How many of these are tensors: the first ones."""

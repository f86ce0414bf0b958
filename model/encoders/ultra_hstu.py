"""ULTRA-HSTU (Meta, arXiv:2602.16986): HSTU whose cost grows linearly with the history.

    semi-local attention   query q sees keys [0, prefix) and the `local` before it, and itself: SiLU, 1/n, as HSTU (equations 1-3)
    truncation             after layer `truncate_after` only the newest `tail` history rows go on; user rows, realtime rows and candidates all do
    transducers            a stack of its own a channel (a sequence of the schema); the user's rows and the candidates enter all of them;
                           a candidate's vectors are put side by side

Which reading was taken (the paper's text could not be had beyond its abstract; TorchEasyRec's documentation was read):
  - Channels are the schema's sequences, the realtime one included: `channels=true`. A sample without events of a channel has its user rows there.
  - The user's rows are the context; they are causal among themselves, and `prefix` counts from the first of them.
  - Causal semi-local attention is cut from HSTU's causal mask: a realtime row sees what was available strictly before it, and itself.
  - Activations that forward drops are the trainer's `--recompute`, a block at a time; the paper's fp8 is not built.
Sizes: TorchEasyRec's example (512 wide, 4 heads of 128, local 256, prefix 32, four layers truncated after two to 512).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genrank.kernels.norm import Order
from genrank.kernels.spans import SpanBias, Spans, make_spans, span_attention
from genrank.model.encoders.block import Block, BlockConfig, Norm, NormKind, Projected, streamed
from genrank.model.encoders.channels import Channel, channels_of
from genrank.model.encoders.interface import Candidates, Counts, Encoder
from genrank.model.encoders.jagged_rows import Joined, Rows, in_order, newest, rows_of
from genrank.model.validation import Count, Positive
from genrank.tokenization import visibility
from genrank.tokenization.jagged_tokens import Tokens
from genrank.tokenization.visibility import CANDIDATE
from genrank.tokenization.wants import TokenShape, Wants


@dataclass(frozen=True)
class UltraHstuConfig(BlockConfig):
    """HSTU's block under semi-local attention."""

    local: Positive = 256
    """k1: a query sees at most so many rows before it."""
    prefix: Count = 32
    """k2: and the first so many of its sample."""
    truncate_after: Count = 0
    """Layers that read the whole history; 0: all of them."""
    tail: Positive = 512
    """L': history rows that the layers after `truncate_after` read."""
    channels: bool = False
    """A stack of layers a sequence of the schema."""
    stacks: Count = 0
    """How many; 0: as `channels` and the schema say."""
    input_norm: NormKind = "layer"
    output_norm: NormKind = "layer"
    gate: Order = "norm_gate"
    divisor: Literal["visible"] | Positive = "visible"
    position_reach: Count = 512
    time_buckets: Count = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention_dropout:
            raise self.refuse("attention_dropout", "semi-local attention has none; give 0, and dropout")
        if self.history_loss:
            raise self.refuse("history_loss", "deeper layers have no row for events that were truncated; give 0")
        if self.norm_groups != "kind":
            raise self.refuse("norm_groups", "channels are stacks of their own here; give kind")
        if self.truncate_after >= self.layers:
            raise self.refuse("truncate_after", f"give fewer than the {self.layers} layers, or 0 to truncate none")

    def wants(self) -> Wants:
        """Causal sequences, kept apart where they are channels."""
        return dataclasses.replace(super().wants(), rule=visibility.causal, sequence_ids=self.channels)

    def fit(self, shape: TokenShape) -> Self:
        """With a stack a sequence of the schema."""
        return dataclasses.replace(self, stacks=max(shape.sequences, 1) if self.channels else 1)

    @property
    def out_dim(self) -> int:
        """The stacks' widths together."""
        return self.dim * max(self.stacks, 1)

    def flops(self, counts: Counts) -> int:
        """At the mean length of what candidates see, split evenly among the channels."""
        if not counts.candidates:
            return 0
        stacks = max(self.stacks, 1)
        events = max(counts.tokens - counts.candidates, 0) / stacks
        length = counts.seen / counts.candidates / stacks
        kept = min(1.0, self.tail / max(length, 1.0))
        whole = self.truncate_after or self.layers
        inner = self.heads * self.v_dim
        dense = self.dim * self.heads * 2 * (self.qk_dim + self.v_dim) + inner * (3 if self.concat_ua else 1) * self.dim

        def layer(share: float) -> float:
            rows = events * share + counts.candidates
            pairs = rows * min(length * share, self.local + self.prefix)
            return 2 * rows * dense + 2 * pairs * self.heads * (self.qk_dim + self.v_dim)

        return round(stacks * (whole * layer(1.0) + (self.layers - whole) * layer(kept)))


@dataclass
class LayerState:
    """What candidates read in one layer of one stack; S rows of B samples."""

    rows: Rows
    keys: Tensor
    """[S, heads, qk_dim]."""
    values: Tensor
    """[S, heads, v_dim]."""
    fewer: Tensor
    """[B] int64: history rows that were truncated."""


@dataclass
class StackState:
    """One stack's."""

    channel: Channel | None
    """What its rows are of the sequence; None: all of it."""
    layers: list[LayerState]


class UltraHstu(Encoder[list[StackState]]):
    """The encoder."""

    config: UltraHstuConfig

    def __init__(self, config: UltraHstuConfig) -> None:
        super().__init__(config)
        self.stacks = nn.ModuleList(
            nn.ModuleList(Block(config) for _ in range(config.layers)) for _ in range(max(config.stacks, 1))
        )
        self.norms = nn.ModuleList(Norm(config.final_norm, config.dim, config.eps) for _ in self.stacks)

    def shardable_layers(self) -> Sequence[nn.Module]:
        """The blocks of all stacks."""
        return [block for stack in self.stacks for block in cast(nn.ModuleList, stack)]

    def user_state(self, sequence: Tokens, beside: Tensor | None = None) -> list[StackState]:
        """Keys and values of each layer of each stack."""
        if not self.config.channels:
            return [StackState(None, self._layers(self.stacks[0], sequence))]
        channels = channels_of(sequence, len(self.stacks))
        return [
            StackState(channel, self._layers(stack, channel.tokens))
            for channel, stack in zip(channels, self.stacks, strict=True)
        ]

    def score(self, state: list[StackState], candidates: Candidates) -> Tensor:
        """[C, stacks * dim]."""
        if candidates.x.shape[1] != 1:
            raise ValueError(f"this encoder takes one token a candidate, got {candidates.x.shape[1]}")
        scored = [
            self._score(stack, norm, of.layers, candidates if of.channel is None else of.channel.seen(candidates))
            for stack, norm, of in zip(self.stacks, self.norms, state, strict=True)
        ]
        return torch.cat(scored, 1)

    # ------------------------------------------------------------------ one stack

    def _layers(self, stack: nn.Module, sequence: Tokens) -> list[LayerState]:
        config, x, rows = self.config, streamed(sequence.x, self.config), rows_of(sequence)
        fewer = torch.zeros_like(rows.users)
        made: list[LayerState] = []
        blocks = cast(list[Block], list(cast(nn.ModuleList, stack)))
        for at, block in enumerate(blocks):
            if at and at == config.truncate_after:
                kept, fewer = newest(rows, config.tail, sequence.history_lengths)
                x, rows = x[kept], rows.take(kept, fewer)
            # A row of history ends where it stands.
            end = torch.where(rows.group < visibility.REALTIME, rows.place, rows.end)
            spans = self._spans(rows.offsets, rows.offsets, end, rows.place)
            x, k, v = self._run(block, x, rows, spans, at == len(blocks) - 1)
            made.append(LayerState(rows, k, v, fewer))
        return made

    def _run(self, block: Block, x: Tensor, rows: Rows, spans: Spans, last: bool) -> tuple[Tensor, Tensor, Tensor]:
        if self.recompute and self.training:
            out: tuple[Tensor, Tensor, Tensor] = checkpoint(
                self._block, block, x, rows, spans, last, use_reentrant=False
            )
            return out
        return self._block(block, x, rows, spans, last)

    def _block(self, block: Block, x: Tensor, rows: Rows, spans: Spans, last: bool) -> tuple[Tensor, Tensor, Tensor]:
        """What a block makes of the rows, and their keys and values. last: nothing reads the former."""
        parts = block.project(x, rows.group)
        if last:
            return x, parts.k, parts.v
        place = rows.place.to(torch.int32)
        bias = self._bias(block, place, place, rows.seconds, rows.seconds)
        return self._attend(block, x, parts, parts.k, parts.v, spans, bias, rows.group), parts.k, parts.v

    def _score(self, stack: nn.Module, norm: nn.Module, state: list[LayerState], candidates: Candidates) -> Tensor:
        sorted_ = in_order(candidates)
        given = sorted_.candidates
        x, seconds = streamed(given.x.squeeze(1), self.config), given.timestamps // 1000
        group = torch.full_like(given.end, CANDIDATE)
        for block, of in zip(cast(list[Block], list(cast(nn.ModuleList, stack))), state, strict=True):
            joined = Joined(of.rows.offsets, given.owner)
            end = given.end.long() - of.fewer[given.owner]
            spans = self._spans(joined.q_offsets, joined.k_offsets, end, joined.q_positions.long())
            place = end.to(torch.int32)
            k_place = joined.rows(of.rows.place.to(torch.int32), place)
            bias = self._bias(block, place, k_place, seconds, joined.rows(of.rows.seconds, seconds))
            parts = block.project(x, group)
            k, v = joined.rows(of.keys, parts.k), joined.rows(of.values, parts.v)
            x = self._attend(block, x, parts, k, v, spans, bias, group)
        vectors: Tensor = norm(x, group)
        return sorted_.back(vectors)

    def _spans(self, q_offsets: Tensor, k_offsets: Tensor, end: Tensor, own: Tensor) -> Spans:
        """The prefix, the window before `end`, and oneself."""
        zero, prefix = torch.zeros_like(end), self.config.prefix
        return make_spans(
            q_offsets,
            k_offsets,
            [(zero, end.clamp(max=prefix)), ((end - self.config.local).clamp(min=0), end), (own, own + 1)],
        )

    def _bias(self, block: Block, q_place: Tensor, k_place: Tensor, q_seconds: Tensor, k_seconds: Tensor) -> SpanBias:
        return SpanBias(block.position_table, block.time_table, q_place, k_place, q_seconds, k_seconds)

    def _attend(
        self,
        block: Block,
        x: Tensor,
        parts: Projected,
        k: Tensor,
        v: Tensor,
        spans: Spans,
        bias: SpanBias,
        group: Tensor,
    ) -> Tensor:
        divisor = self.config.divisor
        attended = span_attention(
            parts.q,
            k,
            v,
            spans,
            weighting="silu",
            alpha=self.config.alpha,
            divisor=divisor if isinstance(divisor, int) else None,
            bias=bias,
        )
        return block.merge(x, attended.flatten(1), parts.u, group)


PRESETS = {
    "ultra-hstu-base": UltraHstuConfig(
        dim=512, layers=4, heads=4, qk_dim=128, v_dim=128, local=256, prefix=32, truncate_after=2, tail=512
    ),
    # A stack a sequence of the schema.
    "ultra-hstu-channels": UltraHstuConfig(
        dim=512, layers=4, heads=4, qk_dim=128, v_dim=128, local=256, prefix=32, truncate_after=2, tail=512, channels=True
    ),
    # For two CPU cores.
    "ultra-hstu-tiny": UltraHstuConfig(
        dim=64, layers=2, heads=2, qk_dim=32, v_dim=32, local=16, prefix=4, truncate_after=1, tail=32,
        position_reach=64, dropout=0.1, channels=True,
    ),
}  # fmt: skip

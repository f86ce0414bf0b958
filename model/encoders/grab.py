"""GRAB (Baidu, arXiv:2602.01865): causal Transformer layers within each action channel, whose views of a candidate are mixed at the
end; and training in two stages (`--phase`).

    per channel c:   x_{l+1} = layer(x_l): softmax(Q K^T / sqrt(d_h) + relative bias) V over earlier rows of c, the user's rows before them
    a candidate:     h_c, the same layers over what it sees of channel c, and itself
    its vector:      sum_c a_c h_c,   a = softmax_c(w_c . h_c)                    (the target alone mixes channels)

Which reading was taken (the paper's formulas could not be had; its text says that attention is causal per action channel with relative
bias, and that the target token mixes the channels only at prediction):
  - A channel is a sequence of the schema, the realtime one included; layers are shared by all channels, as their rows' projections differ.
  - The bias is HSTU's, of position within the channel and of time; the mixing weights are a softmax of a vector a channel.
  - Two-stage training (STS): `--phase sparse --view exposure` trains rows by single shuffled exposures through an auxiliary network that
    no prediction comes from (`model.auxiliary`); `--phase dense --from-checkpoint` then trains the sequence network with these rows frozen.
  - The production system's two sliding windows are not built. No size is known: all are ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genrank.kernels.spans import SpanBias, Spans, make_spans
from genrank.model.encoders.channels import Channel, channels_of
from genrank.model.encoders.interface import Candidates, Counts, Encoder, EncoderConfig
from genrank.model.encoders.jagged_rows import Joined, in_order
from genrank.model.encoders.transformer import TransformerLayer, layer_operations
from genrank.model.validation import Count, Positive, Share
from genrank.tokenization import visibility
from genrank.tokenization.jagged_tokens import Tokens
from genrank.tokenization.wants import TokenShape, Wants


@dataclass(frozen=True)
class GrabConfig(EncoderConfig):
    """What a GRAB encoder is."""

    layers: Positive = 4
    heads: Positive = 4
    """They divide `dim`."""
    ffn: Positive = 4
    position_reach: Count = 512
    """Relative position bias up to this distance; 0: none."""
    time_buckets: Count = 64
    """Relative time bias, in log-spaced buckets of seconds; 0: none."""
    dropout: Share = 0.0
    auxiliary: tuple[Positive, ...] = (128, 64)
    """Widths of the network that `--phase sparse` trains rows through."""
    channels: Count = 0
    """0: as many as the schema has sequences."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % self.heads:
            raise self.refuse("heads", f"give a divisor of dim, {self.dim}")

    @property
    def auxiliary_hidden(self) -> tuple[int, ...]:
        """Those of `auxiliary`."""
        return self.auxiliary

    def wants(self) -> Wants:
        """Causal sequences, kept apart."""
        return Wants(visibility.causal, sequence_ids=True)

    def fit(self, shape: TokenShape) -> Self:
        """With a channel a sequence of the schema."""
        return self if self.channels else dataclasses.replace(self, channels=max(shape.sequences, 1))

    def flops(self, counts: Counts) -> int:
        """At the mean length of what candidates see, split evenly among the channels."""
        if not counts.candidates:
            return 0
        channels = max(self.channels, 1)
        events = max(counts.tokens - counts.candidates, 0)
        length = counts.seen / counts.candidates / channels
        rows = events + channels * counts.candidates
        pairs = events * length / 2 + channels * counts.candidates * length
        return round(self.layers * layer_operations(self.dim, self.ffn, rows, rows, pairs))


@dataclass
class GrabState:
    """Keys and values of all channels: B samples of channel 1, B of channel 2, ..., S rows together."""

    channels: list[Channel]
    offsets: Tensor
    """[channels * B + 1] int64."""
    place: Tensor
    """[S] int32: a row's place in its channel."""
    seconds: Tensor
    """[S] int64."""
    keys: list[Tensor]
    values: list[Tensor]
    """Per layer [S, heads, dim / heads]."""


class Grab(Encoder[GrabState]):
    """The encoder."""

    config: GrabConfig

    def __init__(self, config: GrabConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            TransformerLayer(config.dim, config.heads, config.ffn, norm="rms", dropout=config.dropout)
            for _ in range(config.layers)
        )
        self.position_tables, self.time_tables = (
            nn.ParameterList(0.02 * torch.randn(rows, config.heads) for _ in range(config.layers if reach else 0))
            for rows, reach in (
                (2 * config.position_reach + 1, config.position_reach),
                (config.time_buckets, config.time_buckets),
            )
        )
        self.mixing = nn.Parameter(0.02 * torch.randn(max(config.channels, 1), config.dim))
        self.norm = nn.RMSNorm(config.dim, 1e-6)

    def shardable_layers(self) -> Sequence[nn.Module]:
        """The layers."""
        return list(self.layers)

    def user_state(self, sequence: Tokens, beside: Tensor | None = None) -> GrabState:
        """Keys and values of each layer, in every channel."""
        channels = channels_of(sequence, len(self.mixing))
        parts = [channel.tokens for channel in channels]
        lengths = torch.cat([part.offsets.diff() for part in parts]).long()
        offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        x = torch.cat([part.x for part in parts])
        end = torch.cat([part.end for part in parts]).long()
        seconds = torch.cat([part.timestamps for part in parts]) // 1000
        sample = torch.repeat_interleave(lengths, output_size=len(x))
        place = torch.arange(len(x), device=x.device) - offsets[sample]
        spans = make_spans(offsets, offsets, [(torch.zeros_like(end), end), (place, place + 1)])
        places = place.to(torch.int32)
        state = GrabState(channels, offsets, places, seconds, [], [])
        for at, layer in enumerate(self.layers):
            assert isinstance(layer, TransformerLayer)
            k, v = layer.keys_of(x)
            state.keys.append(k)
            state.values.append(v)
            if at < len(self.layers) - 1:  # nothing reads what the last layer makes of the sequence
                x = self._run(layer, x, k, v, spans, self._bias(at, places, places, seconds, seconds))
        return state

    def score(self, state: GrabState, candidates: Candidates) -> Tensor:
        """[C, dim]."""
        if candidates.x.shape[1] != 1:
            raise ValueError(f"this encoder takes one token a candidate, got {candidates.x.shape[1]}")
        number, batch = len(state.channels), (len(state.offsets) - 1) // len(state.channels)
        seen = [channel.seen(candidates) for channel in state.channels]
        views = Candidates(
            candidates.x.repeat(number, 1, 1),
            torch.cat([candidates.owner + at * batch for at in range(number)]),
            torch.cat([each.begin for each in seen]),
            torch.cat([each.end for each in seen]),
            candidates.timestamps.repeat(number),
        )
        sorted_ = in_order(views)
        given = sorted_.candidates
        joined = Joined(state.offsets, given.owner)
        end, own = given.end.long(), joined.q_positions.long()
        spans = make_spans(joined.q_offsets, joined.k_offsets, [(torch.zeros_like(end), end), (own, own + 1)])
        seconds = given.timestamps // 1000
        k_places, k_seconds = joined.rows(state.place, given.end), joined.rows(state.seconds, seconds)
        x = given.x.squeeze(1)
        for at, layer in enumerate(self.layers):
            assert isinstance(layer, TransformerLayer)
            k, v = layer.keys_of(x)
            bias = self._bias(at, given.end, k_places, seconds, k_seconds)
            x = self._run(layer, x, joined.rows(state.keys[at], k), joined.rows(state.values[at], v), spans, bias)
        of_channels: Tensor = self.norm(sorted_.back(x)).unflatten(0, (number, -1))
        weights = torch.einsum("ncd,nd->nc", of_channels, self.mixing).softmax(0)
        return (weights[..., None] * of_channels).sum(0)

    def _run(self, layer: TransformerLayer, x: Tensor, k: Tensor, v: Tensor, spans: Spans, bias: SpanBias) -> Tensor:
        if self.recompute and self.training:
            out: Tensor = checkpoint(layer, x, k, v, spans, bias, use_reentrant=False)
            return out
        result: Tensor = layer(x, k, v, spans, bias)
        return result

    def _bias(self, at: int, q_place: Tensor, k_place: Tensor, q_seconds: Tensor, k_seconds: Tensor) -> SpanBias:
        position = self.position_tables[at] if self.config.position_reach else None
        time = self.time_tables[at] if self.config.time_buckets else None
        return SpanBias(position, time, q_place, k_place, q_seconds, k_seconds)


PRESETS = {
    "grab-base": GrabConfig(dim=256, layers=6, heads=4),
    # For two CPU cores.
    "grab-tiny": GrabConfig(dim=64, layers=2, heads=2, ffn=2, position_reach=64, dropout=0.1),
}

"""A fixed number of tokens a candidate, for encoders that mix features rather than events (HeteroAtt, Hiformer, HHFT, RankMixer).

    X = [user tokens; a token a sequence; candidate tokens]                    [C, T, D]

A sequence enters pooled, as these papers have it ("sequence features are compressed first"): DIN's target attention over the events that
the candidate sees, then a projection of its own. The candidate's query is the mean of its tokens. Nothing of another candidate, nor of
what came after the exposure, enters X. User tokens are mixed with the candidate's in the first layer, so that of a request only tokens
and not layers are kept (`user_state`).
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genrank.kernels.slotted import slotted_linear
from genrank.model.encoders.interface import Candidates, Counts, Encoder, EncoderConfig
from genrank.model.target_attention import ActivationUnit
from genrank.model.validation import Count, Positive, Share
from genrank.tokenization.batch import ranges
from genrank.tokenization.jagged_tokens import Tokens
from genrank.tokenization.wants import AutoSplit, Chunks, DeclaredGroups, Grouping, PerFeature, TokenShape, Wants


@dataclass(frozen=True)
class FixedTokensConfig(EncoderConfig):
    """Which tokens there are."""

    tokens: Literal["groups", "feature", "split", "chunks"] = "groups"
    """Of the user and of a candidate: one a group of features that the schema declares, one a feature, all features projected and cut
    evenly, or their columns cut evenly and projected piece by piece."""
    user_tokens: Positive = 2
    """With `split` and `chunks`."""
    candidate_tokens: Positive = 4
    """With `split` and `chunks`."""
    sequence_tokens: Count = 0
    """Tokens that the pooled sequences make together; 0: one each."""
    attention_hidden: Positive = 32
    """Hidden width of the activation unit that pools sequences."""
    dropout: Share = 0.0
    """Of what each sublayer adds."""
    feature_norm: bool = False
    """Every feature at one scale before it becomes a token (`tokenization.feature_norm`)."""
    shape: TokenShape = field(default_factory=TokenShape)
    """What the tokenizer makes of the schema; set when the model is made."""

    def wants(self) -> Wants:
        """Tokens as `tokens` says, and which sequence an event is of."""
        kinds: dict[str, tuple[Grouping, Grouping]] = {
            "groups": (DeclaredGroups(), DeclaredGroups()),
            "feature": (PerFeature(), PerFeature()),
            "split": (AutoSplit(self.user_tokens), AutoSplit(self.candidate_tokens)),
            "chunks": (Chunks(self.user_tokens), Chunks(self.candidate_tokens)),
        }
        user, candidate = kinds[self.tokens]
        return Wants(user=user, candidate=candidate, sequence_ids=True, feature_norm=self.feature_norm)

    def fit(self, shape: TokenShape) -> Self:
        """With the schema's tokens."""
        return dataclasses.replace(self, shape=shape)

    @property
    def pooled_tokens(self) -> int:
        """Tokens of the pooled sequences."""
        return self.shape.sequences and (self.sequence_tokens or self.shape.sequences)

    @property
    def token_count(self) -> int:
        """T."""
        return self.shape.user + self.pooled_tokens + self.shape.candidate

    def flops(self, counts: Counts) -> int:
        """Floating point operations of one forward pass: pooling, then `layer_flops` a candidate."""
        events = max(counts.seen - counts.candidates * self.shape.user, 0)
        unit = 2 * self.dim * self.attention_hidden
        pooling = (
            events * (unit + 2 * self.attention_hidden + 3 * self.dim) + (counts.tokens + counts.candidates) * unit
        )
        maps = self.shape.sequences if not self.sequence_tokens else self.shape.sequences * self.sequence_tokens
        return pooling + counts.candidates * (2 * maps * self.dim**2 + self.layer_flops())

    def layer_flops(self) -> int:
        """Operations of all layers for one candidate."""
        return 0


@dataclass
class UserTokens:
    """Tokens of B samples, S rows together."""

    x: Tensor
    """[S, dim]."""
    offsets: Tensor
    """[B+1] int64."""
    sequence_ids: Tensor
    """[S] int64: 0 user, then 1 + the sequence's number."""


class FixedTokens(Encoder[UserTokens]):
    """[C, T, dim] by the above, then what a subclass makes of it (`mix`)."""

    config: FixedTokensConfig

    def __init__(self, config: FixedTokensConfig) -> None:
        super().__init__(config)
        self.dim, self.shape = config.dim, config.shape
        if config.shape.sequences:
            self.unit = ActivationUnit(config.dim, config.attention_hidden)
            if config.sequence_tokens:
                width = config.shape.sequences * config.dim
                self.of_sequences: nn.Module = nn.Linear(width, config.sequence_tokens * config.dim)
            else:
                self.of_sequences = SlottedLinear(config.shape.sequences, config.dim, config.dim)

    @abstractmethod
    def mix(self, x: Tensor) -> Tensor:
        """[C, T, dim] -> [C, out_dim]."""

    def user_state(self, sequence: Tokens, beside: Tensor | None = None) -> UserTokens:
        """The user's tokens and events, as they are."""
        assert sequence.sequence_ids is not None  # `wants` asks for them
        return UserTokens(sequence.x, sequence.offsets.long(), sequence.sequence_ids.long())

    def score(self, state: UserTokens, candidates: Candidates) -> Tensor:
        """[C, out_dim]."""
        vectors: Tensor = self.mix(self.assemble(state, candidates))
        return vectors

    def assemble(self, state: UserTokens, candidates: Candidates) -> Tensor:
        """[C, T, dim]: X."""
        start = state.offsets[:-1][candidates.owner]
        place = torch.arange(self.shape.user, device=start.device)
        parts = [state.x[start[:, None] + place], candidates.x]
        if self.shape.sequences:
            pooled = self._pooled(state, candidates, start)
            if self.config.sequence_tokens:
                pooled = pooled.flatten(1)
            parts.insert(1, self.of_sequences(pooled).view(len(start), -1, self.dim))
        return torch.cat(parts, 1)

    def _pooled(self, state: UserTokens, candidates: Candidates, start: Tensor) -> Tensor:
        """[C, sequences, dim]: what target attention makes of each sequence's events, zeros where a candidate sees none."""
        count, sequences = len(start), self.shape.sequences
        of, rows = seen_rows(start + candidates.begin.clamp(min=self.shape.user), start + candidates.end)
        weighed: Tensor = self.unit(candidates.x.mean(1), state.x, of, rows)
        at = of * sequences + state.sequence_ids[rows] - 1
        pooled = weighed.new_zeros((count * sequences, self.dim)).index_add(0, at, weighed)
        return pooled.view(count, sequences, self.dim)

    def run(self, layers: nn.ModuleList, x: Tensor) -> Tensor:
        """One layer after another; with `recompute`, activations are computed again in backward."""
        for layer in layers:
            made: Tensor = checkpoint(layer, x, use_reentrant=False) if self.recompute and self.training else layer(x)
            x = made
        return x

    def shardable_layers(self) -> Sequence[nn.Module]:
        """The layers."""
        layers: nn.ModuleList = self.get_submodule("layers")  # type: ignore[assignment]
        return list(layers)


class SlottedLinear(nn.Module):
    """[C, slots, width] -> [C, slots, out]: a linear map of each token's own, or one for all.

    Args:
        own: False shares one map among the tokens.
        scale: of the initial weights, uniform within scale / sqrt(width).
    """

    def __init__(
        self, slots: int, width: int, out: int, *, bias: bool = True, own: bool = True, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.slots, kept = slots, slots if own else 1
        bound = scale / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(kept, width, out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(kept, out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """As above."""
        bias = None if self.bias is None else self.bias.expand(self.slots, -1)
        return slotted_linear(x, self.weight.expand(self.slots, -1, -1), bias)


def seen_rows(begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs (candidate [P], row [P]), int64: rows [begin, end) of each candidate ([C] int64); none where end <= begin."""
    if torch.compiler.is_dynamo_compiling():
        torch._dynamo.graph_break()  # how many pairs there are is data
    offsets, rows = ranges(begin, torch.maximum(begin, end))
    of = torch.repeat_interleave(offsets.diff(), output_size=len(rows))
    return of, rows

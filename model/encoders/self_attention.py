"""SASRec's encoder (Kang & McAuley, ICDM 2018, arXiv:1808.09781) on jagged rows: causal Transformer layers over a history.

    x = dropout(tokens);   x = layer(x) of every layer   (`transformer.TransformerLayer`: norm first, GELU);   norm(x)

It gives rows of the history their vectors, for retrieval. SASRec as a ranker of candidates is `model.baselines.sasrec`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genrank.kernels.spans import Spans, make_spans
from genrank.model.encoders.interface import Counts, EncoderConfig, SequenceEncoder
from genrank.model.encoders.transformer import TransformerLayer, layer_operations
from genrank.model.validation import Positive, Share
from genrank.tokenization import visibility
from genrank.tokenization.jagged_tokens import Tokens
from genrank.tokenization.wants import Wants


@dataclass(frozen=True)
class SelfAttentionConfig(EncoderConfig):
    """What the encoder is; the paper's: two layers, one head, inner width that of a token."""

    layers: Positive = 2
    heads: Positive = 1
    """They divide `dim`."""
    ffn: Positive = 1
    """Inner width of the feed-forward part, in widths of a token."""
    positions: Literal["newest", "oldest"] = "oldest"
    """Where the learned positions of a history count from (`tokenization.wants.Wants.positions`)."""
    ages: bool = False
    """Whether tokens of events say how long before the window they happened (`Wants.ages`)."""
    input_dropout: Share = 0.2
    """Of the tokens, before the first layer."""
    dropout: Share = 0.2
    """Of what each part of a layer adds."""
    final_norm: bool = True
    """Whether the last layer's rows are normalised."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % self.heads:
            raise self.refuse("heads", f"give a divisor of dim, {self.dim}")

    def wants(self) -> Wants:
        """Causal sequences."""
        return Wants(visibility.causal, positions=self.positions, ages=self.ages)

    def flops(self, counts: Counts) -> int:
        """Of all rows."""
        return round(self.layers * layer_operations(self.dim, self.ffn, counts.tokens, counts.tokens, counts.pairs))


class SelfAttention(SequenceEncoder):
    """The encoder."""

    config: SelfAttentionConfig

    def __init__(self, config: SelfAttentionConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            TransformerLayer(config.dim, config.heads, config.ffn, dropout=config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.dim, 1e-6) if config.final_norm else nn.Identity()

    def shardable_layers(self) -> Sequence[nn.Module]:
        """The layers."""
        return list(self.layers)

    def forward(self, tokens: Tokens, rows: Tensor) -> Tensor:
        """[R, dim]: the vectors of some rows of the tokens ([R] int64)."""
        offsets = tokens.offsets.long()
        place = torch.arange(len(tokens.x), device=offsets.device)
        place = place - torch.repeat_interleave(offsets[:-1], offsets.diff(), output_size=len(place))
        spans = make_spans(offsets, offsets, [(tokens.begin.long(), tokens.end.long()), (place, place + 1)])
        x = F.dropout(tokens.x, self.config.input_dropout, self.training)
        for layer in self.layers:
            if self.recompute and self.training:
                x = checkpoint(_run, layer, x, spans, use_reentrant=False)
            else:
                x = _run(layer, x, spans)
        vectors: Tensor = self.norm(x[rows])
        return vectors


def _run(layer: nn.Module, x: Tensor, spans: Spans) -> Tensor:
    assert isinstance(layer, TransformerLayer)
    k, v = layer.keys_of(x)
    rows: Tensor = layer(x, k, v, spans)
    return rows

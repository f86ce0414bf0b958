"""Heterogeneous feature interaction: HeteroAtt, Hiformer (both Google, arXiv:2311.05884) and HHFT (Taobao, arXiv:2511.20235).

With X = [C, T, D], one token a feature or a group of features, weights of token i are its own:

    heterogeneous layer   q_i, k_i, v_i = x_i W^q_i, x_i W^k_i, x_i W^v_i
    composite layer       [q_1 .. q_T] = vec(X) W^q, W^q [T D, T D]; likewise k, v: every query sees all tokens (Hiformer);
                          low rank: W^q = L^q R^q, L^q [T D, r], R^q [r, T D]
    both                  o_i = concat over heads of softmax(q_i K^T / sqrt(d)) V;   y_i = norm(x_i + o_i W^o_i)
                          x'_i = norm(y_i + W2_i gelu(W1_i y_i + b1_i) + b2_i)

HeteroAtt: heterogeneous layers; Hiformer: composite ones; HHFT: n1 heterogeneous layers under n2 composite ones, over groups of features.
The candidate's vector is the last token's: a learned task token stands at the end.

Readings taken where the papers' text could not be had: one task token for all tasks (the heads part them), queries, keys and values low
rank alike, the printed post-norm (`norm="pre"` is a public reimplementation's), HHFT's n1, n2 and widths, of which only "width before
depth, composite before heterogeneous" is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrank.kernels.slotted import slotted_ffn
from genrank.model.encoders.fixed_tokens import FixedTokens, FixedTokensConfig, SlottedLinear
from genrank.model.validation import Count, Positive


@dataclass(frozen=True)
class HeteroConfig(FixedTokensConfig):
    """Layers from the bottom: heterogeneous ones, then composite ones."""

    hetero_layers: Count = 0
    composite_layers: Count = 0
    heads: Positive = 2
    rank: Count = 0
    """Of composite projections; 0: full."""
    ffn: Positive = 4
    """Hidden width of the feed-forward, in widths of a token."""
    norm: Literal["post", "pre"] = "post"
    own_weights: bool = True
    """False: all tokens share a layer's weights, as in a plain Transformer; composite projections stay."""
    readout: Literal["task", "mean"] = "task"
    """The candidate's vector: the last token, a learned one, or the mean of all tokens without it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hetero_layers + self.composite_layers:
            raise self.refuse("hetero_layers", "give at least one layer, here or in composite_layers")
        if self.dim % self.heads:
            raise self.refuse("heads", f"must divide dim, {self.dim}")

    @property
    def token_count(self) -> int:
        """T, the task token included."""
        return super().token_count + (self.readout == "task")

    def layer_flops(self) -> int:
        """Operations of all layers for one candidate."""
        t, d = self.token_count, self.dim
        rest = 2 * t * d * d + 4 * self.ffn * t * d * d + 4 * t * t * d
        composite = 3 * 2 * (2 * t * d * self.rank if self.rank else (t * d) ** 2)
        return self.hetero_layers * (6 * t * d * d + rest) + self.composite_layers * (composite + rest)


class Hetero(FixedTokens):
    """HeteroAtt, Hiformer and HHFT."""

    config: HeteroConfig

    def __init__(self, config: HeteroConfig) -> None:
        super().__init__(config)
        self.task = nn.Parameter(0.02 * torch.randn(config.dim)) if config.readout == "task" else None
        kinds = [False] * config.hetero_layers + [True] * config.composite_layers
        self.layers = nn.ModuleList(HeteroLayer(config, composite) for composite in kinds)
        self.final_norm = nn.LayerNorm(config.dim) if config.norm == "pre" else nn.Identity()

    def mix(self, x: Tensor) -> Tensor:
        """[C, T, dim] -> [C, dim]."""
        if self.task is not None:
            x = torch.cat([x, self.task.to(x.dtype).expand(len(x), 1, -1)], 1)
        x = self.run(self.layers, x)
        vectors: Tensor = self.final_norm(x[:, -1] if self.task is not None else x.mean(1))
        return vectors


class HeteroLayer(nn.Module):
    """[C, T, dim] -> [C, T, dim] by the equations above."""

    def __init__(self, config: HeteroConfig, composite: bool) -> None:
        super().__init__()
        t, d, own = config.token_count, config.dim, config.own_weights
        self.heads, self.pre, self.p = config.heads, config.norm == "pre", config.dropout
        self.composite = composite
        if not composite:
            self.qkv: nn.Module = SlottedLinear(t, d, 3 * d, bias=False, own=own)
        else:
            self.qkv = nn.ModuleList(_composite(t * d, config.rank) for _ in range(3))
        self.out = SlottedLinear(t, d, d, bias=False, own=own)
        self.up = SlottedLinear(t, d, config.ffn * d, own=own)
        self.down = SlottedLinear(t, config.ffn * d, d, own=own)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x: Tensor) -> Tensor:
        """As above."""
        if self.pre:
            x = x + self._drop(self.attend(self.norm1(x)))
            return x + self._drop(self.feed(self.norm2(x)))
        x = self.norm1(x + self._drop(self.attend(x)))
        fed: Tensor = self.norm2(x + self._drop(self.feed(x)))
        return fed

    def attend(self, x: Tensor) -> Tensor:
        """Softmax attention among a candidate's tokens."""
        if isinstance(self.qkv, nn.ModuleList):
            flat = x.flatten(1)
            projected = [each(flat).view_as(x) for each in self.qkv]
        else:
            projected = list(self.qkv(x).chunk(3, -1))
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in projected)
        attended = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out

    def feed(self, x: Tensor) -> Tensor:
        """The feed-forward of each token's own."""
        t = x.shape[1]
        return slotted_ffn(
            x,
            self.up.weight.expand(t, -1, -1),
            None if self.up.bias is None else self.up.bias.expand(t, -1),
            self.down.weight.expand(t, -1, -1),
            None if self.down.bias is None else self.down.bias.expand(t, -1),
        )

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)


def _composite(width: int, rank: int) -> nn.Module:
    if not rank:
        return nn.Linear(width, width, bias=False)
    return nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False))


PRESETS = {
    # The papers don't print the widths used in production; these are the public reimplementation's (UniRank): 3 layers of 64, 2 heads, rank 256.
    "heteroatt": HeteroConfig(dim=64, hetero_layers=3, heads=2, tokens="feature"),
    "hiformer": HeteroConfig(dim=64, composite_layers=3, heads=2, rank=256, tokens="feature"),
    # Width before depth, and more of it in the composite layers.
    "hhft": HeteroConfig(dim=256, hetero_layers=1, composite_layers=2, heads=4),
    "heteroatt-tiny": HeteroConfig(dim=32, hetero_layers=2, dropout=0.1),
    "hiformer-tiny": HeteroConfig(dim=32, composite_layers=2, rank=32, dropout=0.1),
    "hhft-tiny": HeteroConfig(dim=32, hetero_layers=1, composite_layers=1, dropout=0.1),
}

"""A pre-norm Transformer layer on jagged rows, whose queries may be fewer than its keys (Vaswani et al., arXiv:1706.03762; softmax).

k, v = W_k norm(x), W_v norm(x)                                of every row
y = x + W_o softmax(W_q norm(x) k^T / sqrt(d) + bias) v        of the rows that ask, over the spans that they see
y + W_2 gelu(W_1 norm(y))
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from genrank.kernels.spans import SpanBias, Spans, span_attention


class TransformerLayer(nn.Module):
    """One layer.

    Args:
        dim: width of a row; `heads` divides it.
        ffn: the inner width of the feed-forward part, in widths of a row.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        ffn: int,
        *,
        norm: Literal["layer", "rms"] = "layer",
        eps: float = 1e-6,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        make = nn.LayerNorm if norm == "layer" else nn.RMSNorm
        self.attention_norm, self.ffn_norm = make(dim, eps), make(dim, eps)
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, ffn * dim), nn.Linear(ffn * dim, dim)
        for linear in (self.query, self.key_value, self.out, self.up, self.down):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def keys_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[T, dim] -> keys and values, each [T, heads, dim / heads]."""
        normed = self.attention_norm(x)
        k, v = self.key_value(normed).unflatten(1, (2, self.heads, -1)).unbind(1)
        return k, v

    def forward(self, x: Tensor, k: Tensor, v: Tensor, spans: Spans, bias: SpanBias | None = None) -> Tensor:
        """[Tq, dim], the rows that ask, and the keys and values of the rows that they may see -> [Tq, dim]."""
        q = self.query(self.attention_norm(x)).unflatten(1, (self.heads, -1))
        attended = span_attention(q, k.to(q.dtype), v.to(q.dtype), spans, bias=bias)
        y = x + F.dropout(self.out(attended.flatten(1)), self.dropout, self.training)
        change = self.down(F.gelu(self.up(self.ffn_norm(y))))
        result: Tensor = y + F.dropout(change, self.dropout, self.training)
        return result


def layer_operations(dim: int, ffn: int, queries: float, keys: float, pairs: float) -> float:
    """Floating point operations of one layer."""
    return 4 * keys * dim**2 + queries * (4 + 4 * ffn) * dim**2 + 4 * pairs * dim

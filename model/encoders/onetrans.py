"""OneTrans (ByteDance, arXiv:2510.26104): one causal Transformer over the sequence's tokens (S) and the user's and candidate's (NS).

    Z = MixedMHA(RMSNorm(X)) + X;   X' = MixedFFN(RMSNorm(Z)) + Z                                                (equations 4, 5)
    W_i = W_S for every S token, W_{NS,i} of its own for each NS token: for Q, K, V and both matrices of the FFN     (equations 6 to 8)
    softmax, causal: S sees earlier S; NS_i sees all S and NS_1..i
    pyramid: in layer n only the newest L_n history tokens ask, and go on; L_n falls linearly to `tail`              (section 3.4)

Which reading was taken:
  - NS tokens are the user's first (the schema's, or `user_tokens` by auto-split), then the candidate's: by auto-split (`candidate_tokens`, the
    paper's better choice by .10 % AUC) or by the schema's groups of features. The user's see the history, not the realtime events: what
    they compute is the same for all candidates, and cached. A candidate's see the user's, all S available before its exposure, and
    their own up to themselves.
  - S tokens do not see NS tokens. Sequences follow one another by a learned separator (`separators`); realtime events come last.
  - The pyramid prunes history alone: "the newest S tokens" would be other ones for each candidate.
  - L_n is rounded to multiples of 32 in all layers but the last (the paper's 12 and 16 are none); the output projection is shared (the
    paper doesn't say that it is mixed).
  - The vector that enters the heads is a linear map of the candidate's NS outputs side by side.
Sizes (section 4.1): S is 6 layers of 256 with 4 heads, 1,190 tokens down to 12; L is 8 layers of 384, 1,500 down to 16. L_NS is not stated:
20 and 24 give 91 and 326 million parameters, of the paper's 91 and 330.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genrank.kernels.spans import Spans, make_spans, span_attention
from genrank.model.encoders.interface import Candidates, Counts, Encoder, EncoderConfig
from genrank.model.encoders.jagged_rows import Joined, Rows, in_order, newest, places, rows_of
from genrank.model.validation import Count, Positive, Share
from genrank.tokenization import visibility
from genrank.tokenization.jagged_tokens import Tokens
from genrank.tokenization.visibility import REALTIME, USER
from genrank.tokenization.wants import AutoSplit, DeclaredGroups, TokenShape, Wants


@dataclass(frozen=True)
class OneTransConfig(EncoderConfig):
    """What a OneTrans encoder is."""

    layers: Positive = 6
    heads: Positive = 4
    """They divide `dim`."""
    ffn: Positive = 4
    candidate_tokens: Count = 8
    """NS tokens of a candidate by auto-split; 0: one a group of features that the schema declares."""
    user_tokens: Count = 4
    """NS tokens of a user by auto-split; 0: as the schema declares them."""
    separators: bool = True
    length: Count = 1190
    """L_1: history tokens that ask in the first layer; 0: no pyramid."""
    tail: Positive = 12
    """History tokens that ask in the last layer."""
    mixed: bool = True
    """NS tokens have weights of their own; false: one set for all tokens (the paper's ablation)."""
    dropout: Share = 0.0
    own_user: Count = 0
    own_candidate: Count = 0
    """NS tokens as the tokenizer makes them; 0: as the fields above say."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % self.heads:
            raise self.refuse("heads", f"give a divisor of dim, {self.dim}")
        if self.length and self.length < self.tail:
            raise self.refuse("tail", f"give at most length, {self.length}, where the pyramid begins")

    def wants(self) -> Wants:
        """Causal sequences, and NS tokens."""
        return Wants(
            visibility.causal,
            user=AutoSplit(self.user_tokens) if self.user_tokens else None,
            candidate=AutoSplit(self.candidate_tokens) if self.candidate_tokens else DeclaredGroups(),
            separators=self.separators,
        )

    def fit(self, shape: TokenShape) -> Self:
        """With as many NS tokens as the tokenizer makes."""
        if not shape.user:
            raise self.refuse("user_tokens", "the schema's user makes no token by itself; give at least 1")
        return dataclasses.replace(self, own_user=shape.user, own_candidate=shape.candidate)

    @property
    def pyramid(self) -> list[int]:
        """History tokens that ask in each layer; empty: all in every layer."""
        if not self.length:
            return []
        steps = max(self.layers - 1, 1)
        sizes = [self.length + (self.tail - self.length) * at / steps for at in range(self.layers)]
        return [max(round(size / 32) * 32, self.tail) for size in sizes[:-1]] + [self.tail]

    def flops(self, counts: Counts) -> int:
        """At the mean length of what candidates see."""
        if not counts.candidates:
            return 0
        own, d = self.own_candidate or self.candidate_tokens or 1, self.dim
        candidates = counts.candidates * own
        length = counts.seen / counts.candidates
        events = float(max(counts.tokens, 0))
        total, share = 0.0, 1.0
        for at in range(self.layers):
            asked = min(share, self.pyramid[at] / max(length, 1.0)) if self.pyramid else 1.0
            keys, queries = events * share + candidates, (events * asked if at < self.layers - 1 else 0.0) + candidates
            pairs = queries * length * share / 2 + candidates * (length * share / 2 + own)
            total += 4 * keys * d**2 + queries * (4 + 4 * self.ffn) * d**2 + 4 * pairs * d
            share = asked
        return round(total + 2 * candidates * d**2)


class Mixed(nn.Module):
    """A linear map that S tokens share, and that each NS token has of its own."""

    def __init__(self, width: int, out: int, own: int, mixed: bool) -> None:
        super().__init__()
        self.shared = nn.Linear(width, out)
        nn.init.xavier_uniform_(self.shared.weight)
        nn.init.zeros_(self.shared.bias)
        self.weight = self.bias = None
        if mixed:
            bound = math.sqrt(6 / (width + out))
            self.weight = nn.Parameter(torch.empty(own, out, width).uniform_(-bound, bound))
            self.bias = nn.Parameter(torch.zeros(own, out))

    def forward(self, x: Tensor) -> Tensor:
        """[T, width] of S tokens -> [T, out]."""
        out: Tensor = self.shared(x)
        return out

    def own(self, x: Tensor, first: int) -> Tensor:
        """[N, n, width], NS tokens `first` to `first + n` of N rows -> [N, n, out]."""
        if self.weight is None or self.bias is None:
            shared: Tensor = self.shared(x)
            return shared
        weight, bias = (p[first : first + x.shape[1]] for p in (self.weight, self.bias))
        out = torch.einsum("ntd,ted->nte", x, weight)
        return out + bias.to(out.dtype)  # under autocast


class OneTransLayer(nn.Module):
    """One block. NS tokens are counted through: the user's, then the candidate's."""

    def __init__(self, config: OneTransConfig) -> None:
        super().__init__()
        dim, own = (
            config.dim,
            (config.own_user or config.user_tokens or 1) + (config.own_candidate or config.candidate_tokens or 1),
        )
        self.heads, self.dropout = config.heads, config.dropout
        self.attention_norm, self.ffn_norm = nn.RMSNorm(dim, 1e-6), nn.RMSNorm(dim, 1e-6)
        self.qkv = Mixed(dim, 3 * dim, own, config.mixed)
        self.out = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.up, self.down = (
            Mixed(dim, config.ffn * dim, own, config.mixed),
            Mixed(config.ffn * dim, dim, own, config.mixed),
        )

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """S tokens [T, dim] -> q, k, v, each [T, heads, dim / heads]."""
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(1, (3, self.heads, -1)).unbind(1)
        return q, k, v

    def project_own(self, x: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """NS tokens [N, n, dim] -> q, k, v, each [N * n, heads, dim / heads]."""
        whole = self.qkv.own(self.attention_norm(x), first).flatten(0, 1)
        q, k, v = whole.view(len(whole), 3, self.heads, -1).unbind(1)
        return q, k, v

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        """S tokens and what they attended to, both [T, dim] -> [T, dim]."""
        y = self._add(x, self.out(attended))
        return self._add(y, self.down(F.gelu(self.up(self.ffn_norm(y)))))

    def own(self, x: Tensor, attended: Tensor, first: int) -> Tensor:
        """NS tokens and what they attended to, both [N, n, dim] -> [N, n, dim]."""
        y = self._add(x, self.out(attended))
        return self._add(y, self.down.own(F.gelu(self.up.own(self.ffn_norm(y), first)), first))

    def _add(self, x: Tensor, change: Tensor) -> Tensor:
        return x + F.dropout(change, self.dropout, self.training)


@dataclass
class LayerKeys:
    """What candidates read in one layer; S rows of B samples."""

    offsets: Tensor
    """[B+1] int64."""
    keys: Tensor
    values: Tensor
    """[S, heads, dim / heads]."""
    fewer: Tensor
    """[B] int64: history rows that the pyramid has cut off."""


class OneTrans(Encoder[list[LayerKeys]]):
    """The encoder."""

    config: OneTransConfig

    def __init__(self, config: OneTransConfig) -> None:
        super().__init__(config)
        self.users = config.own_user or config.user_tokens or 1
        self.layers = nn.ModuleList(OneTransLayer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.dim, 1e-6)
        self.out = nn.Linear((config.own_candidate or config.candidate_tokens or 1) * config.dim, config.dim)

    def shardable_layers(self) -> Sequence[nn.Module]:
        """The layers."""
        return list(self.layers)

    def user_state(self, sequence: Tokens, beside: Tensor | None = None) -> list[LayerKeys]:
        """Keys and values of each layer, of S tokens and the user's NS tokens."""
        rows = rows_of(sequence)
        batch = len(sequence.lengths)
        lengths, fewer = sequence.history_lengths, torch.zeros_like(rows.users)
        x, pyramid, state = sequence.x, self.config.pyramid, []
        for at, layer in enumerate(self.layers):
            assert isinstance(layer, OneTransLayer)
            own = places(rows.group == USER, batch * self.users)
            shared = places(rows.group != USER, len(x) - len(own))
            q, k, v = self._project(layer, x, own, shared)
            state.append(LayerKeys(rows.offsets, k, v, fewer))
            if at == len(self.layers) - 1:
                break  # nothing reads what the last layer makes of the sequence
            asked, dropped = rows, torch.zeros_like(fewer)
            if pyramid and pyramid[at] < self._longest(lengths):
                kept, dropped = newest(rows, pyramid[at], lengths)
                x, q, asked = x[kept], q[kept], rows.take(kept, dropped)
                lengths = lengths.clamp(max=pyramid[at])
                own = places(asked.group == USER, batch * self.users)
                shared = places(asked.group != USER, len(x) - len(own))
            spans = _spans(asked, rows, dropped)
            x = self._run(layer, x, q, k, v, spans, own, shared)
            rows, fewer = asked, fewer + dropped
        return state

    def score(self, state: list[LayerKeys], candidates: Candidates) -> Tensor:
        """[C, dim]."""
        sorted_ = in_order(candidates)
        given = sorted_.candidates
        x = given.x
        count, tokens, _ = x.shape
        index = torch.arange(count * tokens, device=x.device)
        beside = Joined(state[0].offsets, given.owner, tokens)
        for at, (layer, of) in enumerate(zip(self.layers, state, strict=True)):
            assert isinstance(layer, OneTransLayer)
            if at and of.offsets is not state[at - 1].offsets:
                beside = Joined(of.offsets, given.owner, tokens)
            end = (given.end.long() - of.fewer[given.owner])[index // tokens]
            place = beside.q_positions.long()
            spans = make_spans(
                beside.q_offsets, beside.k_offsets, [(torch.zeros_like(end), end), (place - index % tokens, place + 1)]
            )
            x = self._run_own(layer, x, of, beside, spans)
        vectors: Tensor = self.out(self.norm(x).flatten(1))
        return sorted_.back(vectors)

    # ------------------------------------------------------------------ parts of a layer

    def _longest(self, lengths: Tensor) -> int:
        return int(lengths.max()) if len(lengths) else 0

    def _project(self, layer: OneTransLayer, x: Tensor, own: Tensor, shared: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of S and user rows where they lie."""
        users = x[own].view(-1, self.users, x.shape[1])
        of_users, of_events = layer.project_own(users, 0), layer.project(x[shared])
        q, k, v = (_placed(u, e, own, shared) for u, e in zip(of_users, of_events, strict=True))
        return q, k, v

    def _run(
        self,
        layer: OneTransLayer,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spans: Spans,
        own: Tensor,
        shared: Tensor,
    ) -> Tensor:
        def run(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            attended = span_attention(q, k, v, spans).flatten(1)
            users, of_users = (t[own].view(-1, self.users, t.shape[1]) for t in (x, attended))
            return _placed(layer.own(users, of_users, 0).flatten(0, 1), layer(x[shared], attended[shared]), own, shared)

        return self._maybe_again(run, x, q, k, v)

    def _run_own(self, layer: OneTransLayer, x: Tensor, of: LayerKeys, beside: Joined, spans: Spans) -> Tensor:
        def run(x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            q, k, v = layer.project_own(x, self.users)
            attended = span_attention(q, beside.rows(keys.to(k.dtype), k), beside.rows(values.to(v.dtype), v), spans)
            return layer.own(x, attended.reshape(*x.shape[:2], -1), self.users)

        return self._maybe_again(run, x, of.keys, of.values)

    def _maybe_again(self, run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        if self.recompute and self.training:
            out: Tensor = checkpoint(run, *inputs, use_reentrant=False)
            return out
        return run(*inputs)


def _placed(users: Tensor, events: Tensor, own: Tensor, shared: Tensor) -> Tensor:
    """Rows of both, each where it lies."""
    out = torch.empty((len(own) + len(shared), *users.shape[1:]), dtype=users.dtype, device=users.device)
    return out.index_copy(0, own, users).index_copy(0, shared, events.to(users.dtype))


def _spans(asked: Rows, rows: Rows, dropped: Tensor) -> Spans:
    """Who sees whom among the user's rows, the history and realtime events; `asked` are `rows` without `dropped` history."""
    users, known = rows.users[asked.sample], rows.known[asked.sample]
    is_user = asked.group == USER
    place = torch.where(is_user, asked.place, asked.place + dropped[asked.sample])
    end = torch.where(is_user, known, place + 1)
    end = torch.where(asked.group == REALTIME, asked.end + dropped[asked.sample], end)
    nothing = torch.zeros_like(place)
    ahead = torch.where(is_user, place + 1, 0)  # a user token sees the user's up to itself
    own = torch.where(asked.group == REALTIME, place, nothing)
    to = torch.where(asked.group == REALTIME, place + 1, nothing)
    return make_spans(asked.offsets, rows.offsets, [(nothing, ahead), (users, end), (own, to)])


PRESETS = {
    "onetrans-small": OneTransConfig(dim=256, layers=6, heads=4, candidate_tokens=16, length=1190, tail=12),
    "onetrans-large": OneTransConfig(dim=384, layers=8, heads=4, candidate_tokens=20, length=1500, tail=16),
    # For two CPU cores.
    "onetrans-tiny": OneTransConfig(
        dim=64, layers=2, heads=2, ffn=2, candidate_tokens=3, user_tokens=2, length=64, tail=16, dropout=0.1
    ),
}

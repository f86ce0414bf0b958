"""LONGER (ByteDance, arXiv:2505.04421): K neighbouring events merged into one token, a cross-attention layer in which only the newest
tokens ask, causal self-attention on these, and global tokens that see everything.

    M_g = [e_{gK} ++ ... ++ e_{gK+K-1}]  in R^{K d}               merging, section 3.3; or of the K outputs of `inner` Transformer layers
    R = [G; M; realtime]                                          G: the user's tokens and each candidate's, W_g x in R^{K d}
    layer 1:   softmax(Q K^T / sqrt(d_h) + mask) V                Q from [G; the newest `recent` of M; realtime], K and V from R; section 3.4
    layer 2..: the same among [G; newest; realtime]
    a candidate's vector = W [its global tokens]

Which reading was taken:
  - Who sees whom goes by the text (section 3.4): history is causal, the user's globals see all history and are seen by all of it,
    candidates see the user, the history and the realtime events available before their exposure, and their own tokens; nothing sees a candidate.
  - History alone is merged, from its newest event backwards, the oldest group padded. A realtime event is a group of itself (K - 1 places
    of zeros before it): merged ones would show a candidate what came after its exposure.
  - `recent` counts merged tokens, taken after merging, and realtime events besides.
  - The time gap to the candidate is the tokenizer's, to the start of the window: the gap to each candidate could not be cached.
  - The paper's CLS is left out: what enters the heads are the candidate's globals, which read everything in every layer.
Sizes that the paper states: K of 4 and 8, 100 recent queries of 2,000 events (table 3); depth, heads and d aren't, and are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genrank.kernels.jagged import permuted
from genrank.kernels.merge import group_offsets, merge_rows
from genrank.kernels.spans import make_spans
from genrank.model.encoders.interface import Candidates, Counts, Encoder, EncoderConfig
from genrank.model.encoders.jagged_rows import Joined, Rows, evenly, in_order, newest, places, rows_of
from genrank.model.encoders.transformer import TransformerLayer, layer_operations
from genrank.model.validation import Count, Positive, Share
from genrank.tokenization import visibility
from genrank.tokenization.jagged_tokens import Tokens
from genrank.tokenization.visibility import HISTORY, REALTIME, USER
from genrank.tokenization.wants import Wants


@dataclass(frozen=True)
class LongerConfig(EncoderConfig):
    """What a LONGER encoder is."""

    layers: Positive = 3
    """The cross-attention layer, and the self-attention layers after it."""
    heads: Positive = 4
    """They divide the merged width, `merge` times `dim`."""
    merge: Positive = 4
    """K: history tokens of a merged token."""
    inner: Count = 0
    """Layers inside a group before its members are put side by side (InnerTrans); 0: side by side alone (concat)."""
    inner_heads: Positive = 1
    recent: Count = 100
    """So many merged tokens ask in the first layer and stay; 0: all."""
    asking: Literal["newest", "evenly"] = "newest"
    """Which: the newest, or as many spread evenly over the history (of 100, the paper has +1.57 and +1.45 % of
    AUC over its base)."""
    ffn: Positive = 4
    """Inner width of the feed-forward part, in widths of a token."""
    dropout: Share = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise self.refuse("heads", f"give a divisor of merge * dim, {self.width}")
        if self.inner and self.dim % self.inner_heads:
            raise self.refuse("inner_heads", f"give a divisor of dim, {self.dim}")

    @property
    def width(self) -> int:
        """Of a merged token."""
        return self.merge * self.dim

    def wants(self) -> Wants:
        """Causal sequences."""
        return Wants(visibility.causal)

    def flops(self, counts: Counts) -> int:
        """At the mean length of what candidates see."""
        if not counts.candidates:
            return 0
        events = max(counts.tokens - counts.candidates, 0)
        length = counts.seen / counts.candidates
        kept = min(1.0, self.recent * self.merge / max(length, 1.0)) if self.recent else 1.0
        merged, read = events / self.merge, length / self.merge
        width, ffn, asked = self.width, self.ffn, events / self.merge * kept
        seen = counts.candidates * read
        first = layer_operations(
            width, ffn, asked + counts.candidates, merged + counts.candidates, asked * read / 2 + seen
        )
        later = layer_operations(
            width, ffn, asked + counts.candidates, asked + counts.candidates, kept * (asked * read / 2 + seen)
        )
        inner = self.inner * layer_operations(self.dim, self.ffn, events, events, events * self.merge)
        ends = 2 * counts.candidates * self.dim * width * 2
        return round(first + (self.layers - 1) * later + inner + ends)


@dataclass
class LayerKeys:
    """What candidates read in one layer; S rows of B samples."""

    offsets: Tensor
    """[B+1] int64."""
    keys: Tensor
    values: Tensor
    """[S, heads, width / heads]."""
    fewer: Tensor
    """[B] int64: by how many rows a sample is shorter than its sequence of tokens, all of them of the history."""


class Longer(Encoder[list[LayerKeys]]):
    """The encoder."""

    config: LongerConfig

    def __init__(self, config: LongerConfig) -> None:
        super().__init__(config)
        width = config.width
        self.inner = nn.ModuleList(_Inner(config) for _ in range(config.inner))
        self.user = nn.Linear(config.dim, width)
        self.candidate = nn.Linear(config.dim, width)
        self.layers = nn.ModuleList(
            TransformerLayer(width, config.heads, config.ffn, dropout=config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.dim)

    def shardable_layers(self) -> Sequence[nn.Module]:
        """The layers."""
        return list(self.layers)

    def user_state(self, sequence: Tokens, beside: Tensor | None = None) -> list[LayerKeys]:
        """Keys and values of each layer."""
        whole = rows_of(sequence)
        x, rows, lengths, fewer = self._merged(sequence, whole)
        state = []
        for at, layer in enumerate(self.layers):
            assert isinstance(layer, TransformerLayer)
            k, v = layer.keys_of(x)
            state.append(LayerKeys(rows.offsets, k, v, fewer))
            if at == len(self.layers) - 1:
                break  # nothing reads what the last layer makes of the sequence
            asked, dropped, known, place = rows, torch.zeros_like(fewer), rows.known, rows.place
            if not at and self.config.recent:
                choose = newest if self.config.asking == "newest" else evenly
                kept, dropped = choose(rows, self.config.recent, lengths)
                x, asked, place = x[kept], rows.take(kept, dropped), place[kept]
            history_end = place + 1
            end = torch.where(asked.group == HISTORY, history_end, known[asked.sample])
            end = torch.where(asked.group == REALTIME, asked.end + dropped[asked.sample], end)
            own = torch.where(asked.group == REALTIME, history_end - 1, end)
            spans = make_spans(
                asked.offsets, rows.offsets, [(torch.zeros_like(end), end), (own, history_end.maximum(own))]
            )
            x = self._run(layer, x, k, v, spans)
            rows, fewer = asked, fewer + dropped
        return state

    def score(self, state: list[LayerKeys], candidates: Candidates) -> Tensor:
        """[C, dim]: the candidates' global tokens through all layers."""
        sorted_ = in_order(candidates)
        given = sorted_.candidates
        count, tokens, _ = given.x.shape
        x: Tensor = self.candidate(given.x.flatten(0, 1)).to(given.x.dtype)
        each = torch.repeat_interleave(torch.arange(count, device=x.device), tokens, output_size=count * tokens)
        beside = Joined(state[0].offsets, given.owner, tokens)
        for at, (layer, of) in enumerate(zip(self.layers, state, strict=True)):
            assert isinstance(layer, TransformerLayer)
            if at and of.offsets is not state[at - 1].offsets:
                beside = Joined(of.offsets, given.owner, tokens)
            k, v = layer.keys_of(x)
            end = (given.end.long() - of.fewer[given.owner])[each]
            first = beside.q_positions.long() - torch.arange(count * tokens, device=x.device) % tokens
            spans = make_spans(
                beside.q_offsets, beside.k_offsets, [(torch.zeros_like(end), end), (first, first + tokens)]
            )
            x = self._run(layer, x, beside.rows(of.keys, k), beside.rows(of.values, v), spans)
        vectors: Tensor = self.out(self.norm(x)).unflatten(0, (count, tokens)).mean(1)
        return sorted_.back(vectors)

    def _run(self, layer: TransformerLayer, *inputs: object) -> Tensor:
        again = self.recompute and self.training
        out: Tensor = checkpoint(layer, *inputs, use_reentrant=False) if again else layer(*inputs)
        return out

    def _merged(self, sequence: Tokens, whole: Rows) -> tuple[Tensor, Rows, Tensor, Tensor]:
        """[R, width] rows U | M | realtime, what they are, [B] merged history on the host, and [B] by how many rows each is shorter."""
        k, history = self.config.merge, sequence.history_lengths
        groups_on_host = (history + k - 1) // k
        count = int(groups_on_host.sum())
        of_history = places(whole.group == HISTORY, int(history.sum()))
        offsets = F.pad(whole.history.cumsum(0), (1, 0))
        rows = sequence.x[of_history]
        merged = merge_rows(rows, offsets, k, count)
        there = merge_rows(torch.ones_like(rows[:, :1]), offsets, k, count)[..., 0] > 0
        others = (whole.group != HISTORY).long().cumsum(0)
        of_others = torch.searchsorted(others, torch.arange(1, len(whole.group) - len(rows) + 1, device=rows.device))
        is_user = whole.group[of_others] == USER
        alone = sequence.x[of_others]
        events = torch.cat([merged, F.pad(alone[:, None], (0, 0, k - 1, 0))])
        there = torch.cat([there, F.pad(torch.ones_like(is_user)[:, None], (k - 1, 0))])
        for layer in self.inner:
            events = layer(events, there)
        flat = events.flatten(1)
        user = self.user(alone)
        flat = torch.cat([flat[:count], torch.where(is_user[:, None], user.to(flat.dtype), flat[count:])])
        # Laid out sample by sample again: the users' rows, the groups, the realtime rows.
        groups = group_offsets(offsets, k)
        order, inverse, new = _between(whole, groups, of_others, count)
        x = permuted(flat, order, inverse)
        sample = torch.repeat_interleave(new.diff(), output_size=len(order))
        place = torch.arange(len(order), device=order.device) - new[sample]
        fewer = whole.history - groups.diff()
        ends = torch.cat([torch.zeros(count, dtype=torch.int64, device=order.device), whole.end[of_others]])[order]
        group = torch.cat([whole.group.new_full((count,), HISTORY), whole.group[of_others]])[order]
        seconds = torch.cat([torch.zeros_like(ends[:count]), whole.seconds[of_others]])[order]
        rows_ = Rows(
            new, sample, place, group, whole.users, groups.diff(), whole.realtime, ends - fewer[sample], seconds
        )
        return x, rows_, groups_on_host, fewer


def _between(whole: Rows, groups: Tensor, of_others: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the groups ([0, count)) and after them the other rows go, sample by sample: (order, inverse, offsets)."""
    realtime = len(of_others)
    user_offsets, realtime_offsets = (F.pad(n.cumsum(0), (1, 0)) for n in (whole.users, whole.realtime))
    new = user_offsets + groups + realtime_offsets
    device = of_others.device
    index = torch.arange(count, device=device)
    sample = torch.searchsorted(groups, index, right=True) - 1
    of_group = new[sample] + whole.users[sample] + index - groups[sample]
    other_sample, other_place = whole.sample[of_others], whole.place[of_others]
    shorter = torch.where(whole.group[of_others] == USER, 0, (whole.history - groups.diff())[other_sample])
    of_other = new[other_sample] + other_place - shorter
    inverse = torch.cat([of_group, of_other])
    order = torch.empty_like(inverse)
    order[inverse] = torch.arange(count + realtime, device=device)
    return order, inverse, new


class _Inner(nn.Module):
    """InnerTrans: a Transformer layer among the K members of a group; places without a member stay zeros."""

    def __init__(self, config: LongerConfig) -> None:
        super().__init__()
        self.heads = config.inner_heads
        self.attention_norm, self.ffn_norm = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.qkv, self.out = nn.Linear(config.dim, 3 * config.dim), nn.Linear(config.dim, config.dim)
        self.up, self.down = (
            nn.Linear(config.dim, config.ffn * config.dim),
            nn.Linear(config.ffn * config.dim, config.dim),
        )

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """[G, K, dim] and which are members, bool [G, K] -> [G, K, dim]."""
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(2, 3)) / math.sqrt(q.shape[3])
        weights = scores.masked_fill(~there[:, None, None], -torch.inf).softmax(3)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.ffn_norm(x))))
        return x * there[..., None]


PRESETS = {
    # Table 3 of the paper: 2,000 events merged by 4 (or 8, with InnerTrans), of which the newest 100 ask.
    "longer-base": LongerConfig(dim=32, layers=4, heads=4, merge=4, recent=100),
    "longer-inner": LongerConfig(dim=32, layers=4, heads=4, merge=8, inner=1, recent=100),
    # For two CPU cores.
    "longer-tiny": LongerConfig(dim=32, layers=2, heads=2, merge=4, recent=16, dropout=0.1),
}

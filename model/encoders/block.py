"""The block that HSTU and MTGR share: pointwise SiLU attention, gated. Every choice the two disagree on is a field.

    X~ = norm_in(X)
    U, V, Q, K = silu(X~ W + b)                                          (or SiLU on U alone)
    A = silu(alpha Q K^T + bias) * visible / n;   O = A V                (kernels.interval_attention)
    Y = norm_out(O) * U   (HSTU, arXiv:2402.17152, equations 1-3)   or   norm_out(O * U)   (MTGR, arXiv:2505.18654, section 3.3)
    X' = X + residual_scale * dropout(Y) W_o

`model.encoders.stack` puts blocks on one another.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrank.kernels.attention import RelativeBias, interval_attention
from genrank.kernels.norm import Order, add_norm, group_layer_norm, norm_gate
from genrank.kernels.rows import pick_rows
from genrank.kernels.silu_split import silu_split
from genrank.kernels.spans import Spans
from genrank.model.encoders.interface import Counts, EncoderConfig
from genrank.model.encoders.listwise import attend
from genrank.model.validation import Bounds, Count, Positive, Scale, Share
from genrank.tokenization import visibility
from genrank.tokenization.jagged_tokens import Tokens
from genrank.tokenization.wants import One, TokenShape, Wants

NormKind = Literal["layer", "rms", "gln", "none"]
OutputNormKind = Literal["layer", "rms", "gln", "none", "head"]

GROUPS = 4
"""Token groups: user, history, realtime, candidates."""


@dataclass(frozen=True)
class BlockConfig(EncoderConfig):
    """What a stack of blocks is. The defaults are MTGR's; `model.encoders.hstu` sets HSTU's."""

    layers: Positive
    heads: Positive
    qk_dim: Positive = 256
    """Width of a head's queries and keys."""
    v_dim: Positive = 256
    """Width of a head's values, and of U."""
    activation: Literal["uvqk", "u"] = "uvqk"
    """SiLU after the projection: on all four (papers) or on the gate only (Meta's DLRM-v3 code)."""
    visibility: Literal["dynamic", "targets", "causal"] = "dynamic"
    """Who sees whom: MTGR's dynamic mask; HSTU's causal history with candidates as targets; the same with causal user tokens. No
    candidate sees another under any."""
    listwise: bool = False
    """Whether a candidate also sees the rivals of its request that were exposed no later than it (`model.encoders.listwise`): its score then
    depends on which these are, never on another request's or a later one. Needs `Candidates(request=...)`, all of a request in one row."""
    input_norm: NormKind = "gln"
    output_norm: OutputNormKind = "gln"
    """`head`: each head's values by themselves, with a weight and a bias a head (the group norm of Meta's public code)."""
    norm_groups: Literal["kind", "sequence"] = "kind"
    """Of `gln`: user, history, realtime and candidates; or the user, each sequence of the schema and the candidates."""
    group_count: Count = 0
    """How many there are; set when the model is made."""
    gate: Order = "gate_norm"
    concat_ua: bool | Literal["raw"] = False
    """Project [U, norm(O), norm(O) * U] instead of the last alone (HSTU's public research code); "raw": with O itself in the
    middle (Meta's DLRM-v3 code)."""
    divisor: Literal["length", "visible"] | Positive = "length"
    """`n`: the sample's tokens (as both papers have it), the keys this query sees, or a fixed number. Only the last two leave a score
    independent of the candidates that happen to be scored beside it: the norm that follows divides the difference out but for its
    epsilon, and var(O * U) is about epsilon early in training (untrained mtgr-small: one score moves by up to .18 logits)."""
    alpha: Scale | None = None
    """Scale of Q K^T; None: 1 / sqrt(qk_dim)."""
    projection_bias: bool = True
    history: Count = 0
    """Events of each history that the encoder reads: the newest so many; 0: all. Batches, and so steps, are those of the whole samples."""
    position_reach: Count = 0
    """Relative position bias up to this distance; 0: none."""
    time_buckets: Count = 0
    """Relative time bias, in log-spaced buckets of seconds; 0: none."""
    positions: Literal["newest", "oldest"] = "newest"
    """Where the learned positions of a history count from (`tokenization.wants.Wants.positions`)."""
    ages: bool = True
    """Whether tokens of events say how long before the window they happened (`Wants.ages`)."""
    input_dropout: Share = 0.0
    """Of the tokens, before the first block."""
    dropout: Share = 0.0
    """Of the gated output, before its projection."""
    attention_dropout: Share = 0.0
    residual_scale: Annotated[float, Bounds(low=0)] = 1.0
    stream: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the residual stream under autocast (`--precision bf16`): bfloat16 is half the memory traffic of additions and norms, and rounds
    what each layer adds. Training in fp32 has no autocast, and refuses bfloat16."""
    final_norm: NormKind = "layer"
    eps: Scale = 1e-6
    feature_norm: bool = False
    """Bring every feature to one scale before it becomes a token: vectors by their root mean square, numbers by the training
    days' mean and deviation (`tokenization.feature_norm`)."""
    tower: tuple[Positive, ...] = ()
    """Widths of an MLP over all features of a candidate and its user, beside the encoder; the heads read its last layer and the
    encoder's vector. Empty: none."""
    candidate_numbers: bool = True
    """Whether a candidate's token holds its numbers. Without them it is made of ids alone, which histories have too, and
    attention looks for nothing else; the numbers are then the tower's."""
    encoder_loss: Annotated[float, Bounds(low=0)] = 0.0
    """Weight of a second loss, of heads of its own that read the encoder's vector without the tower (deep supervision: Lee et al.,
    AISTATS 2015, arXiv:1409.5185). Without it what numbers explain quickly leaves the encoder little to learn from. Training only."""
    equal_start: bool = False
    """Begin with equal weights where equal ids should meet: projections of features that read one table, and keys as queries."""

    history_loss: Annotated[float, Bounds(low=0)] = 0.0
    """Weight of an event's loss beside a candidate's (HSTU, arXiv:2402.17152, section 2.2: the action is predicted at every item of the
    history). Each event is then two tokens, what is known before its action and the action (`tokenization.event_actions`), and its type is
    predicted at the first. Needs `visibility` causal, and in place of a label the several types of a sequence's events. Training only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.history_loss and self.visibility != "causal":
            raise self.refuse(
                "history_loss",
                f"under visibility={self.visibility} an event's prediction would read its own action"
                f"{', by way of the user tokens' if self.visibility == 'targets' else ''}; set visibility=causal too, or 0",
            )
        if self.listwise and self.divisor == "length":
            raise self.refuse(
                "listwise",
                "divisor=length would count the candidates of other requests, too; set divisor=visible, or a number",
            )
        if self.listwise and self.attention_dropout:
            raise self.refuse(
                "listwise", "attention over several spans has no dropout; set attention_dropout=0, or listwise=false"
            )
        if not self.candidate_numbers and not self.tower:
            raise self.refuse(
                "candidate_numbers", "without them nothing reads a candidate's numbers; set tower=[128,64] too"
            )
        if self.encoder_loss and not self.tower:
            raise self.refuse("encoder_loss", "without a tower it is the same loss again; set tower=[128,64] too, or 0")

    def wants(self) -> Wants:
        """The mask that `visibility` names; features at one scale, and an equal start, where asked for."""
        rules: dict[str, visibility.Rule] = {
            "dynamic": visibility.mtgr,
            "targets": visibility.hstu,
            "causal": visibility.causal,
        }
        return Wants(
            rules[self.visibility],
            candidate=One(numbers=self.candidate_numbers),
            newest=self.history,
            feature_norm=self.feature_norm,
            equal_start=self.equal_start,
            positions=self.positions,
            ages=self.ages,
            sequence_ids=self.norm_groups == "sequence",
            requests=self.listwise,
            event_actions=self.history_loss > 0,
        )

    def append_obstacles(self) -> list[str]:
        """Settings under which a user or history token depends on what follows it, or on the window; none: a state goes on with further events."""
        found = []
        if self.visibility != "causal":
            found.append(
                f"under visibility={self.visibility} tokens read later ones (train with --set visibility=causal)"
            )
        if self.positions != "oldest":
            found.append("positions count from the newest event (train with --set positions=oldest)")
        if self.ages:
            found.append("tokens say how old they are in the window (train with --set ages=false)")
        if self.history:
            found.append(f"the newest {self.history} events move (train with --set history=0)")
        return found

    @property
    def span_divisor(self) -> int | None:
        """`divisor`, as span attention takes it."""
        return self.divisor if isinstance(self.divisor, int) else None

    @property
    def event_weight(self) -> float:
        """That of `history_loss`."""
        return self.history_loss

    def fit(self, shape: TokenShape) -> Self:
        """With a group a sequence of the schema, where the norm has them."""
        return dataclasses.replace(self, group_count=shape.sequences + 2) if self.norm_groups == "sequence" else self

    def flops(self, counts: Counts) -> int:
        """Floating point operations of one forward pass (a multiply-add is two); a training step is three of them.

        Those that the result needs: of the last layer the candidates' rows alone, and of the others their keys and values; all rows without
        candidates, and where events are learned from.
        """
        pair = self.heads * (self.qk_dim + self.v_dim)
        row = self.dim * pair
        out = self.heads * self.v_dim * (3 if self.concat_ua else 1) * self.dim
        layer = counts.tokens * (2 * row + out) + counts.pairs * pair
        last = layer
        if counts.candidates and not self.history_loss:
            last = counts.tokens * row + counts.candidates * (row + out) + (counts.seen + counts.candidates) * pair
        return 2 * ((self.layers - 1) * layer + last)


class Norm(nn.Module):
    """LayerNorm, RMSNorm, LayerNorm whose weight and bias are the token group's own (MTGR's GLN), or LayerNorm of each head's values."""

    def __init__(self, kind: OutputNormKind, dim: int, eps: float, *, groups: int = GROUPS, heads: int = 1) -> None:
        super().__init__()
        self.kind, self.eps = kind, eps
        if kind != "none":
            shape = (groups or GROUPS, dim) if kind == "gln" else (heads,) if kind == "head" else (dim,)
            self.weight = nn.Parameter(torch.ones(shape))
        if kind in ("layer", "gln", "head"):
            self.bias = nn.Parameter(torch.zeros(shape))

    def after(
        self,
        x: Tensor,
        change: Tensor | None,
        group_ids: Tensor,
        scale: float,
        dtype: torch.dtype | None = None,
        shift: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(x + scale * (change + shift), its norm), each [T, dim]: one pass on a GPU where the norm is `adds`' kind.

        Args:
            change: [T, dim]; None: nothing.
            dtype: what reads the norm wants it in; None: x's.
            shift: [dim], of `adds`' kinds.
        """
        if change is None:
            return x, self(x, group_ids)
        if not adds(self.kind):
            x = added(x, change if shift is None else change + shift, scale)
            return x, self(x, group_ids)
        return add_norm(
            x,
            change,
            self.weight,
            self.bias,
            group_ids=group_ids if self.kind == "gln" else None,
            scale=scale,
            eps=self.eps,
            dtype=dtype,
            shift=shift,
        )

    def forward(self, x: Tensor, group_ids: Tensor) -> Tensor:
        """[T, dim], [T] int32 -> [T, dim]."""
        if self.kind == "gln":
            return group_layer_norm(x, group_ids, self.weight, self.bias, self.eps)
        if self.kind == "head":
            each = x.reshape(len(x), len(self.weight), -1)
            normed = F.layer_norm(each, each.shape[-1:], eps=self.eps)
            return (normed * self.weight[:, None] + self.bias[:, None]).flatten(1)
        if self.kind == "layer":
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps) if self.kind == "rms" else x


def adds(kind: OutputNormKind) -> bool:
    """Whether a norm of this kind has the residual's addition in its own pass: it has weights and a bias a column, and no compiler fuses them."""
    return kind in ("gln", "layer") and not torch.compiler.is_compiling()


class Projected(NamedTuple):
    """What a block computes of each row alone; U and Q of the R rows that ask, by default all T."""

    u: Tensor
    """[R, heads * v_dim]."""
    v: Tensor
    """[T, heads, v_dim]."""
    q: Tensor
    """[R, heads, qk_dim]."""
    k: Tensor
    """[T, heads, qk_dim]."""


class Block(nn.Module):
    """[T, dim] -> [T, dim] by the equations above.

    Args:
        following: the norm that reads what it gives; None: another block's.
    """

    def __init__(self, config: BlockConfig, following: NormKind | None = None) -> None:
        super().__init__()
        self.config = config
        self.following: NormKind = config.input_norm if following is None else following
        inner = config.heads * config.v_dim
        self.sizes = [inner, inner, config.heads * config.qk_dim, config.heads * config.qk_dim]
        groups = config.group_count
        self.input_norm = Norm(config.input_norm, config.dim, config.eps, groups=groups)
        self.uvqk = nn.Linear(config.dim, sum(self.sizes), bias=config.projection_bias)
        self.output_norm = Norm(config.output_norm, inner, config.eps, groups=groups, heads=config.heads)
        self.out = nn.Linear(inner * (3 if config.concat_ua else 1), config.dim)
        for linear in (self.uvqk, self.out):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        if config.equal_start:
            with torch.no_grad():
                _, _, q, k = torch.split(self.uvqk.weight, self.sizes)
                k.copy_(q)
        self.position_table = self.time_table = None
        if config.position_reach:
            self.position_table = nn.Parameter(0.02 * torch.randn(2 * config.position_reach + 1, config.heads))
        if config.time_buckets:
            self.time_table = nn.Parameter(0.02 * torch.randn(config.time_buckets, config.heads))

    def forward(
        self,
        x: Tensor,
        tokens: Tokens,
        positions: Tensor | None,
        seconds: Tensor | None,
        change: Tensor | None = None,
        shift: Tensor | None = None,
        wanted: Tensor | None = None,
        spans: Spans | None = None,
        alone: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """[T, dim] -> the residual, what is to be added to it, each [T, dim], and what of that is one row for all, [dim] or None: every token reads
        those that it sees.

        The addition is the next block's: with the norm after it, it is one pass over memory.

        Args:
            change, shift: to be added to x first.
            wanted: [R] int64: only these rows of the result; each at most once.
            spans: what each token sees, where an interval doesn't name it.
            alone: whether no other row than the wanted ones, which then ascend, asks at all: there are far fewer of them than tokens.
        """
        config = self.config
        x, normed = self.input_norm.after(x, change, tokens.group_ids, config.residual_scale, autocast_dtype(x), shift)
        asking = wanted if alone else None
        rows = self._split(normed, asking)
        attended = self._attended(rows, tokens, self.bias(positions, seconds), spans, asking).flatten(1)
        u, group_ids = rows.u, tokens.group_ids
        if wanted is not None:
            x, *read = pick_rows(wanted, x) if alone else pick_rows(wanted, x, attended, u)
            attended, u = read or (attended, u)
            group_ids = group_ids.index_select(0, wanted)
        gated = self._gate(attended, u, group_ids)
        if not adds(self.following):
            return x, self.out(gated), None
        # A copy: under FSDP a block's own parameters are gone when the next one runs.
        return x, F.linear(gated, self.out.weight), self.out.bias.clone()

    def _attended(
        self, rows: Projected, tokens: Tokens, bias: RelativeBias | None, spans: Spans | None, asking: Tensor | None
    ) -> Tensor:
        config = self.config
        if spans is not None:
            return attend(
                rows.q,
                rows.k,
                rows.v,
                spans,
                None,
                alpha=config.alpha,
                divisor=config.span_divisor,
                bias=bias,
                max_length=tokens.max_length,
            )
        return interval_attention(
            rows.q,
            rows.k,
            rows.v,
            tokens.offsets,
            tokens.begin,
            tokens.end,
            alpha=config.alpha,
            divisor=config.divisor,
            bias=bias,
            dropout=config.attention_dropout if self.training else 0.0,
            max_length=tokens.max_length,
            rows=asking,
        )

    def project(self, x: Tensor, group_ids: Tensor) -> Projected:
        """[T, dim] -> U, V, Q and K of the rows."""
        return self._split(self.input_norm(x, group_ids))

    def _split(self, normed: Tensor, asking: Tensor | None = None) -> Projected:
        config, weight, bias = self.config, self.uvqk.weight, self.uvqk.bias
        everything = config.activation == "uvqk"
        if asking is None:
            u, v, q, k = silu_split(normed, weight, bias, self.sizes, sum(self.sizes) if everything else self.sizes[0])
        else:
            (few,) = pick_rows(asking, normed)
            weights = torch.split(weight, self.sizes)
            biases = None if bias is None else torch.split(bias, self.sizes)

            def part(rows: Tensor, first: int, second: int, active: int) -> tuple[Tensor, ...]:
                own = None if biases is None else torch.cat([biases[first], biases[second]])
                sizes = [self.sizes[first], self.sizes[second]]
                return silu_split(rows, torch.cat([weights[first], weights[second]]), own, sizes, active)

            u, q = part(few, 0, 2, self.sizes[0] + self.sizes[2] if everything else self.sizes[0])
            v, k = part(normed, 1, 3, self.sizes[1] + self.sizes[3] if everything else 0)
        return Projected(
            u,
            v.view(-1, config.heads, config.v_dim),
            q.view(-1, config.heads, config.qk_dim),
            k.view(-1, config.heads, config.qk_dim),
        )

    def bias(self, positions: Tensor | None, seconds: Tensor | None) -> RelativeBias | None:
        """The relative bias between keys at these positions ([T] int32) and times ([T] int64 s); None without a table."""
        if self.position_table is None and self.time_table is None:
            return None
        return RelativeBias(self.position_table, self.time_table, seconds, positions)

    def merge(self, x: Tensor, attended: Tensor, u: Tensor, group_ids: Tensor) -> Tensor:
        """[T, dim]: what was attended to ([T, heads * v_dim]), gated by U and added to x."""
        change: Tensor = self.out(self._gate(attended, u, group_ids))
        return added(x, change, self.config.residual_scale)

    def _gate(self, attended: Tensor, u: Tensor, group_ids: Tensor) -> Tensor:
        config, norm = self.config, self.output_norm
        dropout = config.dropout if self.training else 0.0
        if norm.kind in ("layer", "gln") and not config.concat_ua:
            groups = group_ids if norm.kind == "gln" else None
            return norm_gate(
                attended,
                u,
                norm.weight,
                norm.bias,
                order=config.gate,
                group_ids=groups,
                eps=config.eps,
                dropout=dropout,
            )
        if config.gate == "gate_norm":
            gated = norm(attended * u, group_ids)
            parts = (u, attended, gated)
        else:
            normed = norm(attended, group_ids)
            gated = normed * u
            parts = (u, attended if config.concat_ua == "raw" else normed, gated)
        return F.dropout(torch.cat(parts, 1) if config.concat_ua else gated, dropout)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What matrix products on x's device are computed in; None: in their inputs'."""
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else None


def streamed(x: Tensor, config: BlockConfig) -> Tensor:
    """Tokens in the dtype of the residual stream."""
    return x if autocast_dtype(x) is None else x.to(getattr(torch, config.stream))


def added(x: Tensor, change: Tensor, scale: float) -> Tensor:
    """x + scale * change."""
    return x + change if scale == 1.0 else x + scale * change


def parameter_count(modules: Iterable[nn.Module]) -> int:
    """Trained parameters, each counted once."""
    return sum(
        math.prod(p.shape) for p in {id(p): p for m in modules for p in m.parameters() if p.requires_grad}.values()
    )

"""RankMixer (Douyin, arXiv:2507.15551) and TokenMixer-Large's mending of its depth (arXiv:2602.06563).

X = [C, T, D]: features' columns side by side, cut into T pieces of equal width, each projected by itself; sequences enter pooled.

    mix(X)    each token in T heads of D / T; token h of the mixed ones is head h of all tokens, side by side: a transpose, no weights
    RankMixer S = norm(mix(X) + X);   X' = norm(F(S) + S),  F_t(s) = W2_t gelu(W1_t s + b1_t) + b2_t, the weights token t's own
    revert    Z = norm(X + unmix(F1(mix(X))));   X' = norm(Z + F2(Z)),  F1 and F2 per-token SwiGLU: the residual adds like to like
    global    with `global_token` (TokenMixer-Large) a token before the others that has read all of them: G = W vec(X)
    output    the mean of the tokens

`norm`: "post" as printed above, "pre" as the paper's text and its reimplementations have it: each sublayer reads norm(x), and the sum isn't
normalised. With `experts` above 1 each F_t is a ReLU-gated mixture, F_t(s) = sum_e ReLU(h_t(s))_e F_te(s) (section 3.3): no top-k, an L1
penalty on the gates whose weight adapts until `active` of the experts are used. Dense training, sparse inference: two routers; in training
every other candidate is routed by the one, the rest by the other, and the penalty is on the second router alone; in evaluation the second
decides alone and only the experts it opens are computed.

Readings taken: the global token is what TokenMixer-Large likens to BERT's [CLS], "all groups' collective information": one linear map of all tokens
side by side; its auxiliary losses read the mean of the tokens between layers, each by heads of its own (`shallow_loss`); sequences' pooled vectors make `sequence_tokens` of the T tokens; how the paper joins its two routers in training isn't
printed (candidates by turns is ours: of a mean of both mixtures, which was tried, the second alone is badly calibrated, since the first makes up in
training for what the penalty takes from it); the penalty's weight follows ReMoE's rule (arXiv:2412.14711, equation 8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrank.kernels.slotted import Activation, slotted_ffn
from genrank.model.encoders.fixed_tokens import FixedTokens, FixedTokensConfig, SlottedLinear
from genrank.model.validation import Bounds, Count, Positive, Scale
from genrank.tokenization.wants import TokenShape

PENALTY_START, PENALTY_STEP = 1e-8, 1.2
"""ReMoE's initial weight of the gates' penalty, and the factor it changes by in a step."""


@dataclass(frozen=True)
class RankMixerConfig(FixedTokensConfig):
    """Layers of token mixing and per-token feed-forwards."""

    layers: Positive = 2
    ffn_dim: Positive = 128
    """Hidden width of a token's feed-forward, and of each expert."""
    norm: Literal["post", "pre"] = "post"
    mixing: Literal["heads", "none"] = "heads"
    own_ffn: bool = True
    """False: all tokens share a layer's feed-forward."""
    revert: bool = False
    """TokenMixer-Large's layer."""
    residual_every: Count = 0
    """Every so many layers, the last aside, what came out so many layers before is added; 0: never."""
    global_token: bool = False
    """One token more, that has read all the others."""
    shallow_loss: Annotated[float, Bounds(low=0)] = 0.0
    """Weight of a second loss of each shallower layer (with `residual_every` of each so many layers), by heads of its own: deep models
    learn in their first layers, too. Training only."""
    experts: Positive = 1
    """Of each token's feed-forward; 1: no mixture."""
    active: Scale = 0.5
    """Share of the experts that inference is to use."""
    tokens: Literal["groups", "feature", "split", "chunks"] = "chunks"
    sequence_tokens: Count = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.active > 1:
            raise self.refuse("active", "give a share above 0 and at most 1")
        if self.shallow_loss and not self._boundaries:
            raise self.refuse(
                "shallow_loss", "no layer lies before the last one; give more layers, a smaller residual_every, or 0"
            )
        if self.experts > 1 and not self.own_ffn:
            raise self.refuse(
                "own_ffn", "a mixture of experts has weights of each token's own; give true, or experts=1"
            )

    def fit(self, shape: TokenShape) -> Self:
        """With the schema's tokens, whose number must divide the width."""
        fitted = super().fit(shape)
        t = fitted.token_count
        if fitted.mixing == "heads" and fitted.dim % t:
            raise fitted.refuse(
                "dim",
                f"must be divisible by the {t} tokens that this schema makes ({shape.user} of the user, {fitted.pooled_tokens} of sequences,"
                f" {shape.candidate} of a candidate{', one of all' * fitted.global_token}): take {-(-fitted.dim // t) * t}, or other numbers of tokens",
            )
        return fitted

    @property
    def _boundaries(self) -> range:
        """How many layers lie before each shallower output."""
        step = self.residual_every or 1
        return range(step, self.layers, step)

    @property
    def shallow_outputs(self) -> int:
        """One a boundary, where they have a loss."""
        return len(self._boundaries) if self.shallow_loss else 0

    @property
    def token_count(self) -> int:
        """T, the global token included."""
        return super().token_count + self.global_token

    def layer_flops(self) -> int:
        """Operations of all layers for one candidate, all experts computed."""
        t, d, f = self.token_count, self.dim, self.ffn_dim
        feed = 2 * t * d * f * (3 if self.revert else 2)
        routers = 4 * t * d * self.experts if self.experts > 1 else 0
        of_all = 2 * (t - 1) * d * d if self.global_token else 0
        return of_all + self.layers * (2 if self.revert else 1) * (feed * self.experts + routers)


class RankMixer(FixedTokens):
    """RankMixer, and TokenMixer-Large's layers with `revert`."""

    config: RankMixerConfig

    def __init__(self, config: RankMixerConfig) -> None:
        super().__init__(config)
        t, dim = config.token_count, config.dim
        self.of_all = nn.Linear((t - 1) * dim, dim) if config.global_token else None
        self.layers = nn.ModuleList(MixerLayer(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.dim) if config.norm == "pre" else nn.Identity()

    def mix(self, x: Tensor) -> Tensor:
        """[C, T, dim] without the global token -> [C, dim]; in training with `shallow_loss` [C, (1 + shallow outputs) * dim]."""
        config = self.config
        if self.of_all is not None:
            x = torch.cat([self.of_all(x.flatten(1)).unsqueeze(1).to(x.dtype), x], 1)
        wanted = config.shallow_outputs if self.training else 0
        step = config.residual_every or (1 if wanted else config.layers)
        before, shallow = x, []
        for at in range(0, config.layers, step):
            x = self.run(self.layers[at : at + step], x)
            if at + step >= config.layers:
                break
            if config.residual_every:
                x = before = x + before
            if wanted:
                shallow.append(self._out(x))
        return torch.cat([self._out(x), *shallow], 1) if wanted else self._out(x)

    def _out(self, x: Tensor) -> Tensor:
        vectors: Tensor = self.final_norm(x.mean(1))
        return vectors


class MixerLayer(nn.Module):
    """[C, T, dim] -> [C, T, dim] by the equations above."""

    def __init__(self, config: RankMixerConfig) -> None:
        super().__init__()
        self.pre, self.p, self.revert = config.norm == "pre", config.dropout, config.revert
        self.mixing = config.mixing == "heads"
        self.norm1, self.norm2 = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        activation: Activation = "swiglu" if config.revert else "gelu"
        self.feeds = nn.ModuleList(_feed(config, activation) for _ in range(2 if config.revert else 1))

    def forward(self, x: Tensor) -> Tensor:
        """As above."""
        if self.revert:
            x = self._add(x, lambda y: self._mix(self.feeds[0](self._mix(y))), self.norm1)
        else:
            x = self._add(x, self._mix, self.norm1)
        return self._add(x, self.feeds[-1], self.norm2)

    def _add(self, x: Tensor, sublayer: Any, norm: nn.Module) -> Tensor:
        if self.pre:
            return x + F.dropout(sublayer(norm(x)), self.p, self.training)
        added: Tensor = norm(x + F.dropout(sublayer(x), self.p, self.training))
        return added

    def _mix(self, x: Tensor) -> Tensor:
        """With as many heads as tokens a transpose, which is its own inverse."""
        return mix_tokens(x) if self.mixing else x


def mix_tokens(x: Tensor) -> Tensor:
    """[C, T, D] -> [C, T, D]: head h of every token, side by side, is token h."""
    c, t, d = x.shape
    return x.view(c, t, t, d // t).transpose(1, 2).reshape(c, t, d)


class TokenFeed(nn.Module):
    """[C, T, dim] -> [C, T, dim]: a feed-forward of each token's own."""

    def __init__(self, slots: int, dim: int, hidden: int, activation: Activation, *, own: bool, scale: float) -> None:
        super().__init__()
        self.activation = activation
        self.up = SlottedLinear(slots, dim, hidden * (2 if activation == "swiglu" else 1), own=own)
        self.down = SlottedLinear(slots, hidden, dim, own=own, scale=scale)

    def forward(self, x: Tensor) -> Tensor:
        """As above."""
        t = x.shape[1]
        return self._apply_to(x, lambda parameter: parameter.expand(t, *parameter.shape[1:]))

    def of_slot(self, x: Tensor, slot: int) -> Tensor:
        """[N, dim] -> [N, dim] by the weights of one slot."""
        return self._apply_to(x[:, None], lambda parameter: parameter[slot : slot + 1]).squeeze(1)

    def _apply_to(self, x: Tensor, take: Any) -> Tensor:
        up, down = self.up, self.down
        assert up.bias is not None and down.bias is not None
        return slotted_ffn(x, take(up.weight), take(up.bias), take(down.weight), take(down.bias), self.activation)


class SparseMixture(nn.Module):
    """[C, T, dim] -> [C, T, dim]: experts of each token's own, gated by ReLU, dense in training and sparse in evaluation."""

    penalty: Tensor

    def __init__(self, config: RankMixerConfig, activation: Activation, scale: float) -> None:
        super().__init__()
        t, self.experts, self.active = config.token_count, config.experts, config.active
        self.feed = TokenFeed(t * self.experts, config.dim, config.ffn_dim, activation, own=True, scale=scale)
        self.dense_router, self.sparse_router = (SlottedLinear(t, config.dim, self.experts) for _ in range(2))
        for router in (self.dense_router, self.sparse_router):
            assert router.bias is not None
            nn.init.constant_(router.bias, 1 / self.experts)
        self.register_buffer("penalty", torch.tensor(PENALTY_START))

    def forward(self, x: Tensor) -> Tensor:
        """As above."""
        sparse = F.relu(self.sparse_router(x))
        if not self.training and not torch.is_grad_enabled():
            return self._opened(x, sparse)
        gates = sparse
        if self.training:
            by_sparse = (torch.arange(len(x), device=x.device) % 2 == 1)[:, None, None]
            gates = torch.where(by_sparse, self._penalised(sparse), F.relu(self.dense_router(x)))
        every = self.feed(x.repeat_interleave(self.experts, 1)).unflatten(1, (-1, self.experts))
        mixed: Tensor = (gates.unsqueeze(-1) * every).sum(2)
        return mixed

    def _penalised(self, gates: Tensor) -> Tensor:
        with torch.no_grad():
            share = (gates > 0).float().mean() if gates.numel() else self.penalty.new_tensor(self.active)
            penalty = self.penalty.clone()
            self.penalty.mul_(PENALTY_STEP ** torch.sign(share - self.active))
        penalised: Tensor = _Penalty.apply(gates, penalty)  # type: ignore[no-untyped-call]
        return penalised

    def _opened(self, x: Tensor, gates: Tensor) -> Tensor:
        """Only the experts whose gate is open."""
        out = torch.zeros_like(x)
        for t in range(x.shape[1]):
            for e in range(self.experts):
                rows = gates[:, t, e].nonzero().squeeze(1)
                made = self.feed.of_slot(x[rows, t], t * self.experts + e)
                out[rows, t] += (gates[rows, t, e, None] * made).to(out.dtype)
        return out


class _Penalty(torch.autograd.Function):
    """The gates as they are; their gradient also that of penalty * mean over tokens of sum over experts of gates, so that the penalty needs
    no way to the loss."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, penalty: Tensor) -> Tensor:
        """[C, T, E], scalar -> [C, T, E]."""
        ctx.save_for_backward(gates, penalty)
        return gates.view_as(gates)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Of the gates."""
        gates, penalty = ctx.saved_tensors
        own = penalty / max(gates.shape[0] * gates.shape[1], 1)
        return grad + own.to(grad.dtype), None


def _feed(config: RankMixerConfig, activation: Activation) -> nn.Module:
    scale = 0.01 if config.revert else 1.0  # TokenMixer-Large begins near the identity
    if config.experts > 1:
        return SparseMixture(config, activation, scale)
    return TokenFeed(config.token_count, config.dim, config.ffn_dim, activation, own=config.own_ffn, scale=scale)


PRESETS = {
    # The paper's D, T and L; the feed-forward's width isn't printed, these give its 107 M and 1.1 B parameters.
    "rankmixer-100m": RankMixerConfig(
        dim=768, layers=2, ffn_dim=2176, user_tokens=4, sequence_tokens=2, candidate_tokens=10
    ),
    "rankmixer-1b": RankMixerConfig(
        dim=1536, layers=2, ffn_dim=5632, user_tokens=8, sequence_tokens=4, candidate_tokens=20
    ),
    "rankmixer-tiny": RankMixerConfig(
        dim=64, layers=2, ffn_dim=96, user_tokens=2, sequence_tokens=2, candidate_tokens=4, dropout=0.1
    ),
    # TokenMixer-Large: pre-norm, SwiGLU, mixing reverted, residuals and a loss between layers, a global token.
    "tokenmixer-tiny": RankMixerConfig(
        dim=64, layers=4, ffn_dim=48, user_tokens=2, sequence_tokens=2, candidate_tokens=3, dropout=0.1,
        norm="pre", revert=True, residual_every=2, global_token=True, shallow_loss=0.1,
    ),
}  # fmt: skip

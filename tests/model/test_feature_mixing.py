"""HeteroAtt, Hiformer, HHFT, RankMixer and TokenMixer-Large against references written from the papers' equations: loops over candidates,
tokens and heads, in float64, which share no code with the encoders and read their parameters by name."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from genrank.model.encoders import Candidates, Counts, Hetero, HeteroConfig, RankMixer, RankMixerConfig, build_encoder
from genrank.model.encoders.fixed_tokens import FixedTokens, UserTokens
from genrank.model.encoders.hetero import PRESETS as HETERO
from genrank.model.encoders.rankmixer import PENALTY_START, PENALTY_STEP, SparseMixture, mix_tokens
from genrank.model.encoders.rankmixer import PRESETS as MIXERS
from genrank.model.validation import ConfigError
from genrank.tokenization.wants import TokenShape

SHAPE = TokenShape(user=2, candidate=3, sequences=2)


def layer_norm(x: Tensor, module) -> Tensor:
    centred = x - x.mean()
    return centred / torch.sqrt((centred * centred).mean() + module.eps) * module.weight + module.bias


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def of(parameter: Tensor, t: int) -> Tensor:
    """Token t's own, or the one that all share."""
    return parameter[t if len(parameter) > 1 else 0]


def rows_of(x: Tensor, function) -> Tensor:
    return torch.stack([function(t, x[t]) for t in range(len(x))])


# ---------------------------------------------------------------------- which tokens there are


def draw(seed: int, dim: int, shape: TokenShape = SHAPE) -> tuple[UserTokens, Candidates, list[list[int]]]:
    """Three samples; candidates that see a prefix of the events; per candidate the rows of its user tokens and events."""
    g = torch.Generator().manual_seed(seed)
    lengths, sequences = [4, 0, 7], []
    for n in lengths:
        sequences += [0] * shape.user + sorted(torch.randint(1, shape.sequences + 1, (n,), generator=g).tolist())
    offsets = torch.tensor([0, *torch.tensor([shape.user + n for n in lengths]).cumsum(0).tolist()])
    owner = torch.tensor([2, 0, 2, 1, 0])
    sees = torch.tensor([7, 2, 0, 0, 4])
    state = UserTokens(
        torch.randn(len(sequences), dim, generator=g, dtype=torch.float64), offsets, torch.tensor(sequences)
    )
    x = torch.randn(len(owner), shape.candidate, dim, generator=g, dtype=torch.float64)
    end = (shape.user + sees).int()
    rows = [[int(offsets[b]) + i for i in range(int(e))] for b, e in zip(owner, end, strict=True)]
    return state, Candidates(x, owner, torch.zeros_like(end), end, torch.zeros_like(owner)), rows


def reference_tokens(encoder: FixedTokens, state: UserTokens, candidates: Candidates, rows: list[list[int]]) -> Tensor:
    """[C, T, dim]: DIN's figure 2 and equation 3 pair by pair, a sequence and a candidate at a time."""
    unit, made = encoder.unit, []
    for c, seen in enumerate(rows):
        users = [state.x[row] for row in seen[: encoder.shape.user]]
        query = candidates.x[c].sum(0) / encoder.shape.candidate
        pooled = []
        for number in range(1, encoder.shape.sequences + 1):
            total = torch.zeros(encoder.dim, dtype=torch.float64)
            for row in seen:
                if int(state.sequence_ids[row]) == number:
                    event = state.x[row]
                    hidden = unit.of_event.weight @ event + unit.of_event.bias
                    hidden = hidden + unit.of_candidate.weight @ query + unit.of_product.weight @ (event * query)
                    hidden = torch.where(hidden > 0, hidden, unit.activation.weight * hidden)
                    total = total + (unit.weight.weight @ hidden + unit.weight.bias) * event
            pooled.append(total)
        out = encoder.of_sequences
        if encoder.config.sequence_tokens:
            sequences = list((out.weight @ torch.cat(pooled) + out.bias).view(-1, encoder.dim))
        else:
            sequences = [p @ out.weight[i] + out.bias[i] for i, p in enumerate(pooled)]
        made.append(torch.stack([*users, *sequences, *candidates.x[c]]))
    return torch.stack(made)


# ---------------------------------------------------------------------- HeteroAtt, Hiformer, HHFT


def reference_hetero(encoder: Hetero, x: Tensor) -> Tensor:
    config, out = encoder.config, []
    for tokens in x:
        if config.readout == "task":
            tokens = torch.cat([tokens, encoder.task[None]])
        t, d, width = len(tokens), config.dim, config.dim // config.heads
        for layer in encoder.layers:

            def attend(y: Tensor, layer=layer, t=t, d=d, width=width) -> Tensor:
                if layer.composite:
                    maps = [m[1].weight @ m[0].weight if config.rank else m.weight for m in layer.qkv]
                    q, k, v = ((m @ y.flatten()).view(t, d) for m in maps)
                else:
                    q, k, v = (
                        rows_of(y, lambda i, row, p=p: row @ of(layer.qkv.weight, i)[:, p * d : (p + 1) * d])
                        for p in range(3)
                    )
                heads = []
                for h in range(config.heads):
                    part = slice(h * width, (h + 1) * width)
                    weight = torch.exp(q[:, part] @ k[:, part].T / math.sqrt(width))
                    heads.append(weight / weight.sum(1, keepdim=True) @ v[:, part])
                return rows_of(torch.cat(heads, 1), lambda i, row: row @ of(layer.out.weight, i))

            def feed(y: Tensor, layer=layer) -> Tensor:
                up, down = layer.up, layer.down
                return rows_of(
                    y,
                    lambda i, row: (
                        gelu(row @ of(up.weight, i) + of(up.bias, i)) @ of(down.weight, i) + of(down.bias, i)
                    ),
                )

            def normed(y: Tensor, norm) -> Tensor:
                return rows_of(y, lambda i, row: layer_norm(row, norm))

            if config.norm == "pre":
                tokens = tokens + attend(normed(tokens, layer.norm1))
                tokens = tokens + feed(normed(tokens, layer.norm2))
            else:
                tokens = normed(tokens + attend(tokens), layer.norm1)
                tokens = normed(tokens + feed(tokens), layer.norm2)
        vector = tokens[-1] if config.readout == "task" else tokens.mean(0)
        out.append(layer_norm(vector, encoder.final_norm) if config.norm == "pre" else vector)
    return torch.stack(out)


HETEROS = {
    "heteroatt": HeteroConfig(dim=6, hetero_layers=2, heads=3),
    "hiformer": HeteroConfig(dim=6, composite_layers=2, heads=2, norm="pre"),
    "hiformer, low rank": HeteroConfig(dim=6, composite_layers=2, heads=2, rank=5),
    "hhft": HeteroConfig(dim=6, hetero_layers=1, composite_layers=1, readout="mean", sequence_tokens=1),
    "shared": HeteroConfig(dim=6, hetero_layers=1, own_weights=False),
}


def randomised(encoder: FixedTokens) -> FixedTokens:
    """Norms and biases that are not at their start, too."""
    torch.manual_seed(1)
    for parameter in encoder.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return encoder


def fitted(config, shape: TokenShape = SHAPE) -> FixedTokens:
    torch.manual_seed(0)
    encoder = build_encoder(config.fit(shape)).double().eval()
    assert isinstance(encoder, FixedTokens)
    return randomised(encoder)


def equal_with_gradients(encoder: FixedTokens, reference) -> None:
    state, candidates, rows = draw(3, encoder.dim, encoder.shape)
    state.x.requires_grad_()
    candidates.x.requires_grad_()
    inputs = [state.x, candidates.x, *encoder.parameters()]
    got = encoder.score(state, candidates)
    wanted = reference(encoder, reference_tokens(encoder, state, candidates, rows))
    torch.testing.assert_close(got, wanted)
    seed = torch.randn(got.shape, dtype=got.dtype, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad(got, inputs, seed, allow_unused=True)
    for a, b in zip(found, torch.autograd.grad(wanted, inputs, seed, allow_unused=True), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("config", HETEROS.values(), ids=HETEROS)
def test_hetero_equals_its_equations(config: HeteroConfig) -> None:
    equal_with_gradients(fitted(config), reference_hetero)


# ---------------------------------------------------------------------- RankMixer, TokenMixer-Large


def reference_mixer(encoder: RankMixer, x: Tensor) -> Tensor:
    config, out = encoder.config, []
    for tokens in x:

        def mixed(y: Tensor) -> Tensor:
            t, width = len(y), y.shape[1] // len(y)
            if config.mixing == "none":
                return y
            return torch.stack([torch.cat([y[i, h * width : (h + 1) * width] for i in range(t)]) for h in range(t)])

        def fed(y: Tensor, feed) -> Tensor:
            def one(parts, slot: int, row: Tensor) -> Tensor:
                hidden = row @ of(parts.up.weight, slot) + of(parts.up.bias, slot)
                if config.revert:
                    half = len(hidden) // 2
                    hidden = hidden[:half] / (1 + torch.exp(-hidden[:half])) * hidden[half:]
                else:
                    hidden = gelu(hidden)
                return hidden @ of(parts.down.weight, slot) + of(parts.down.bias, slot)

            def mixture(i: int, row: Tensor) -> Tensor:
                gates = (row @ feed.sparse_router.weight[i] + feed.sparse_router.bias[i]).clamp(min=0)
                return sum(gates[e] * one(feed.feed, i * config.experts + e, row) for e in range(config.experts))

            return rows_of(y, mixture if config.experts > 1 else lambda i, row: one(feed, i, row))

        if config.global_token:
            tokens = torch.cat([(encoder.of_all.weight @ tokens.flatten() + encoder.of_all.bias)[None], tokens])
        kept = tokens
        for number, layer in enumerate(encoder.layers, 1):
            first = (lambda y, layer=layer: mixed(fed(mixed(y), layer.feeds[0]))) if config.revert else mixed
            for sublayer, norm in ((first, layer.norm1), (lambda y, layer=layer: fed(y, layer.feeds[-1]), layer.norm2)):
                if config.norm == "pre":
                    tokens = tokens + sublayer(rows_of(tokens, lambda i, row, n=norm: layer_norm(row, n)))
                else:
                    tokens = rows_of(tokens + sublayer(tokens), lambda i, row, n=norm: layer_norm(row, n))
            every = config.residual_every
            if every and number % every == 0 and number < config.layers:
                tokens = kept = tokens + kept
        vector = tokens.mean(0)
        out.append(layer_norm(vector, encoder.final_norm) if config.norm == "pre" else vector)
    return torch.stack(out)


MIXER = RankMixerConfig(dim=14, layers=2, ffn_dim=5, tokens="groups")
MIXER_VARIANTS = {
    "post": MIXER,
    "pre": dataclasses.replace(MIXER, norm="pre"),
    "no mixing, shared": dataclasses.replace(MIXER, mixing="none", own_ffn=False),
    "experts": dataclasses.replace(MIXER, experts=3),
    "revert": dataclasses.replace(MIXER, layers=5, revert=True, norm="pre", residual_every=2),
    "global token": dataclasses.replace(MIXER, dim=16, global_token=True),
    "revert, post, experts": dataclasses.replace(MIXER, layers=1, revert=True, experts=2),
}


@pytest.mark.parametrize("config", MIXER_VARIANTS.values(), ids=MIXER_VARIANTS)
def test_mixers_equal_their_equations(config: RankMixerConfig) -> None:
    equal_with_gradients(fitted(config), reference_mixer)


@pytest.mark.parametrize(("every", "layers"), [(2, 5), (0, 3)])
def test_shallower_layers_have_vectors_of_their_own_in_training(every: int, layers: int) -> None:
    config = dataclasses.replace(
        MIXER, dim=16, layers=layers, revert=True, norm="pre", residual_every=every, global_token=True, shallow_loss=0.5
    )
    encoder = fitted(config)
    assert isinstance(encoder, RankMixer)
    x = torch.randn(3, encoder.config.token_count - 1, 16, dtype=torch.float64)
    boundaries = range(every or 1, layers, every or 1)
    assert encoder.config.shallow_outputs == len(boundaries) == 2
    whole, *shallow = encoder.train().mix(x).split(16, 1)
    torch.testing.assert_close(encoder.eval().mix(x), whole)
    for count, vector in zip(boundaries, shallow, strict=True):
        upto = SimpleNamespace(
            config=encoder.config, layers=encoder.layers[:count], final_norm=encoder.final_norm, of_all=encoder.of_all
        )
        torch.testing.assert_close(vector, reference_mixer(upto, x))
    with pytest.raises(ConfigError, match="no layer lies before the last one"):
        dataclasses.replace(config, layers=1)


def test_mixing_twice_changes_nothing() -> None:
    x = torch.randn(3, 4, 8)
    assert torch.equal(mix_tokens(mix_tokens(x)), x) and not torch.equal(mix_tokens(x), x)


# ---------------------------------------------------------------------- the sparse mixture


def mixture(active: float = 0.5) -> SparseMixture:
    config = dataclasses.replace(MIXER, experts=4, active=active).fit(SHAPE)
    torch.manual_seed(0)
    return SparseMixture(config, "gelu", 1.0).double()


def test_inference_computes_open_experts_only() -> None:
    made = mixture().eval()
    x = torch.randn(6, 7, 14, dtype=torch.float64)
    made.sparse_router.bias.data[:, 1] = -100.0
    dense = made(x)
    with torch.no_grad():
        torch.testing.assert_close(made(x), dense)
        for parameter in (made.feed.down.weight, made.feed.down.bias):
            gates = torch.relu(made.sparse_router(x))
            closed = (gates == 0).all(0).flatten()
            assert closed.any()
            parameter[closed] = torch.nan  # an expert that nothing opens is never multiplied
        torch.testing.assert_close(made(x), dense)


def test_training_uses_both_routers_and_penalises_the_second() -> None:
    made = mixture().train()
    x = torch.randn(6, 7, 14, dtype=torch.float64)
    made.penalty.fill_(0.5)
    dense, sparse = (torch.relu(router(x)) for router in (made.dense_router, made.sparse_router))
    every = made.feed(x.repeat_interleave(4, 1)).unflatten(1, (-1, 4))
    gates = torch.stack([(dense, sparse)[c % 2][c] for c in range(6)])
    wanted = gates.unsqueeze(-1).mul(every).sum(2)
    parameters = [*made.dense_router.parameters(), *made.sparse_router.parameters()]
    loss = wanted.square().sum() + 0.5 * sparse.sum(2).mean()
    got = made(x)
    torch.testing.assert_close(got, wanted)
    for a, b in zip(
        torch.autograd.grad(got.square().sum(), parameters), torch.autograd.grad(loss, parameters), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_the_penalty_adapts_to_the_share_of_experts_that_are_used() -> None:
    made = mixture(active=0.25)
    x = torch.randn(64, 7, 14, dtype=torch.float64)
    for bias, change in ((100.0, PENALTY_STEP), (-100.0, 1 / PENALTY_STEP)):
        made.penalty.fill_(PENALTY_START)
        made.sparse_router.bias.data.fill_(bias)
        made.eval()(x)
        assert float(made.penalty) == pytest.approx(PENALTY_START)
        for _ in range(3):
            made.train()(x)
        assert float(made.penalty) == pytest.approx(PENALTY_START * change**3)
    made.penalty.fill_(1.0)
    for bias in (100.0, -100.0):  # an expert that is used is pressed down, one that isn't stays
        made.sparse_router.bias.data.fill_(bias)
        (gradient,) = torch.autograd.grad(made(x).sum() * 0, made.sparse_router.bias)
        assert (gradient > 0).all() if bias > 0 else not gradient.any()


# ---------------------------------------------------------------------- sizes


def test_sizes_are_the_papers() -> None:
    for name, layers, d, t, total in (("rankmixer-100m", 2, 768, 16, 107e6), ("rankmixer-1b", 2, 1536, 32, 1.1e9)):
        config = MIXERS[name].fit(TokenShape(user=MIXERS[name].user_tokens, candidate=MIXERS[name].candidate_tokens))
        assert (config.layers, config.dim, config.token_count) == (layers, d, t)
        with torch.device("meta"):
            encoder = build_encoder(config)
        assert sum(p.numel() for p in encoder.layers.parameters()) == pytest.approx(total, rel=0.02)


@pytest.mark.parametrize(
    "config",
    [c.fit(SHAPE) for c in (*HETEROS.values(), *MIXER_VARIANTS.values())],
    ids=[*HETEROS, *MIXER_VARIANTS],
)
def test_flops_are_those_of_the_products(config) -> None:
    """Per candidate: 2 x the weights of its layers (a shared weight once a token), and attention's two products."""
    encoder = build_encoder(config)
    t, weights, attention = config.token_count, 0, 0
    if getattr(encoder, "of_all", None) is not None:
        weights += encoder.of_all.weight.numel()
    for layer in encoder.layers:
        for name, p in layer.named_parameters():
            if name.endswith("weight") and "norm" not in name:
                weights += p.numel() * (t if p.dim() == 3 and len(p) == 1 and t > 1 else 1)
        attention += 4 * t * t * config.dim if isinstance(config, HeteroConfig) else 0
    assert config.layer_flops() == 2 * weights + attention
    two = config.flops(Counts(tokens=20, pairs=0, candidates=2, seen=2 * (SHAPE.user + 5)))
    assert config.layer_flops() * 2 < two < config.layer_flops() * 2 + 2 * 20 * 2 * config.dim * 32 * 2


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"divisible by the 7 tokens .* take 21"):
        dataclasses.replace(MIXER, dim=16).fit(SHAPE)
    with pytest.raises(ConfigError, match="at least one layer"):
        HeteroConfig(dim=8)
    with pytest.raises(ConfigError, match="must divide dim, 8"):
        HeteroConfig(dim=8, hetero_layers=1, heads=3)
    with pytest.raises(ConfigError, match="at most 1"):
        dataclasses.replace(MIXER, active=2.0)
    assert all(name in HETERO for name in ("heteroatt", "hiformer", "hhft"))

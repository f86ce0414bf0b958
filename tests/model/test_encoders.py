"""Encoders against references written from the papers' equations: loops over samples, queries and keys, in float64.

The references share no code with the encoders or the kernels; they read the encoders' parameters by name.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from genrank.model.encoders import (
    PRESETS,
    Candidates,
    Counts,
    Encoder,
    EncoderConfig,
    Hstu,
    HstuConfig,
    Mtgr,
    MtgrConfig,
    UltraHstuConfig,
    build_encoder,
    split,
)
from genrank.model.ranker import visible_pairs
from genrank.model.registry import choose_model
from genrank.model.validation import ConfigError
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.jagged_tokens import Tokens
from genrank.tokenization.plan import make_plan
from genrank.tokenization.wants import TokenShape


def draw_tokens(seed: int, dim: int, *, samples: int = 3, most: int = 5) -> Tokens:
    """Samples U | S | R | C under MTGR's dynamic mask, some groups empty."""
    g = torch.Generator().manual_seed(seed)
    offsets, groups, begin, end, stamps, histories = [0], [], [], [], [], []
    for _ in range(samples):
        u, s, r, c = (int(torch.randint(low, most, (), generator=g)) for low in (1, 0, 0, 1))
        static = u + s
        see = torch.randint(0, r + 1, (c,), generator=g)
        groups += [0] * u + [1] * s + [2] * r + [3] * c
        begin += [0] * (static + r + c)
        end += [static] * static + [static + i for i in range(r)] + (static + see).tolist()
        stamps += sorted(torch.randint(0, 10**7, (static + r,), generator=g).tolist())
        stamps += torch.randint(10**7, 2 * 10**7, (c,), generator=g).tolist()
        offsets.append(len(groups))
        histories.append(s)
    group_ids = torch.tensor(groups, dtype=torch.int32)
    return Tokens(
        x=torch.randn(len(groups), dim, generator=g, dtype=torch.float64),
        offsets=torch.tensor(offsets, dtype=torch.int32),
        group_ids=group_ids,
        begin=torch.tensor(begin, dtype=torch.int32),
        end=torch.tensor(end, dtype=torch.int32),
        timestamps=torch.tensor(stamps) + 1_700_000_000_000,
        candidate_rows=(group_ids == 3).nonzero().squeeze(1),
        max_length=max(b - a for a, b in itertools.pairwise(offsets)),
        lengths=torch.tensor(offsets).diff(),
        history_lengths=torch.tensor(histories),
    )


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def norm(x: Tensor, module, kind: str, group: Tensor) -> Tensor:
    """Rows of x, by the textbook."""
    if kind == "none":
        return x
    if kind == "rms":
        return x / torch.sqrt((x * x).mean(1, keepdim=True) + module.eps) * module.weight
    if kind == "head":
        heads = [
            (part - part.mean(1, keepdim=True)) / torch.sqrt(part.var(1, keepdim=True, correction=0) + module.eps)
            for part in x.chunk(len(module.weight), 1)
        ]
        return torch.cat([h * w + b for h, w, b in zip(heads, module.weight, module.bias, strict=True)], 1)
    centred = x - x.mean(1, keepdim=True)
    normed = centred / torch.sqrt((centred * centred).mean(1, keepdim=True) + module.eps)
    if kind == "gln":
        return torch.stack([row * module.weight[g] + module.bias[g] for row, g in zip(normed, group, strict=True)])
    return normed * module.weight + module.bias


def relative_bias(block, config, stamps: Tensor, place: Tensor) -> Tensor:
    """[L, L, heads]: position table by clipped distance, time table by floor(ln(seconds) / 0.301)."""
    bias = torch.zeros(len(place), len(place), config.heads, dtype=torch.float64)
    for t in range(len(place)):
        for s in range(len(place)):
            if config.position_reach:
                distance = max(-config.position_reach, min(config.position_reach, int(place[t] - place[s])))
                bias[t, s] = bias[t, s] + block.position_table[distance + config.position_reach]
            if config.time_buckets:
                gap = abs(int(stamps[t]) // 1000 - int(stamps[s]) // 1000)
                bucket = int(torch.log(torch.tensor(float(max(gap, 1)))) / 0.301)
                bias[t, s] = bias[t, s] + block.time_table[min(bucket, config.time_buckets - 1)]
    return bias


def rivals(tokens: Tokens, start: int, stop: int) -> Tensor:
    """[L, L] bool: whom candidates see of their request, pair by pair."""
    seen = torch.zeros(stop - start, stop - start, dtype=torch.bool)
    inside = [(c, row) for c, row in enumerate(tokens.candidate_rows.tolist()) if start <= row < stop]
    for c, row in inside:
        for other, at in inside:
            same = tokens.requests[c] == tokens.requests[other]
            seen[row - start, at - start] = same and tokens.timestamps[at] <= tokens.timestamps[row]
    return seen


def reference(encoder, tokens: Tokens) -> Tensor:
    """Equations 1 to 3 of HSTU and those of MTGR's section 3.3: a sample and a head at a time, masks dense."""
    c = encoder.config
    outputs = []
    for start, stop in itertools.pairwise(tokens.offsets.tolist()):
        x, group = tokens.x[start:stop], tokens.group_ids[start:stop]
        index = torch.arange(stop - start)
        begin, end = tokens.begin[start:stop], tokens.end[start:stop]
        visible = (index >= begin[:, None]) & (index < end[:, None]) | (index == index[:, None])
        if c.listwise:
            visible = visible | rivals(tokens, start, stop)
        place = torch.where(group == 3, end, index)
        for block in encoder.blocks:
            projected = norm(x, block.input_norm, c.input_norm, group) @ block.uvqk.weight.T
            if c.projection_bias:
                projected = projected + block.uvqk.bias
            wide, narrow = c.heads * c.v_dim, c.heads * c.qk_dim
            u, v = silu(projected[:, :wide]), projected[:, wide : 2 * wide]
            q, k = projected[:, 2 * wide : 2 * wide + narrow], projected[:, 2 * wide + narrow :]
            if c.activation == "uvqk":
                v, q, k = silu(v), silu(q), silu(k)
            bias = relative_bias(block, c, tokens.timestamps[start:stop], place)
            heads = []
            for h in range(c.heads):
                qh, kh = q[:, h * c.qk_dim :][:, : c.qk_dim], k[:, h * c.qk_dim :][:, : c.qk_dim]
                scores = qh @ kh.T * (c.alpha if c.alpha is not None else 1 / math.sqrt(c.qk_dim)) + bias[:, :, h]
                weights = silu(scores) * visible
                n = {"length": stop - start, "visible": visible.sum(1, keepdim=True)}.get(c.divisor, c.divisor)
                heads.append(weights @ v[:, h * c.v_dim :][:, : c.v_dim] / n)
            o = torch.cat(heads, 1)
            if c.gate == "gate_norm":
                shown, gated = o, norm(o * u, block.output_norm, c.output_norm, group)
            else:
                shown = norm(o, block.output_norm, c.output_norm, group)
                gated = shown * u
            middle = o if c.concat_ua == "raw" else shown
            y = torch.cat([u, middle, gated], 1) if c.concat_ua else gated
            x = x + c.residual_scale * (y @ block.out.weight.T + block.out.bias)
        outputs.append(norm(x, encoder.final_norm, c.final_norm, group))
    return torch.cat(outputs)


VARIANTS = {
    "norm of each head": HstuConfig(dim=6, layers=2, heads=2, qk_dim=3, v_dim=4, output_norm="head", position_reach=0),
    "mtgr": MtgrConfig(dim=6, layers=2, heads=2, qk_dim=3, v_dim=4),
    "hstu": HstuConfig(dim=6, layers=2, heads=2, qk_dim=3, v_dim=4, divisor=50, position_reach=3, time_buckets=40),
    "hstu, public code": HstuConfig(
        dim=4, layers=1, heads=1, qk_dim=3, v_dim=2, divisor=7, activation="u", concat_ua=True, alpha=1.0,
        projection_bias=False, final_norm="none", position_reach=0, time_buckets=30,
    ),
    "hstu, DLRM-v3 code": HstuConfig(
        dim=4, layers=2, heads=2, qk_dim=3, v_dim=2, divisor=9, activation="u", concat_ua="raw", final_norm="none",
        position_reach=0, time_buckets=0,
    ),
    "mtgr, other choices": MtgrConfig(
        dim=4, layers=2, heads=2, qk_dim=2, v_dim=3, divisor="visible", input_norm="rms", output_norm="rms",
        position_reach=2, residual_scale=0.5, final_norm="gln",
    ),
    "gated after, no norms": MtgrConfig(
        dim=4, layers=1, heads=1, qk_dim=2, v_dim=3, input_norm="layer", output_norm="none", gate="norm_gate", final_norm="rms"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_encoder_equals_its_equations_forward_and_backward(name: str, seed: int) -> None:
    config = VARIANTS[name]
    torch.manual_seed(seed)
    encoder = (Hstu if isinstance(config, HstuConfig) else Mtgr)(config).double()
    with torch.no_grad():  # away from the symmetric start: ones, zeros
        for p in encoder.parameters():
            p.add_(0.3 * torch.randn_like(p))
    tokens = draw_tokens(seed, config.dim)
    tokens.x.requires_grad_()
    leaves = [tokens.x, *encoder.parameters()]
    got, expected = encoder.encode(tokens), reference(encoder, tokens)
    # The kernel keeps 1/n in float32, whatever the dtype.
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)
    same_gradients(got, expected, leaves, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_candidates_that_ask_alone_in_the_last_layer_are_as_among_all_rows(name: str) -> None:
    """Values and every gradient, in float64: what the others' last queries and gates give, nothing reads."""
    torch.manual_seed(0)
    encoder = build_encoder(VARIANTS[name]).double()
    tokens = draw_tokens(4, encoder.config.dim)
    tokens.x.requires_grad_()
    leaves = [tokens.x, *encoder.parameters()]
    alone, among = encoder(tokens), encoder.encode(tokens)[tokens.candidate_rows]
    torch.testing.assert_close(alone, among, rtol=1e-9, atol=1e-12)
    same_gradients(alone, among, leaves, rtol=1e-7, atol=1e-10)


def same_gradients(got: Tensor, expected: Tensor, leaves: list[Tensor], *, rtol: float, atol: float) -> None:
    """In a random direction."""
    direction = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad((got * direction).sum(), leaves),
        torch.autograd.grad((expected * direction).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["mtgr", "hstu", "mtgr, other choices", "ultra"])
def test_a_stream_in_bfloat16_is_close_to_one_in_float32(name: str) -> None:
    """Under autocast; without, there is no difference."""
    ultra = UltraHstuConfig(dim=6, layers=2, heads=2, qk_dim=3, v_dim=4, local=3, prefix=1)
    config = ultra if name == "ultra" else VARIANTS[name]
    tokens = draw_tokens(4, config.dim)
    tokens.x = tokens.x.float()
    found = {}
    for on in (True, False):
        for stream in ("float32", "bfloat16"):
            torch.manual_seed(0)
            encoder = build_encoder(dataclasses.replace(config, stream=stream))
            with torch.autocast("cpu", torch.bfloat16, enabled=on):
                found[on, stream] = encoder(tokens)
            found[on, stream].float().square().sum().backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())
    torch.testing.assert_close(*(found[True, s].float() for s in ("float32", "bfloat16")), rtol=0.05, atol=0.05)
    assert not torch.equal(found[True, "float32"], found[True, "bfloat16"])
    assert torch.equal(found[False, "float32"], found[False, "bfloat16"])


@pytest.mark.parametrize("recompute", [False, True])
def test_recomputed_activations_give_the_same_gradients(recompute: bool) -> None:
    torch.manual_seed(0)
    encoder = Mtgr(dataclasses.replace(VARIANTS["mtgr"], dropout=0.3, attention_dropout=0.2))
    tokens = draw_tokens(1, 6)
    tokens.x = tokens.x.float()
    grads = []
    for flag in (recompute, False):
        encoder.recompute = flag
        encoder.zero_grad()
        torch.manual_seed(5)
        encoder(tokens).square().sum().backward()
        grads.append([p.grad.clone() for p in encoder.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("divisor", ["visible", 100])
def test_a_score_does_not_depend_on_the_candidates_beside_it(divisor) -> None:
    torch.manual_seed(0)
    encoder = Mtgr(dataclasses.replace(VARIANTS["mtgr"], divisor=divisor, position_reach=4, time_buckets=20)).double()
    tokens = draw_tokens(3, 6, samples=1, most=6)
    alone = encoder(tokens)[0]
    keep = torch.ones(len(tokens.x), dtype=torch.bool)
    keep[tokens.candidate_rows[1:]] = False
    fewer = dataclasses.replace(
        tokens,
        **{f: getattr(tokens, f)[keep] for f in ("x", "group_ids", "begin", "end", "timestamps")},
        offsets=torch.tensor([0, int(keep.sum())], dtype=torch.int32),
        candidate_rows=tokens.candidate_rows[:1],
    )
    torch.testing.assert_close(encoder(fewer)[-1], alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["mtgr", "hstu"])
def test_compiled_it_is_one_graph(name: str) -> None:
    """No graph break: nothing in an encoder is decided by values."""
    encoder = Mtgr(VARIANTS["mtgr"]) if name == "mtgr" else Hstu(VARIANTS["hstu"])
    tokens = draw_tokens(1, encoder.config.dim)
    torch._dynamo.reset()
    whole = torch.compile(encoder.double(), backend="eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(whole(tokens), encoder(tokens))


def test_flops_count_what_the_equations_multiply() -> None:
    c = VARIANTS["hstu, public code"]
    tokens, pairs = 10, 30
    projection = 2 * tokens * c.dim * (2 * c.v_dim + 2 * c.qk_dim)
    assert (
        c.flops(Counts(tokens, pairs))
        == projection + 2 * pairs * (c.qk_dim + c.v_dim) + 2 * tokens * 3 * c.v_dim * c.dim
    )


@pytest.mark.parametrize("name", ["mtgr", "hstu, public code"])
def test_flops_are_those_of_the_products_that_forward_takes(name: str) -> None:
    """PyTorch counts the products with weights: of the last layer, U, Q and the output are the candidates' alone."""
    c, tokens = VARIANTS[name], draw_tokens(2, VARIANTS[name].dim)
    with FlopCounterMode(display=False) as counter:
        build_encoder(c).double()(tokens)
    of_pair, count = 2 * c.heads * (c.qk_dim + c.v_dim), len(tokens.candidate_rows)
    pairs, seen = int(visible_pairs(tokens)), int((tokens.end - tokens.begin)[tokens.candidate_rows].sum())
    counts = Counts(len(tokens.x), pairs, count, seen)
    assert c.flops(counts) == counter.get_total_flops() + of_pair * ((c.layers - 1) * pairs + seen + count)
    every = dataclasses.replace(c, visibility="causal", history_loss=0.1)
    assert every.flops(counts) == every.flops(Counts(len(tokens.x), pairs)) > c.flops(counts)


def test_with_an_equal_start_a_token_is_the_key_of_its_own_query() -> None:
    for block in Mtgr(PRESETS["mtgr-tiny"]).blocks:
        _, _, q, k = block.uvqk.weight.split(block.sizes)
        assert torch.equal(q, k)
    apart = dataclasses.replace(PRESETS["mtgr-tiny"], equal_start=False)
    _, _, q, k = Mtgr(apart).blocks[0].uvqk.weight.split(block.sizes)
    assert not torch.equal(q, k)


def test_presets_have_the_papers_sizes() -> None:
    sizes = {
        n: (PRESETS[f"mtgr-{n}"].layers, PRESETS[f"mtgr-{n}"].dim, PRESETS[f"mtgr-{n}"].heads)
        for n in ("small", "medium", "large")
    }
    assert sizes == {"small": (3, 512, 2), "medium": (5, 768, 3), "large": (15, 768, 3)}


# ---------------------------------------------------------------------- in two parts

DIVISORS = ("length", "visible", 9)


@pytest.mark.parametrize("divisor", DIVISORS)
@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_forward_equals_user_state_and_score(name: str, divisor, seed: int) -> None:
    """Keys and values once, candidates in two portions and in any order: the rows of the whole batch."""
    config = dataclasses.replace(VARIANTS[name], divisor=divisor, dropout=0.3, attention_dropout=0.2)
    torch.manual_seed(seed)
    encoder = build_encoder(config).double().eval()
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.3 * torch.randn_like(p))
    tokens = draw_tokens(seed, config.dim)
    expected = encoder(tokens)
    sequence, candidates = split(tokens)
    assert not (sequence.group_ids == 3).any() and torch.equal(sequence.lengths, sequence.offsets.diff())
    state = encoder.user_state(sequence, torch.bincount(candidates.owner, minlength=3))
    shuffled = torch.randperm(len(candidates.owner))
    got = torch.empty_like(expected)
    for part in shuffled.tensor_split(2):
        got[part] = encoder.score(state, chosen(candidates, part))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


def chosen(candidates: Candidates, rows: Tensor) -> Candidates:
    return candidates.take(rows)


def test_the_divisor_length_needs_the_number_of_candidates() -> None:
    encoder = Mtgr(VARIANTS["mtgr"]).double().eval()
    sequence, _ = split(draw_tokens(1, 6))
    with pytest.raises(ValueError, match=r"train with --set divisor=visible.* or give `beside`"):
        encoder.user_state(sequence)
    with pytest.raises(ValueError, match=r"call eval\(\) first"):
        encoder.train().user_state(sequence)


def test_an_encoder_that_defines_the_two_parts_alone_trains_through_them() -> None:
    """`Encoder.forward` is `score` of `user_state`, with a gradient."""

    class Mean(Encoder[Tensor]):
        def __init__(self, config: EncoderConfig) -> None:
            super().__init__(config)
            self.map = torch.nn.Linear(config.dim, config.dim)

        def user_state(self, sequence: Tokens, beside: Tensor | None = None) -> Tensor:
            owner = torch.repeat_interleave(sequence.offsets.diff())
            sums = sequence.x.new_zeros((len(sequence.offsets) - 1, sequence.x.shape[1])).index_add(
                0, owner, sequence.x
            )
            return self.map(sums)

        def score(self, state: Tensor, candidates: Candidates) -> Tensor:
            return state[candidates.owner] * candidates.x.mean(1)

    tokens = draw_tokens(5, 4)
    tokens.x.requires_grad_()
    encoder = Mean(EncoderConfig(dim=4)).double()
    got = encoder(tokens)
    assert got.shape == (len(tokens.candidate_rows), 4)
    gradient = torch.autograd.grad(got.square().sum(), tokens.x)[0]
    assert gradient.abs().sum(1).gt(0).all()


# ---------------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (MtgrConfig, {"layers": -1}, r"MtgrConfig\(layers=-1\): must be at least 1"),
        (MtgrConfig, {"dropout": 5.0}, r"MtgrConfig\(dropout=5.0\): give a number from 0 to below 1"),
        (MtgrConfig, {"divisor": "rows"}, r"divisor='rows'\): give one of 'length', 'visible', or give a whole number"),
        (MtgrConfig, {"divisor": 0}, r"divisor=0\): must be at least 1"),
        (MtgrConfig, {"alpha": 0.0}, r"alpha=0.0\): must be more than 0"),
        (MtgrConfig, {"gate": "late"}, r"gate='late'\): give one of"),
        (MtgrConfig, {"qk_dim": 2.5}, r"qk_dim=2.5\): give a whole number"),
        (MtgrConfig, {"projection_bias": 1}, r"projection_bias=1\): give a bool"),
        (HstuConfig, {"window": -2}, r"window=-2\): must not be negative"),
        (HstuConfig, {"window": 3, "visibility": "dynamic"}, "the dynamic mask has no window"),
        (HstuConfig, {"stochastic_length": 3.0, "max_history": 9}, "stochastic_length=3.0"),
        (HstuConfig, {"stochastic_length": 1.5}, "max_history=0.*stochastic_length needs it"),
    ],
)
def test_a_configuration_refuses_nonsense(config, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**{"dim": 8, "layers": 1, "heads": 1} | changes)


def test_the_group_norm_can_go_by_sequence() -> None:
    """Two histories apart, and the realtime sequence: five groups instead of four; in two parts, too."""
    config = dataclasses.replace(VARIANTS["mtgr"], norm_groups="sequence", final_norm="gln", divisor="visible")
    config = config.fit(TokenShape(sequences=3))
    torch.manual_seed(0)
    encoder = build_encoder(config).double().eval()
    tokens = draw_tokens(5, 6)
    ids = torch.tensor([0, 1, 3, 4], dtype=torch.int32)[tokens.group_ids.long()]
    histories = (ids == 1).nonzero().flatten()
    ids[histories[::2]] = 2
    tokens.sequence_ids = ids
    for p in encoder.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    assert encoder.blocks[0].input_norm.weight.shape == (5, 6)
    # With no position bias nothing else of the reference reads the groups.
    wanted = reference(encoder, dataclasses.replace(tokens, group_ids=ids))[tokens.candidate_rows]
    torch.testing.assert_close(encoder(tokens), wanted)
    sequence, candidates = split(tokens)
    torch.testing.assert_close(encoder.score(encoder.user_state(sequence), candidates), wanted)
    with pytest.raises(ConfigError, match="stacks of their own"):
        UltraHstuConfig(dim=8, layers=1, heads=1, norm_groups="sequence")


def test_weight_matrices_begin_at_their_scale_and_vectors_as_they_are(schema) -> None:
    from random_samples import BOUNDARIES

    def begun(scale: str) -> dict[str, Tensor]:
        torch.manual_seed(0)
        embeddings = Embeddings(make_plan(schema), backend="torch", boundaries=BOUNDARIES)
        return dict(
            choose_model("onetrans-tiny", {"initial_scale": scale}).build(embeddings).encoder.named_parameters()
        )

    one, half = begun("1"), begun("0.5")
    for name, parameter in one.items():
        assert torch.equal(half[name], parameter * (0.5 if parameter.ndim > 1 else 1)), name
    assert any(parameter.ndim > 1 for parameter in one.values())

"""LONGER, OneTrans, GRAB and ULTRA-HSTU against references written from the equations: a sample and a candidate at a time, masks dense,
float64. The references share no code with the encoders or the kernels; they read the encoders' parameters by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genrank.model.encoders import (
    EncoderConfig,
    Grab,
    GrabConfig,
    Longer,
    LongerConfig,
    OneTrans,
    OneTransConfig,
    UltraHstu,
    UltraHstuConfig,
)

from .sequence_cases import CANDIDATE_TOKENS, USER_TOKENS, Sample, batch_of, draw_sample, make


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def layer_norm(x: Tensor, module: torch.nn.Module, eps: float = 1e-6) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps) * module.weight + module.bias


def rms_norm(x: Tensor, module: torch.nn.Module, eps: float = 1e-6) -> Tensor:
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps) * module.weight


def linear(x: Tensor, module: torch.nn.Module) -> Tensor:
    return x @ module.weight.T + module.bias


def attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """[Lq, D], [Lk, D], [Lk, D], bool [Lq, Lk] (and [heads, Lq, Lk]) -> [Lq, D], softmax."""
    width = q.shape[1] // heads
    outs = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        scores = q[:, part] @ k[:, part].T / math.sqrt(width)
        scores = scores if bias is None else scores + bias[h]
        weights = torch.exp(scores - scores.max(1, keepdim=True).values) * visible
        outs.append(weights / weights.sum(1, keepdim=True) @ v[:, part])
    return torch.cat(outs, 1)


def relative(position, time, places: Tensor, seconds: Tensor, q: Tensor) -> Tensor:
    """[heads, q, L]: position table by clipped distance, time table by floor(ln(seconds) / .301)."""
    distance = places[q, None] - places[None]
    reach = (len(position) - 1) // 2
    gap = (seconds[q, None] - seconds[None]).abs().clamp(min=1).float()
    bucket = (gap.log() / 0.301).long().clamp(max=len(time) - 1)
    return (position[distance.clamp(-reach, reach) + reach] + time[bucket]).permute(2, 0, 1)


def transformer(layer, x: Tensor, asked: Tensor, visible: Tensor, heads: int, norm: Callable, bias=None) -> Tensor:
    """A pre-norm layer; the rows `asked` of x ask."""
    normed = norm(x, layer.attention_norm)
    k, v = linear(normed, layer.key_value).chunk(2, 1)
    y = x[asked] + linear(attention(linear(normed[asked], layer.query), k, v, visible, heads, bias), layer.out)
    return y + linear(gelu(linear(norm(y, layer.ffn_norm), layer.up)), layer.down)


# ---------------------------------------------------------------------- LONGER


def longer(encoder: Longer, s: Sample, c: int) -> Tensor:
    config = encoder.config
    k, width = config.merge, config.merge * config.dim
    group = torch.tensor(s.group)
    history = s.x[group == 1]
    groups = []
    stop = len(history)
    while stop > 0:
        members = history[max(0, stop - k) : stop]
        groups.insert(0, members)
        stop -= k
    realtime = [row[None] for row in s.x[group == 2]]
    events = []
    for members in [*groups, *realtime]:
        for layer in encoder.inner:
            q, kk, v = linear(layer_norm(members, layer.attention_norm, 1e-5), layer.qkv).chunk(3, 1)
            everyone = torch.ones(len(members), len(members), dtype=torch.bool)
            members = members + linear(attention(q, kk, v, everyone, config.inner_heads), layer.out)
            members = members + linear(gelu(linear(layer_norm(members, layer.ffn_norm, 1e-5), layer.up)), layer.down)
        events.append(torch.cat([members.new_zeros((k - len(members)) * config.dim), members.flatten()]))
    users, own = s.x[group == 0], s.candidates[c]
    x = torch.cat([
        linear(users, encoder.user), torch.stack(events) if events else x0(width), linear(own, encoder.candidate)
    ])  # fmt: skip
    u, g, r, t = len(users), len(groups), len(realtime), len(own)
    sees = [e - u - len(history) for e in s.end[u + len(history) :]]
    visible = torch.zeros(len(x), len(x), dtype=torch.bool)
    visible[:u, : u + g] = True
    for i in range(g):
        visible[u + i, : u + i + 1] = True
    for i in range(r):
        visible[u + g + i, : u + g + sees[i]] = True
        visible[u + g + i, u + g + i] = True
    visible[u + g + r :, : u + g + s.sees[c] - u - len(history)] = True
    visible[u + g + r :, u + g + r :] = True
    kept = torch.arange(len(x))
    for at, layer in enumerate(encoder.layers):
        if at == 0 and config.recent:
            kept = torch.cat(
                [torch.arange(u), u + torch.tensor(asking(g, config), dtype=torch.int64), torch.arange(u + g, len(x))]
            )
        else:
            kept = torch.arange(len(x))
        x = transformer(layer, x, kept, visible[kept], config.heads, layer_norm)
        visible = visible[kept][:, kept]
    return linear(layer_norm(x[-t:], encoder.norm, 1e-5), encoder.out).mean(0)


def asking(groups: int, config: LongerConfig) -> list[int]:
    """Places of the groups that ask, oldest first."""
    n = config.recent
    if groups <= n:
        return list(range(groups))
    if config.asking == "newest":
        return list(range(groups - n, groups))
    return sorted(groups - 1 - math.ceil(i * groups / n) for i in range(n))


def x0(width: int) -> Tensor:
    return torch.zeros(0, width, dtype=torch.float64)


# ---------------------------------------------------------------------- OneTrans


def onetrans(encoder: OneTrans, s: Sample, c: int) -> Tensor:
    config = encoder.config
    x = torch.cat([s.x, s.candidates[c]])
    u, h, t = USER_TOKENS, s.group.count(1), CANDIDATE_TOKENS
    r = len(s.group) - u - h
    kind = ["u"] * u + ["s"] * h + ["r"] * r + ["c"] * t
    slot = [*range(u), *[-1] * (h + r), *range(u, u + t)]
    visible = torch.zeros(len(x), len(x), dtype=torch.bool)
    for i in range(len(x)):
        if kind[i] == "u":
            visible[i, : i + 1] = True
            visible[i, u : u + h] = True
        elif kind[i] == "s":
            visible[i, u : i + 1] = True
        elif kind[i] == "r":
            visible[i, u : s.end[i]] = True
            visible[i, i] = True
        else:
            visible[i, : s.sees[c]] = True
            visible[i, u + h + r : i + 1] = True

    def mixed(module, rows: Tensor, slots: list[int]) -> Tensor:
        made = []
        for row, own in zip(rows, slots, strict=True):
            if own < 0 or module.weight is None:
                made.append(module.shared.weight @ row + module.shared.bias)
            else:
                made.append(module.weight[own] @ row + module.bias[own])
        return torch.stack(made)

    for at, layer in enumerate(encoder.layers):
        newest = config.pyramid[at] if config.pyramid else h
        left = kind.count("s")
        kept = [i for i in range(len(x)) if kind[i] != "s" or i >= u + left - newest]
        q, k, v = mixed(layer.qkv, rms_norm(x, layer.attention_norm), slot).chunk(3, 1)
        attended = attention(q[kept], k, v, visible[kept], config.heads)
        y = x[kept] + linear(attended, layer.out)
        slot, kind = [slot[i] for i in kept], [kind[i] for i in kept]
        x = y + mixed(layer.down, gelu(mixed(layer.up, rms_norm(y, layer.ffn_norm), slot)), slot)
        visible = visible[kept][:, kept]
    return linear(rms_norm(x[-t:], encoder.norm).flatten(), encoder.out)


# ---------------------------------------------------------------------- GRAB


def grab(encoder: Grab, s: Sample, c: int) -> Tensor:
    config = encoder.config
    views = []
    for channel in range(1, len(encoder.mixing) + 1):
        rows = [i for i in range(len(s.group)) if s.sequence[i] in (0, channel)]
        x = torch.cat([s.x[rows], s.candidates[c]])
        n = len(rows)
        visible = torch.eye(n + 1, dtype=torch.bool)
        for a, i in enumerate(rows):
            for b, j in enumerate(rows):
                visible[a, b] |= j < s.end[i]
        for b, j in enumerate(rows):
            visible[n, b] = j < s.sees[c]
        places = torch.tensor([*range(n), int(visible[n].sum()) - 1])
        seconds = torch.tensor([*[s.stamps[i] // 1000 for i in rows], s.exposed[c] // 1000])
        everyone = torch.arange(n + 1)
        for at, layer in enumerate(encoder.layers):
            bias = relative(encoder.position_tables[at], encoder.time_tables[at], places, seconds, everyone)
            x = transformer(layer, x, everyone, visible, config.heads, rms_norm, bias)
        views.append(rms_norm(x[n], encoder.norm))
    stacked = torch.stack(views)
    scores = (stacked * encoder.mixing).sum(1)
    return (torch.exp(scores) / torch.exp(scores).sum()) @ stacked


# ---------------------------------------------------------------------- ULTRA-HSTU


def ultra_hstu(encoder: UltraHstu, s: Sample, c: int) -> Tensor:
    config, vectors = encoder.config, []
    for stack, (blocks, norm) in enumerate(zip(encoder.stacks, encoder.norms, strict=True)):
        rows = [i for i in range(len(s.group)) if not config.channels or s.sequence[i] in (0, stack + 1)]
        group = [s.group[i] for i in rows] + [3]
        ends = [sum(j < s.end[i] for j in rows) for i in rows] + [sum(j < s.sees[c] for j in rows)]
        x = torch.cat([s.x[rows], s.candidates[c]])
        seconds = torch.tensor([*[s.stamps[i] // 1000 for i in rows], s.exposed[c] // 1000])
        for at, block in enumerate(blocks):
            if at and at == config.truncate_after:
                old = max(0, group.count(1) - config.tail)
                u = group.count(0)
                kept = [i for i in range(len(group)) if not u <= i < u + old]
                ends = [ends[i] - old if group[i] > 1 or i >= u + old else ends[i] for i in kept]
                group, x, seconds = [group[i] for i in kept], x[kept], seconds[kept]
            n = len(group)
            places = torch.tensor([*range(n - 1), ends[-1]])
            index = torch.arange(n)
            visible = torch.eye(n, dtype=torch.bool)
            for i in range(n):
                visible[i] |= (index < min(config.prefix, ends[i])) | (
                    (index >= ends[i] - config.local) & (index < ends[i])
                )
            visible[:-1, -1] = False
            u_, v, q, k = silu(linear(layer_norm(x, block.input_norm), block.uvqk)).split(block.sizes, 1)
            bias = relative(block.position_table, block.time_table, places, seconds, index)
            heads = []
            for h in range(config.heads):
                qh, kh = (y[:, h * config.qk_dim :][:, : config.qk_dim] for y in (q, k))
                weights = silu(qh @ kh.T / math.sqrt(config.qk_dim) + bias[h]) * visible
                n_q = visible.sum(1, keepdim=True) if config.divisor == "visible" else config.divisor
                heads.append(weights @ v[:, h * config.v_dim :][:, : config.v_dim] / n_q)
            x = x + linear(layer_norm(torch.cat(heads, 1), block.output_norm) * u_, block.out)
        vectors.append(layer_norm(x[-1:], norm)[0])
    return torch.cat(vectors)


# ---------------------------------------------------------------------- compared

CASES: dict[str, tuple[EncoderConfig, Callable]] = {
    "longer": (LongerConfig(dim=4, layers=3, heads=2, merge=3, recent=3, ffn=2), longer),
    "longer, some ask, evenly": (LongerConfig(dim=4, layers=3, heads=2, merge=2, recent=2, asking="evenly", ffn=2), longer),
    "longer, inner, all ask": (LongerConfig(dim=4, layers=2, heads=2, merge=4, inner=2, inner_heads=2, recent=0), longer),
    "longer, unmerged": (LongerConfig(dim=4, layers=2, heads=1, merge=1, recent=5, ffn=1), longer),
    "onetrans": (
        OneTransConfig(
            dim=4, layers=3, heads=2, ffn=2, length=0, own_user=USER_TOKENS, own_candidate=CANDIDATE_TOKENS
        ),
        onetrans,
    ),
    "onetrans, pyramid": (
        OneTransConfig(
            dim=4, layers=3, heads=1, ffn=1, length=9, tail=4, own_user=USER_TOKENS, own_candidate=CANDIDATE_TOKENS
        ),
        onetrans,
    ),
    "onetrans, shared": (
        OneTransConfig(
            dim=4, layers=2, heads=2, ffn=1, mixed=False, length=3, tail=2, own_user=USER_TOKENS,
            own_candidate=CANDIDATE_TOKENS,
        ),
        onetrans,
    ),
    "grab": (GrabConfig(dim=4, layers=2, heads=2, ffn=2, position_reach=3, time_buckets=30, channels=3), grab),
    "ultra": (
        UltraHstuConfig(
            dim=4, layers=3, heads=2, qk_dim=3, v_dim=2, local=3, prefix=3, truncate_after=1, tail=5, position_reach=4,
            time_buckets=30, final_norm="layer",
        ),
        ultra_hstu,
    ),
    "ultra, channels": (
        UltraHstuConfig(
            dim=4, layers=2, heads=1, qk_dim=2, v_dim=3, local=2, prefix=1, channels=True, stacks=3, divisor=9,
            position_reach=4, time_buckets=30,
        ),
        ultra_hstu,
    ),
}  # fmt: skip


def tokens_of(config: EncoderConfig) -> int:
    """Tokens a candidate of an encoder's cases."""
    return CANDIDATE_TOKENS if isinstance(config, LongerConfig | OneTransConfig) else 1


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_an_encoder_equals_its_equations_forward_and_backward(name: str, seed: int) -> None:
    config, reference = CASES[name]
    encoder = make(config, seed)
    samples = [draw_sample(seed + i, config.dim, tokens_of(config)) for i in range(3)]
    leaves = [*(x.requires_grad_() for s in samples for x in (s.x, s.candidates)), *encoder.parameters()]
    got = encoder(batch_of(samples))
    want = torch.stack([reference(encoder, s, c) for s in samples for c in range(len(s.sees))])
    # 1/n is kept in float32, whatever the dtype.
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)
    direction = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad((got * direction).sum(), leaves, allow_unused=True, materialize_grads=True),
        torch.autograd.grad((want * direction).sum(), leaves, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)

"""Interval attention against its definition, on CPU: every mask, divisor and bias, forward and backward."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genrank.kernels.attention import (
    AttentionCall,
    Divisor,
    IntervalMask,
    RelativeBias,
    delta_attention,
    interval_attention,
    local_positions,
    reference_attention,
    row_scale,
)
from genrank.kernels.attention import cpu as attention_cpu
from genrank.kernels.attention.interval import asked_by, queries_of
from genrank.kernels.attention.plan import make_plan as gpu_plan

from .cases import MASKS, Batch, batches, make_batch

DIVISORS: list[Divisor] = ["length", "visible", 50]


def draw_bias(tokens: int, heads: int, dtype: torch.dtype, *, positions: bool = False) -> RelativeBias:
    return RelativeBias(
        torch.randn(21, heads, dtype=dtype, requires_grad=True),
        torch.randn(12, heads, dtype=dtype, requires_grad=True),
        torch.randint(0, 10**5, (tokens,)),
        torch.randint(0, 30, (tokens,), dtype=torch.int32) if positions else None,
    )


def draw_qkv(tokens: int, heads: int, dims: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(tokens, heads, d, dtype=dtype, requires_grad=True) for d in (dims[0], dims[0], dims[1])]


def define(
    batch: Batch, q: Tensor, k: Tensor, v: Tensor, divisor: Divisor = "length", bias: RelativeBias | None = None
) -> Tensor:
    """The definition of `interval_attention`."""
    scale = row_scale(divisor, batch.mask)
    alpha = 1.0 / math.sqrt(q.shape[2])
    return reference_attention(q, k, v, AttentionCall(batch.mask, scale, bias or RelativeBias(), alpha))


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from(DIVISORS), st.sampled_from(["none", "index", "positions"]), st.integers(1, 3))
def test_blocked_equals_definition(batch: Batch, divisor: Divisor, kind: str, heads: int) -> None:
    torch.manual_seed(0)
    q, k, v = draw_qkv(batch.tokens, heads, (5, 7), torch.float64)
    bias = None if kind == "none" else draw_bias(batch.tokens, heads, torch.float64, positions=kind == "positions")
    leaves = [q, k, v, *([bias.position_table, bias.time_table] if bias else [])]
    out = interval_attention(q, k, v, batch.offsets, batch.begin, batch.end, divisor=divisor, bias=bias)
    want = define(batch, q, k, v, divisor, bias)
    torch.testing.assert_close(out, want, rtol=1e-9, atol=1e-12)
    if not batch.tokens:
        return
    upstream = torch.randn_like(out)
    got, expected = torch.autograd.grad(out, leaves, upstream), torch.autograd.grad(want, leaves, upstream)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mask", MASKS)
def test_long_samples_are_cut_into_chunks(mask: str) -> None:
    """Samples longer than a chunk: a key then has copies in several tiles, whose gradients must add up."""
    batch = make_batch([300, 1, 0, 129, 257], mask, seed=1)
    q, k, v = draw_qkv(batch.tokens, 2, (8, 4), torch.float64)
    out = interval_attention(q, k, v, batch.offsets, batch.begin, batch.end)
    want = define(batch, q, k, v)
    upstream = torch.randn_like(out)
    torch.testing.assert_close(out, want)
    for a, b in zip(
        torch.autograd.grad(out, [q, k, v], upstream), torch.autograd.grad(want, [q, k, v], upstream), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("backend", ["reference", "blocked"])
def test_gradcheck(mask: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "reference":
        monkeypatch.setenv("GENRANK_KERNELS", "reference")
    batch = make_batch([4, 0, 1, 5], mask, seed=3)
    q, k, v = draw_qkv(batch.tokens, 2, (3, 2), torch.float64)
    bias = draw_bias(batch.tokens, 2, torch.float64)

    def run(q: Tensor, k: Tensor, v: Tensor, position: Tensor, time: Tensor) -> Tensor:
        given = bias._replace(position_table=position, time_table=time)
        return interval_attention(q, k, v, batch.offsets, batch.begin, batch.end, bias=given, dropout=0.25, seed=7)

    assert torch.autograd.gradcheck(run, (q, k, v, bias.position_table, bias.time_table))


def test_a_candidate_never_depends_on_its_neighbours() -> None:
    """With "visible" or a fixed divisor a candidate scores the same whoever is ranked beside it; "length" differs."""
    history, dim = 9, 4
    torch.manual_seed(0)
    k, v = torch.randn(history + 5, 1, dim), torch.randn(history + 5, 1, dim)

    def score(candidates: int, divisor: Divisor) -> Tensor:
        n = history + candidates
        batch = make_batch([n], "full")
        end = torch.full((n,), history, dtype=torch.int32)
        return interval_attention(k[:n], k[:n], v[:n], batch.offsets, batch.begin, end, divisor=divisor)[history]

    for divisor in ("visible", 100):
        torch.testing.assert_close(score(1, divisor), score(5, divisor))
    assert not torch.allclose(score(1, "length"), score(5, "length"))


def test_a_sample_never_depends_on_the_batch() -> None:
    """Not even on the lengths of the others, which decide how samples are tiled together."""
    torch.manual_seed(0)
    alone = make_batch([17], "causal")
    crowd = make_batch([17, 300, 18, 16, 1], "causal")
    q, k, v = draw_qkv(crowd.tokens, 2, (8, 8), torch.float64)
    one = interval_attention(q[:17], k[:17], v[:17], alone.offsets, alone.begin, alone.end)
    many = interval_attention(q, k, v, crowd.offsets, crowd.begin, crowd.end)
    torch.testing.assert_close(one, many[:17])


@settings(max_examples=25, deadline=None)
@given(batches(longest=20), st.integers(0, 2**31), st.booleans())
def test_delta_queries_equal_the_rows_of_the_whole(batch: Batch, seed: int, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (t.detach() for t in draw_qkv(batch.tokens, 2, (4, 6), torch.float64))
    bias = draw_bias(batch.tokens, 2, torch.float64) if with_bias else None
    chosen = torch.rand(batch.tokens, generator=generator) < 0.4
    sample = torch.repeat_interleave(torch.arange(len(batch.offsets) - 1), batch.offsets.diff())
    counts = torch.bincount(sample[chosen], minlength=len(batch.offsets) - 1)
    q_offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    positions = local_positions(batch.offsets, batch.tokens)
    for divisor in DIVISORS:
        whole = interval_attention(q, k, v, batch.offsets, batch.begin, batch.end, divisor=divisor, bias=bias)
        some = delta_attention(
            q[chosen], k, v, q_offsets, batch.offsets, positions[chosen], batch.begin[chosen], batch.end[chosen],
            divisor=divisor, bias=bias,
        )  # fmt: skip
        torch.testing.assert_close(some, whole[chosen])


@pytest.mark.parametrize("backend", ["", "reference"])
@settings(max_examples=8, deadline=None)
@given(batches(longest=20), st.integers(0, 2**31), st.sampled_from(DIVISORS), st.booleans())
def test_rows_that_ask_alone_get_what_they_got_among_all(
    backend: str, batch: Batch, seed: int, divisor: Divisor, with_bias: bool
) -> None:
    """And keys, values and tables the same gradients, where nothing reads the others' results."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = draw_qkv(batch.tokens, 2, (4, 6), torch.float64)
    bias = draw_bias(batch.tokens, 2, torch.float64) if with_bias else None
    leaves = [q, k, v, *([bias.position_table, bias.time_table] if bias else [])]
    rows = (torch.rand(batch.tokens, generator=generator) < 0.4).nonzero().squeeze(1)
    given = (batch.offsets, batch.begin, batch.end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENRANK_KERNELS", backend)
        among = interval_attention(q, k, v, *given, divisor=divisor, bias=bias)[rows]
        alone = interval_attention(q[rows], k, v, *given, divisor=divisor, bias=bias, rows=rows)
    torch.testing.assert_close(alone, among)
    upstream = torch.randn(among.shape, generator=generator, dtype=torch.float64)
    found = [
        torch.autograd.grad(out, leaves, upstream, allow_unused=True, materialize_grads=True) for out in (alone, among)
    ]
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)


def test_rows_that_do_not_ask_cost_nothing() -> None:
    batch = make_batch([40, 0, 90], "causal")
    few = queries_of(batch.mask, torch.tensor([39, 41]))
    plan = attention_cpu.make_plan(few, batch.tokens, 1)
    assert sum(tile.count * tile.rows * tile.keys for tile in plan.tiles) == 40 + 2
    asked = asked_by(batch.mask, torch.tensor([39, 41]))
    assert gpu_plan(asked, batch.tokens).pairs.tolist() == [40, 0, 2]
    with pytest.raises(ValueError, match="rows must ascend"):
        queries_of(batch.mask, torch.tensor([41, 39]))


def test_dropout_keeps_the_mean_and_repeats_with_its_seed() -> None:
    batch = make_batch([30, 50], "mtgr", seed=5)
    q, k, v = (t.detach() for t in draw_qkv(batch.tokens, 1, (4, 4), torch.float64))

    def run(seed: int) -> Tensor:
        return interval_attention(q, k, v, batch.offsets, batch.begin, batch.end, dropout=0.3, seed=seed)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    mean = torch.stack([run(seed) for seed in range(800)]).mean(0)
    spread = torch.stack([run(seed) for seed in range(200)]).std(0)
    clean = interval_attention(q, k, v, batch.offsets, batch.begin, batch.end)
    assert ((mean - clean).abs() <= 6 * spread / math.sqrt(800) + 1e-12).all()


def test_the_plan_is_made_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    make = attention_cpu.make_plan
    monkeypatch.setattr(attention_cpu, "make_plan", lambda *a: (made.append(1), make(*a))[1])
    batch = make_batch([5, 9], "causal")
    q, k, v = draw_qkv(batch.tokens, 2, (4, 4), torch.float32)
    x = interval_attention(q, k, v, batch.offsets, batch.begin, batch.end)
    interval_attention(x, k, v, batch.offsets, batch.begin, batch.end).sum().backward()
    assert len(made) == 1
    batch.end.sub_(1).clamp_(min=0)
    torch.testing.assert_close(
        interval_attention(q, k, v, batch.offsets, batch.begin, batch.end), define(batch, q, k, v)
    )
    assert len(made) == 2, "a changed mask wants a new plan"


def test_bad_input_is_named() -> None:
    batch = make_batch([3, 2], "causal")
    q, k, v = draw_qkv(5, 1, (4, 4), torch.float32)
    where = (batch.offsets, batch.begin, batch.end)
    with pytest.raises(ValueError, match=r"token 4 sees keys \[0, 9\) of its sample, which has 2"):
        interval_attention(q, k, v, batch.offsets, batch.begin, batch.end.index_fill(0, torch.tensor([4]), 9))
    with pytest.raises(TypeError, match="begin must be int32"):
        interval_attention(q, k, v, batch.offsets, batch.begin.long(), batch.end)
    with pytest.raises(ValueError, match="disagree in tokens, heads or qk dim"):
        interval_attention(q, k[:, :, :2], v, *where)
    with pytest.raises(TypeError, match="one floating dtype"):
        interval_attention(q, k.double(), v, *where)
    with pytest.raises(ValueError, match="divisor must be"):
        interval_attention(q, k, v, *where, divisor="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rise from 0 to 5"):
        interval_attention(q, k, v, torch.tensor([0, 3, 4]), batch.begin, batch.end)
    with pytest.raises(ValueError, match=r"needs bias\.timestamps"):
        interval_attention(q, k, v, *where, bias=RelativeBias(time_table=torch.zeros(4, 1)))
    with pytest.raises(ValueError, match="an odd number"):
        interval_attention(q, k, v, *where, bias=RelativeBias(position_table=torch.zeros(4, 1)))


@pytest.mark.parametrize("kind", ["plain", "bias", "delta"])
def test_the_ops_are_registered_as_pytorch_wants(kind: str) -> None:
    """Schema, fake tensors and autograd registration, so that torch.compile and export work."""
    batch = make_batch([5, 0, 7], "mtgr", seed=2)
    leaves = draw_qkv(batch.tokens, 2, (4, 6), torch.float32)
    bias = draw_bias(batch.tokens, 2, torch.float32) if kind == "bias" else RelativeBias()
    own = local_positions(batch.offsets, batch.tokens) if kind == "delta" else None
    where = IntervalMask(batch.offsets, batch.offsets, own, batch.begin, batch.end)
    scale = row_scale("length", where)
    rest = (*where, scale, *bias, 0.5, 0.0, 0, True, -1)
    torch.library.opcheck(torch.ops.genrank.interval_attention, (*leaves, *rest))
    plain = [t.detach() for t in leaves]
    given = [t.detach() if t is not None else None for t in bias]
    torch.library.opcheck(
        torch.ops.genrank.interval_attention_backward,
        (torch.randn(batch.tokens, 2, 6), *plain, *where, scale, *given, 0.5, 0.0, 0, True, -1),
    )


def test_compiles_without_graph_breaks() -> None:
    batch = make_batch([5, 9], "causal")
    q, k, v = (t.detach() for t in draw_qkv(batch.tokens, 2, (4, 4), torch.float32))

    def run(q: Tensor) -> Tensor:
        return interval_attention(q * 2, k, v, batch.offsets, batch.begin, batch.end)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q), run(q))

"""The Triton attention kernels, in the interpreter, against the float64 definition."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genrank.kernels.attention import (
    AttentionCall,
    RelativeBias,
    delta_attention,
    interval_attention,
    local_positions,
    reference_attention,
    row_scale,
)
from genrank.kernels.attention import configs as attention_configs
from genrank.kernels.attention import gpu as attention_gpu
from genrank.kernels.attention.bias import BUCKET_WIDTH
from genrank.kernels.launch import recording

from .cases import MASKS, Batch, batches, interpreted, make_batch

BLOCKS = [attention_configs.config(*c, 4, 1) for c in ((32, 16), (16, 32), (64, 64))]


def stamps_off_the_edges(tokens: int, generator: torch.Generator) -> Tensor:
    """Timestamps whose differences are not within rounding of a bucket's edge, where two correct logarithms may
    disagree.
    """
    grid = torch.tensor([0, 3, 10, 33, 100, 1_000, 12_345, 100_000, 2_000_000])
    gaps = (grid[:, None] - grid[None, :]).abs().clamp(min=1).double().log() / BUCKET_WIDTH
    assert ((gaps - gaps.round()).abs() > 1e-4)[gaps > 0].all()
    return grid[torch.randint(0, len(grid), (tokens,), generator=generator)]


class Case:
    """One random problem, run by the kernels in a low precision and by the definition in float64 and in that
    precision.
    """

    def __init__(
        self, batch: Batch, dtype: torch.dtype, dims: tuple[int, int], heads: int, bias: str, divisor: Any
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        tokens = batch.tokens
        self.inputs = [
            torch.randn(tokens, heads, d, generator=generator).to(dtype) for d in (dims[0], dims[0], dims[1])
        ]
        self.bias = RelativeBias()
        if bias != "none":
            self.bias = RelativeBias(
                torch.randn(21, heads, generator=generator) if "position" in bias else None,
                torch.randn(12, heads, generator=generator) if "time" in bias else None,
                stamps_off_the_edges(tokens, generator),
                torch.randint(0, 30, (tokens,), generator=generator, dtype=torch.int32)
                if "positions" in bias
                else None,
            )
        scale = row_scale(divisor, batch.mask)
        self.call = AttentionCall(batch.mask, scale, self.bias, dims[0] ** -0.5, same_scale=divisor != "visible")
        self.upstream = torch.randn(tokens, heads, dims[1], generator=generator).to(dtype)

    def kernels(self, blocks: Any) -> list[Tensor]:
        out = attention_gpu.forward(*self.inputs, self.call, blocks)
        return [out, *attention_gpu.backward(self.upstream, *self.inputs, self.call, blocks)]

    def definition(self, dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in (*self.inputs, *self.bias.tables)]
        given = iter(leaves[3:])
        bias = self.bias._replace(
            position_table=None if self.bias.position_table is None else next(given),
            time_table=None if self.bias.time_table is None else next(given),
        )
        out = reference_attention(*leaves[:3], self.call._replace(scale=self.call.scale.to(dtype), bias=bias))
        grads = torch.autograd.grad(out, leaves, self.upstream.to(dtype), allow_unused=True, materialize_grads=True)
        return [out.detach(), *grads]


def check_error(case: Case, dtype: torch.dtype, blocks: Any) -> None:
    """At most 2x (forward) and 3x (backward) the error of the definition run in the same precision; a floor of a few
    roundings of the largest value, for the cases in which that error is 0 by luck."""
    exact = case.definition(torch.float64)
    low = case.definition(dtype)
    for at, (got, want, rough) in enumerate(zip(case.kernels(blocks), exact, low, strict=True)):
        if not want.numel():
            assert got.shape == want.shape
            continue
        allowed = (2 if at == 0 else 3) * (rough - want).abs().max() + 4 * torch.finfo(dtype).eps * want.abs().max()
        assert (got - want).abs().max() <= allowed, f"output {at}: {(got - want).abs().max()} > {allowed}"


@interpreted(9)
@given(
    batches(longest=50, most=3),
    st.sampled_from([torch.float32, torch.float16]),
    st.sampled_from([(16, 16), (24, 16), (16, 40)]),
    st.sampled_from([1, 1, 2]),
    st.sampled_from(["none", "none", "position", "time", "position time", "positions time"]),
    st.sampled_from(["length", "visible", 64]),
    st.sampled_from(BLOCKS),
)
def test_kernels_equal_the_definition(
    batch: Batch, dtype: torch.dtype, dims: tuple[int, int], heads: int, bias: str, divisor: Any, blocks: Any
) -> None:
    check_error(Case(batch, dtype, dims, heads, bias, divisor), dtype, blocks)


@pytest.mark.parametrize("mask", MASKS)
def test_long_samples_of_every_mask(mask: str) -> None:
    """Several units and chunks a sample, so that full runs, holes and both edges occur."""
    batch = make_batch([200, 0, 1, 130], mask, seed=11)
    check_error(Case(batch, torch.float32, (16, 16), 1, "none", "length"), torch.float32, BLOCKS[-1])


@pytest.mark.parametrize(("dims", "heads", "divisor"), [((64, 32), 2, "length"), ((128, 16), 1, "visible")])
def test_loads_by_descriptor(dims: tuple[int, int], heads: int, divisor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configurations for TMA read the same tiles, of heads that lie side by side in one row."""
    monkeypatch.setenv("GENRANK_TMA", "1")
    case = Case(make_batch([150, 0, 1, 100], "mtgr", seed=11), torch.float32, dims, heads, "none", divisor)
    assert attention_gpu.descriptors(*case.inputs[1:])[0] is not None
    check_error(case, torch.float32, attention_configs.config(64, 32, 4, 1, tma=True))


def test_tuning_keys_on_the_batchs_own_length() -> None:
    """Short batches never inherit the choice made for long ones: the longest sample decides, where the host knows it."""
    call = Case(make_batch([100, 20, 3, 1], "causal"), torch.float32, (16, 16), 1, "none", "length").call
    assert attention_gpu.bucket_of(call) == 32
    assert attention_gpu.bucket_of(call._replace(max_length=100)) == 128
    for tuned in ("forward_tuned", "backward_q_tuned", "backward_kv_tuned"):
        assert "bucket" in getattr(attention_gpu, tuned).key


@pytest.mark.parametrize("dims", [(256, 256), (128, 256), (200, 16)])
def test_wide_heads(dims: tuple[int, int]) -> None:
    """Beyond 128 columns dK and dV take a pass each."""
    batch = make_batch([20, 0, 1, 40], "random", seed=3)
    check_error(Case(batch, torch.float16, dims, 1, "position time", "visible"), torch.float16, BLOCKS[0])


def test_window_with_a_full_attention_tail() -> None:
    """The key blocks' queries then lie in two runs with a hole between them, which is skipped and must not be lost."""
    n, window, tail = 300, 20, 30
    at = torch.arange(n)
    begin = torch.where(at >= n - tail, 0, (at - window).clamp(min=0)).int()
    batch = Batch(torch.tensor([0, n]), begin, (at + 1).int())
    check_error(Case(batch, torch.float32, (16, 16), 1, "none", "visible"), torch.float32, BLOCKS[1])


def test_backward_is_deterministic() -> None:
    case = Case(make_batch([50, 13], "mtgr", seed=2), torch.float16, (16, 16), 2, "position time", "length")
    for a, b in zip(case.kernels(BLOCKS[0]), case.kernels(BLOCKS[0]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bias", ["none", "position", "time"])
def test_tuning_clears_nothing_but_sums(bias: str) -> None:
    """Between trials it sets the sums to zero: an argument that stood in for an absent one would be lost with it."""
    case = Case(make_batch([9, 4], "causal"), torch.float32, (16, 16), 1, bias, "length")
    with recording() as launches:
        attention_gpu.backward(case.upstream, *case.inputs, case.call)
    for launch in launches:
        named = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))
        for name in launch.tuned.sums:
            others = [x for key, x in named.items() if key not in launch.tuned.sums and isinstance(x, Tensor)]
            assert all(named[name].data_ptr() != x.data_ptr() for x in others), name


def test_table_gradients_survive_tiny_and_infinite_upstreams() -> None:
    """The fixed point follows the data: gradients of 1e-20 keep their digits, one that overflowed shows as NaN."""
    case = Case(make_batch([40], "causal"), torch.float32, (16, 16), 1, "position time", "length")
    case.upstream *= 1e-20
    for got, want in zip(case.kernels(BLOCKS[0])[4:], case.definition(torch.float64)[4:], strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-27)
    case.upstream[3] = torch.inf
    assert all(got.isnan().all() for got in case.kernels(BLOCKS[0])[4:])


def test_dropout_is_one_mask_in_forward_and_backward() -> None:
    """d out / d v is the (dropped) attention matrix itself, and the mask repeats with the seed alone."""
    batch = make_batch([33, 20], "mtgr", seed=4)
    case = Case(batch, torch.float32, (16, 16), 1, "none", "length")
    q, k, _ = case.inputs
    call = case.call._replace(dropout=0.4)

    def weights(seed: int, blocks: Any) -> Tensor:
        """[T, T]: out for one-hot values, 16 keys at a time."""
        columns = []
        for first in range(0, batch.tokens, 16):
            v = torch.eye(batch.tokens)[:, None, first : first + 16].contiguous()
            columns.append(attention_gpu.forward(q, k, v, call._replace(seed=seed), blocks)[:, 0])
        return torch.cat(columns, 1)

    dropped, clean = weights(5, BLOCKS[0]), attention_dense(case)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], clean[kept] / 0.6, rtol=1e-4, atol=1e-6)
    share = kept[clean != 0].float().mean()
    assert abs(share - 0.6) < 4 * math.sqrt(0.24 / int((clean != 0).sum()))
    assert torch.equal(weights(5, BLOCKS[2]) != 0, kept), "the mask depends on the blocks"
    assert not torch.equal(weights(6, BLOCKS[0]) != 0, kept)
    leaves = [x.double().requires_grad_() for x in case.inputs]
    ends = batch.offsets.tolist()
    keep = [(kept[a:b, a:b] / 0.6)[None] for a, b in itertools.pairwise(ends)]
    out = reference_attention(*leaves, case.call._replace(scale=case.call.scale.double()), keep)
    want = torch.autograd.grad(out, leaves, case.upstream.double())
    for got, exact in zip(
        attention_gpu.backward(case.upstream, *case.inputs, call._replace(seed=5), BLOCKS[1]), want, strict=True
    ):
        torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-5)


def attention_dense(case: Case) -> Tensor:
    """[T, T] attention weights of the definition."""
    tokens = len(case.inputs[0])
    q, k, _ = case.inputs
    v = torch.eye(tokens)[:, None, :]
    return reference_attention(q, k, v, case.call)[:, 0]


@interpreted(5)
@given(batches(longest=30, most=3), st.integers(0, 100))
def test_delta_queries(batch: Batch, seed: int) -> None:
    case = Case(batch, torch.float32, (16, 16), 2, "position time", "length")
    q, k, v = case.inputs
    chosen = torch.rand(batch.tokens, generator=torch.Generator().manual_seed(seed)) < 0.4
    sample = torch.repeat_interleave(torch.arange(len(batch.offsets) - 1), batch.offsets.diff())
    counts = torch.bincount(sample[chosen], minlength=len(batch.offsets) - 1)
    q_offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    rows = (local_positions(batch.offsets, batch.tokens)[chosen], batch.begin[chosen], batch.end[chosen])
    with pytest.MonkeyPatch.context() as patch:
        whole = interval_attention(q, k, v, batch.offsets, batch.begin, batch.end, bias=case.bias)
        patch.setenv("GENRANK_KERNELS", "triton")
        some = delta_attention(q[chosen], k, v, q_offsets, batch.offsets, *rows, bias=case.bias)
    torch.testing.assert_close(some, whole[chosen], rtol=1e-4, atol=1e-5)


def test_rows_that_ask_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others' queries are zeros: candidates' results are the same to the bit, and their keys' gradients to rounding."""
    batch = make_batch([40, 0, 1, 9], "mtgr", seed=11)
    case = Case(batch, torch.float32, (16, 16), 1, "position", "visible")
    at = local_positions(batch.offsets, batch.tokens)
    rows = ((at < batch.begin) | (at >= batch.end)).nonzero().squeeze(1)
    assert 0 < len(rows) < batch.tokens
    found = []
    for dtype, backend in ((torch.float64, ""), (torch.float32, "triton")):
        monkeypatch.setenv("GENRANK_KERNELS", backend)
        leaves = [x.to(dtype).requires_grad_() for x in (*case.inputs, *case.bias.tables)]
        q, k, v, table = leaves
        given = {"divisor": "visible", "bias": case.bias._replace(position_table=table)}
        place = (batch.offsets, batch.begin, batch.end)
        out = interval_attention(q[rows], k, v, *place, rows=rows, **given)
        found.append([out, *torch.autograd.grad(out, leaves, case.upstream[rows].to(dtype))])
        assert torch.equal(out, interval_attention(q, k, v, *place, **given)[rows]) or not backend
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


def test_strided_heads_and_autograd_through_the_op(monkeypatch: pytest.MonkeyPatch) -> None:
    """q, k, v as views of one projection, as models pass them."""
    batch = make_batch([20, 9], "mtgr", seed=1)
    x = torch.randn(batch.tokens, 2, 48, requires_grad=True)

    def run() -> Tensor:
        q, k, v = x.split([16, 16, 16], dim=2)
        out = interval_attention(q, k, v, batch.offsets, batch.begin, batch.end)
        (grad,) = torch.autograd.grad(out.square().sum(), x)
        return torch.cat([out.flatten(), grad.flatten()])

    blocked = run()
    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    torch.testing.assert_close(run(), blocked, rtol=1e-4, atol=1e-5)


def test_wrong_values_are_named_on_request_and_harmless_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does not check by default is clamped to its sample: no other sample's tokens are read."""
    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    batch = make_batch([6, 4], "causal")
    q, k, v = (torch.randn(10, 1, 16) for _ in range(3))
    begin, end = batch.begin - 7, torch.where(torch.arange(10) % 6 == 5, 100, batch.end).int()
    k[6:] = v[6:] = torch.inf
    out = interval_attention(q, k, v, batch.offsets, begin, end, max_length=6)
    clamped = interval_attention(q, k, v, batch.offsets, begin.clamp(min=0), torch.minimum(end, torch.tensor(6)).int())
    assert out[:6].isfinite().all() and torch.equal(out[:6], clamped[:6])
    monkeypatch.setenv("GENRANK_KERNELS_CHECK", "1")
    with pytest.raises(ValueError, match=r"token 0 sees keys \[-7, 1\) of its sample, which has 6"):
        interval_attention(q, k, v, batch.offsets, begin, end)
    with pytest.raises(ValueError, match=r"q_positions\[1\] is 6, but its sample has 6 keys"):
        rows = (torch.tensor([0, 6], dtype=torch.int32), batch.begin[:2], batch.end[:2])
        delta_attention(q[:2], k, v, torch.tensor([0, 2, 2]), batch.offsets, *rows)

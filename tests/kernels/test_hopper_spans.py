"""Span attention's kernels for sm_90: their own source, run on a CPU (`gluon_on_cpu.py`) as it would be launched, against the float64 definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genrank.kernels.attention.hopper.gpu import across
from genrank.kernels.launch import recording
from genrank.kernels.spans import SpanBias, SpanCall, Spans, make_spans, reference_span_attention
from genrank.kernels.spans.hopper import gpu as hopper
from genrank.kernels.spans.hopper.plan import walks

from .cases import interpreted
from .gluon_on_cpu import Descriptor, Kernels
from .span_cases import random_spans


@pytest.fixture(autouse=True)
def descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of float64, which TMA's are not."""

    def describe(x: Tensor, rows: int) -> Descriptor:
        return Descriptor(x.as_strided((len(x), across(x)), (x.stride(0), 1)), (rows, x.shape[2]))

    monkeypatch.setattr(hopper, "descriptor", describe)


class Case:
    """One batch, run by the kernels and by the definition, both in float64."""

    def __init__(
        self, spans: Spans, dim: int = 64, heads: int = 1, more: tuple[int, int] = (0, 0), seed: int = 0
    ) -> None:
        """more: queries and keys behind the last sample."""
        generator = torch.Generator().manual_seed(seed)
        self.real = [int(spans.q_offsets[-1]), int(spans.k_offsets[-1])]
        queries, keys = (real + also for real, also in zip(self.real, more, strict=True))
        edges = [
            torch.cat([x, torch.randint(0, 9, (len(x), more[0]), generator=generator).int()], 1) for x in spans[2:]
        ]
        self.spans = spans._replace(begin=edges[0], end=edges[1])
        self.call = SpanCall(self.spans, torch.ones(queries), SpanBias(), dim**-0.5, True)
        self.inputs = [torch.randn(n, heads, dim, generator=generator).double() for n in (queries, keys, keys)]
        self.upstream = torch.randn(queries, heads, dim, generator=generator).double()
        for x, real in ((self.inputs[0], 0), (self.inputs[1], 1), (self.inputs[2], 1), (self.upstream, 0)):
            x[self.real[real] :] = torch.nan

    def definition(self) -> list[Tensor]:
        """out, dq, dk, dv, of the tokens that belong to a sample."""
        queries, keys = self.real
        leaves = [x[:n].clone().requires_grad_() for x, n in zip(self.inputs, (queries, keys, keys), strict=True)]
        spans = self.spans._replace(begin=self.spans.begin[:, :queries], end=self.spans.end[:, :queries])
        out = reference_span_attention(*leaves, self.call._replace(spans=spans))
        return [out.detach(), *torch.autograd.grad(out, leaves, self.upstream[:queries])]

    def sums(self) -> Tensor:
        """Log-sum-exp of each query's visible scores, infinite where it sees nothing."""
        q, k, _ = self.inputs
        total = torch.full(q.shape[:2], torch.inf, dtype=torch.float64)
        for b in range(len(self.spans.q_offsets) - 1):
            of, to = (slice(int(x[b]), int(x[b + 1])) for x in self.spans[:2])
            scores = self.call.alpha * torch.einsum("qhd,khd->hqk", q[of], k[to])
            key = torch.arange(to.stop - to.start)
            seen = ((key >= self.spans.begin[:, of, None]) & (key < self.spans.end[:, of, None])).any(0)
            total[of] = scores.masked_fill(~seen, -torch.inf).logsumexp(2).T
        return torch.where(total == -torch.inf, torch.inf, total)

    def kernels(self, seed: int = 0) -> list[Tensor]:
        """The same by the kernels, with what they write for tokens behind the samples."""
        walks(self.spans, len(self.inputs[1]))
        machine = Kernels(seed)
        with recording() as launches:
            out, lse = hopper.forward(*self.inputs, self.call)
        for x in (out, lse):
            x.fill_(99.0)
        for launch in launches:
            machine.launch(launch)
        exact = self.sums()
        torch.testing.assert_close(lse[: self.real[0]], exact[: self.real[0]].float(), atol=1e-5, rtol=1e-5)
        delta = (self.upstream * out).sum(2)
        with recording() as launches:
            grads = hopper.backward(self.upstream, exact, delta, *self.inputs, self.call)
        for x in grads:
            x.fill_(99.0)
        for launch in launches:
            machine.launch(launch)
        return [out, *grads]


def check(case: Case, seed: int = 0) -> None:
    for name, a, b in zip(("out", "dq", "dk", "dv"), case.kernels(seed), case.definition(), strict=True):
        b = torch.cat([b, b.new_zeros(len(a) - len(b), *b.shape[1:])])
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_lengths_round_tiles_and_units(count: int, dim: int) -> None:
    """Samples without queries or keys, tokens behind the last one, two heads."""
    lengths = [(130, 70), (0, 5), (3, 0), (1, 1), (70, 200)]
    case = Case(random_spans(lengths, count, seed=4), dim, heads=2, more=(70, 3) if dim == 64 else (3, 130))
    check(case)


@interpreted(4)
@given(
    st.lists(st.tuples(st.integers(0, 150), st.integers(0, 200)), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_any_spans_in_any_order_of_its_roles(lengths: list[tuple[int, int]], count: int, seed: int) -> None:
    spans = random_spans(lengths, count, seed)
    if spans.begin.shape[1] and int(spans.k_offsets[-1]):
        check(Case(spans, seed=seed), seed)


def test_causal_tiles_that_all_see_need_no_mask() -> None:
    """What every row sees, in one of two spans, and spans that stand in the other order."""
    offsets, at = torch.tensor([0, 300]), torch.arange(300)
    causal = make_spans(offsets, offsets, [(at * 0, at // 2), (at // 2 + (at // 2) % 7, at + 1)])
    check(Case(causal))
    turned = causal._replace(begin=causal.begin.flip(0), end=causal.end.flip(0))
    check(Case(turned))


def test_what_is_not_finite_stays_in_its_sample() -> None:
    spans = random_spans([(70, 90), (33, 40), (150, 100)], 2, seed=2)
    case = Case(spans)
    clean = case.kernels()
    for x, (low, high) in zip((*case.inputs, case.upstream), ((70, 103), (90, 130), (90, 130), (70, 103)), strict=True):
        x[low:high] = torch.nan
    case.sums = lambda: sums  # type: ignore[method-assign]
    sums = Case.sums(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.testing, "assert_close", lambda *given, **named: None)
        dirty = case.kernels()
    for at, (a, b) in enumerate(zip(clean, dirty, strict=True)):
        low, high = (70, 103) if at < 2 else (90, 130)
        assert torch.equal(a[:low], b[:low]) and torch.equal(a[high:], b[high:])
        assert not b[low:high].isfinite().all()


def test_what_they_compute() -> None:
    def given(dim: int = 64, dtype: torch.dtype = torch.bfloat16, count: int = 2, **changed: Any) -> bool:
        spans = random_spans([(9, 9)], count, seed=0)
        call = SpanCall(spans, torch.ones(9), SpanBias(), 1.0, True)._replace(**changed)
        return hopper.computes(*torch.zeros(9, 2, 3 * dim, dtype=dtype).split(dim, 2), call)

    assert given() and given(128) and given(count=3)
    assert not given(256) and not given(32) and not given(dtype=torch.float16) and not given(softmax=False)
    assert not given(bias=SpanBias(torch.zeros(3, 2)))

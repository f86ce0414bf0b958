"""The attention kernels for sm_90: their own source, run on a CPU (`gluon_on_cpu.py`), against the float64 definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genrank.kernels import tuning
from genrank.kernels.attention import AttentionCall, Divisor, IntervalMask, RelativeBias, reference_attention, row_scale
from genrank.kernels.attention import gpu as attention_gpu
from genrank.kernels.attention.hopper import gpu as hopper
from genrank.kernels.attention.hopper.plan import intervals, key_records, places, query_records
from genrank.kernels.attention.plan import UNIT

from .cases import MASKS, Batch, interpreted, make_batch
from .gluon_on_cpu import Descriptor, Kernels, unpacked


class Case:
    """One batch, run by the kernels and by the definition, both in float64."""

    def __init__(
        self,
        batch: Batch,
        dim: int,
        heads: int = 1,
        more: int = 0,
        seed: int = 0,
        bias: str = "",
        divisor: Divisor = "length",
    ) -> None:
        """bias: which tables there are, "position", "time" or both, and whether positions are "given"."""
        generator = torch.Generator().manual_seed(seed)
        tokens = batch.tokens + more
        grow = lambda x: torch.cat([x, torch.randint(0, 9, (more,), generator=generator).int()])  # noqa: E731
        self.mask = IntervalMask(batch.offsets, batch.offsets, None, grow(batch.begin), grow(batch.end))
        self.more, self.heads, self.dim = more, heads, dim
        scale = torch.cat([row_scale(divisor, batch.mask), torch.full((more,), torch.nan)])
        made = random_bias(bias, tokens, heads, generator)
        self.call = AttentionCall(self.mask, scale.double(), made, dim**-0.5, same_scale=divisor != "visible")
        packed = torch.randn(tokens, heads, 3 * dim, generator=generator, dtype=torch.float64)
        packed[batch.tokens :] = torch.nan
        self.qkv = list(packed.split(dim, 2))
        self.upstream = torch.randn(tokens, heads, dim, generator=generator, dtype=torch.float64)
        self.upstream[batch.tokens :] = torch.nan

    def kernels(self, wide: bool, seed: int = 0) -> list[Tensor]:
        """out, dk, dv and, without a bias, dq."""
        kernels = Kernels(seed)
        q, k, v = self.qkv
        seen, queries = intervals(self.mask), query_records(self.mask)
        width, heads, half_alpha = seen.stride(0), self.heads, 0.5 * self.call.alpha
        token, head = heads * self.dim, self.dim
        scale = self.call.scale

        def tiles(x: Tensor, rows: int) -> Descriptor:
            return Descriptor(x.as_strided((len(x), hopper.across(x)), (x.stride(0), 1)), (rows, self.dim))

        out, dq = (torch.full(x.shape, 99.0, dtype=torch.float64) for x in (v, q))
        both = torch.full((2, width, heads, self.dim), 99.0, dtype=torch.float64)
        sizes: dict[str, int] = {"DIM": self.dim, "REGISTERS": 240, "LOADER": 24}
        biases, tables = hopper.bias_arguments(self.call)
        chosen = hopper.FORWARD[wide + 2 * bool(self.call.bias.tables)].kwargs
        block, stages = chosen["BLOCK"], chosen["STAGES"]
        kernels.run(
            kernels.forward, len(queries) * heads,
            [tiles(q, 64), tiles(k, block), tiles(v, block), out, seen, width, scale, queries, heads, half_alpha,
             q.stride(1), k.stride(1), v.stride(1), token, head, *biases],
            BLOCK=block, STAGES=stages, **sizes, **tables,
        )  # fmt: skip
        above = self.upstream
        if not self.call.same_scale:
            above, scale = above * scale[:, None, None], torch.ones_like(scale)
        steps = [x.stride(1) for x in (q, above, k, v)]
        keys = key_records(self.mask, 64 if wide else 128)
        kernels.run(
            kernels.wide_key if wide else kernels.narrow_key, len(keys) * heads,
            [*(tiles(x, 64) for x in (q, above, k, v)), both, seen, width, scale, keys, heads, half_alpha, *steps, token, head,
             *biases],
            BLOCK=64, STAGES=2 if wide else 3, **sizes, **tables,
        )  # fmt: skip
        tokens = len(q)
        found = [out, both[0, :tokens], both[1, :tokens]]
        if self.call.bias.tables:
            return found
        kernels.run(
            kernels.wide_query if wide else kernels.narrow_query, len(queries) * (2 if wide else 1) * heads,
            [*(tiles(x, 64) for x in (q, self.upstream, k, v)), dq, seen, width, self.call.scale, queries, heads, half_alpha,
             *steps, token, head],
            BLOCK=64, **({"SLOTS": 3} if wide else {"K_STAGES": 3, "V_STAGES": 2}), **sizes,
        )  # fmt: skip
        return [*found, dq]

    def definition(self) -> list[Tensor]:
        """The same; zeros for tokens without a sample."""
        real = len(self.mask.begin) - self.more
        leaves = [x[:real].clone().requires_grad_() for x in self.qkv]
        mask = self.mask._replace(begin=self.mask.begin[:real], end=self.mask.end[:real])
        out = reference_attention(*leaves, self.call._replace(mask=mask, scale=self.call.scale[:real]))
        dq, dk, dv = torch.autograd.grad(out, leaves, self.upstream[:real])
        found = [out.detach(), dk, dv] + [dq] * (not self.call.bias.tables)
        return [torch.cat([x, x.new_zeros(self.more, *x.shape[1:])]) for x in found]


def random_bias(kind: str, tokens: int, heads: int, generator: torch.Generator) -> RelativeBias:
    """Tables shorter than samples are long, and times on both sides of any split into float32."""
    position = torch.randn(81, heads, generator=generator, dtype=torch.float64) if "position" in kind else None
    time = torch.randn(70, heads, generator=generator, dtype=torch.float64) if "time" in kind else None
    # Powers of 7 keep differences off the buckets' edges, where two correct logarithms may disagree.
    stamps = 10**14 + 7 ** torch.randint(0, 15, (tokens,), generator=generator)
    given = torch.randint(-50, 50, (tokens,), generator=generator).int() if "given" in kind else None
    return RelativeBias(position, time, stamps if time is not None else None, given)


def check(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(found) == len(wanted)
    for name, a, b in zip(("out", "dk", "dv", "dq"), found, wanted, strict=False):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_every_mask(mask: str, wide: bool) -> None:
    """Lengths round the tiles' and units' edges, tokens beyond the last offset, two heads."""
    batch = make_batch([130, 0, 1, 70], mask, seed=4)
    case = Case(batch, 128 if wide else 64, heads=2 if mask == "mtgr" else 1, more=70 if mask == "mtgr" else 3)
    check(case.kernels(wide), case.definition())


@interpreted(4)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=3), st.sampled_from(MASKS), st.booleans(), st.integers(0, 99))
def test_any_batch_in_any_order_of_its_roles(lengths: list[int], mask: str, wide: bool, seed: int) -> None:
    if not sum(lengths):
        return
    case = Case(make_batch(lengths, mask, seed), 64, seed=seed)
    check(case.kernels(wide, seed), case.definition())


@pytest.mark.parametrize("wide", [False, True])
def test_what_is_not_finite_stays_in_its_sample(wide: bool) -> None:
    """Behind it, before it, and in the same tile."""
    case = Case(make_batch([70, 33, 150], "mtgr", seed=2), 64)
    clean = case.kernels(wide)
    for x in (*case.qkv, case.upstream):
        x[70:103] = torch.nan
        x[71] = torch.inf
    dirty = case.kernels(wide)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a[:70], b[:70]) and torch.equal(a[103:], b[103:])
        assert not b[70:103].isfinite().all()


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("kind", ["position time given", "position", "time"])
def test_biases(kind: str, wide: bool) -> None:
    """In tiles of a sample's end, of own keys and beyond the last offset; with a divisor of each query's own."""
    batch = make_batch([130, 0, 1, 70], "mtgr", seed=4)
    case = Case(batch, 64, heads=2, more=70, bias=kind, divisor="visible" if "time" in kind else "length")
    check(case.kernels(wide), case.definition())


@interpreted(3)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=3), st.sampled_from(MASKS), st.booleans(), st.integers(0, 99))
def test_biases_of_any_batch(lengths: list[int], mask: str, wide: bool, seed: int) -> None:
    if not sum(lengths):
        return
    case = Case(make_batch(lengths, mask, seed), 64, seed=seed, bias="position time given", divisor="visible")
    check(case.kernels(wide, seed), case.definition())


@pytest.mark.parametrize("wide", [False, True])
def test_a_bias_reads_its_own_sample(wide: bool) -> None:
    """Another sample's times, positions and values, which its tiles reach, change no bit."""
    case = Case(make_batch([70, 33, 150], "mtgr", seed=2), 64, bias="position time given")
    clean = case.kernels(wide)
    for x in (*case.qkv, case.upstream):
        x[70:103] = torch.nan
    bias = case.call.bias
    assert bias.timestamps is not None and bias.positions is not None
    bias.timestamps[70:103] = torch.iinfo(torch.int64).max
    bias.positions[70:103] = torch.iinfo(torch.int32).min
    for a, b in zip(clean, case.kernels(wide), strict=True):
        assert torch.equal(a[:70], b[:70]) and torch.equal(a[103:], b[103:])


def test_times_keep_their_differences() -> None:
    """Exact beside one another, however long after the sample's first token; float32's own rounding far apart."""
    batch = make_batch([300, 5], "causal", seed=0)
    stamps = 10**15 + torch.cumsum(torch.randint(0, 3 * 10**11, (305,)), 0)
    stamps[1::2] = stamps[::2][:152] + torch.arange(152)
    time = places(batch.mask, RelativeBias(None, torch.zeros(4, 1), stamps)).times
    coarse, fine = unpacked(time)
    found = ((coarse[:300, None] - coarse[None, :300]) * 2**23 + (fine[:300, None] - fine[None, :300])).float()
    assert torch.equal(found, (stamps[:300, None] - stamps[None, :300]).float())


def test_a_missing_wait_is_seen() -> None:
    """What these tests rest on: a kernel that uses its tiles without waiting for them fails here."""
    case = Case(make_batch([70], "causal", seed=2), 64)
    skipping = Kernels.run

    def unwaited(self: Kernels, kernel: Any, *rest: Any, **named: Any) -> None:
        self.machine.wait = lambda ready: None  # type: ignore[method-assign]
        skipping(self, kernel, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kernels, "run", unwaited)
        with pytest.raises(AssertionError):
            check(case.kernels(False), case.definition())


def test_units_are_paired_heavy_with_light_and_each_is_there_once() -> None:
    batch = make_batch([5 * UNIT, 0, 3, 2 * UNIT + 1], "causal", seed=0)
    mask = batch.mask._replace(begin=torch.cat([batch.begin] * 2), end=torch.cat([batch.end] * 2))
    records = query_records(mask)
    units = [r.tolist() for pair in records for r in pair[: pair[0, 0]]]
    placed = [r for r in units if r[4]]
    starts = batch.offsets[:-1].tolist()
    wanted = {(starts[0], UNIT * i) for i in range(5)} | {(starts[2], 0)} | {(starts[3], UNIT * i) for i in range(3)}
    assert {(r[1], r[2]) for r in placed} == wanted and len(placed) == len(wanted)
    beyond = [r for r in units if not r[4]]
    assert sorted(r[2] for r in beyond) == list(range(batch.tokens, 2 * batch.tokens, UNIT))
    work = [[r[6] - r[5] for r in pair[: pair[0, 0]].tolist()] for pair in records if pair[0, 1] == 0 and pair[0, 4]]
    assert sorted(map(sum, work)) == [3 * UNIT, 6 * UNIT, 6 * UNIT]


def test_what_they_compute() -> None:
    def given(dim: int = 64, dtype: torch.dtype = torch.bfloat16, heads: int = 2, **changed: Any) -> bool:
        batch = make_batch([9], "causal", seed=0)
        call = AttentionCall(batch.mask, torch.ones(9), RelativeBias(), 1.0, same_scale=True)._replace(**changed)
        return hopper.computes(*torch.zeros(9, heads, 3 * dim, dtype=dtype).split(dim, 2), call)

    assert given() and given(128) and given(256)
    assert not given(32) and not given(96) and not given(dtype=torch.float16)
    assert not given(dropout=0.1) and given(same_scale=False)
    tables = [RelativeBias(torch.zeros(n, 2), torch.zeros(m, 2)) for n, m in ((1025, 64), (9001, 64), (1025, 129))]
    assert given(bias=tables[0]) and given(bias=tables[1]) and not given(bias=tables[2])
    assert not given(128, bias=tables[1]) and not given(256, bias=tables[1])
    assert not hopper.loadable(torch.zeros(3, 2, 64, dtype=torch.bfloat16).expand(3, 2, 64)[:, :, ::2])
    assert not hopper.loadable(torch.zeros(2, 3, 64, dtype=torch.bfloat16).transpose(0, 1))


def test_who_computes(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Unset: the usual kernels; 1: these; tune: the faster, which a file keeps, and the usual ones where nothing may be timed."""
    case = Case(make_batch([9], "causal", seed=0), 64)
    q = [x.bfloat16() for x in case.qkv]
    monkeypatch.setattr(hopper, "serves", lambda *given: True)
    monkeypatch.setattr(attention_gpu, "own_forward", lambda *given: "usual")
    monkeypatch.setattr(hopper, "forward", lambda *given: "gluon")
    monkeypatch.setattr(tuning, "_ways", {})
    monkeypatch.setenv("GENRANK_TUNING_CACHE", str(tmp_path / "tuning.json"))

    def chosen(value: str, times: dict[str, float] | None = None) -> Any:
        monkeypatch.setenv("GENRANK_GLUON", value)
        if times:
            names = iter(times)
            monkeypatch.setattr(tuning, "timer", lambda launch: times[next(names)])
        return attention_gpu.forward(*q, case.call)

    assert chosen("") == "usual" and chosen("1") == "gluon" and chosen("tune") == "usual"
    assert chosen("tune", {"usual": 2.0, "gluon": 1.0}) == "gluon"
    monkeypatch.setattr(tuning, "_ways", {})
    assert chosen("tune", {}) == "gluon" and "attention forward" in (tmp_path / "tuning.json").read_text()
    monkeypatch.setenv("GENRANK_AUTOTUNE", "0")
    assert chosen("tune") == "usual"
    monkeypatch.setattr(hopper, "serves", lambda *given: False)
    assert chosen("1") == "usual"
    with pytest.raises(ValueError, match="GENRANK_GLUON='yes' is unknown"):
        chosen("yes")

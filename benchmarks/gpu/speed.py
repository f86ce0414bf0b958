"""Speed: attention beside its peers and the chip's own rates, then the ops around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.correctness import largest_error
from benchmarks.gpu.peers import META, Run, flex_run, meta_runs
from benchmarks.gpu.session import Session, described, environment
from benchmarks.gpu.shapes import FLEX, GLUON, ORDER, TMA, Shape, other_shapes, shapes
from benchmarks.kernels_cases import Batch
from genrank.kernels.attention import (
    AttentionCall,
    IntervalMask,
    RelativeBias,
    interval_attention,
    reference_attention,
    row_scale,
)
from genrank.kernels.attention import gpu as attention_gpu
from genrank.kernels.attention.plan import UNIT, Plan
from genrank.kernels.norm import add_norm, group_layer_norm, norm_gate
from genrank.kernels.silu_split import silu_split
from genrank.kernels.silu_split.reference import reference_split
from genrank.kernels.spans import SpanBias, SpanCall, Spans, make_spans, reference_span_attention, span_attention

CHECKED = 4300
"""Samples up to this long are compared, dense, with the definition."""


def ceilings(session: Session) -> dict[str, Any]:
    """The chip's own rates: TFLOPS of a large bfloat16 matrix product, GB/s of a large copy (read and write)."""
    if session.rehearse:
        return {"matmul_tflops": 1.0, "copy_gb_s": 1.0}
    n = 8192
    a, b = (torch.randn(n, n, device=session.device, dtype=torch.bfloat16) for _ in range(2))
    matmul = 2 * n**3 / session.time_ms(lambda: a @ b) / 1e9
    source = torch.empty(2**28, device=session.device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy = 2 * source.numel() * 2 / session.time_ms(lambda: target.copy_(source)) / 1e6
    return {"matmul_tflops": round(matmul, 1), "copy_gb_s": round(copy, 1)}


# --- attention --------------------------------------------------------------------------------------------------------


class Setting:
    """One shape's batch, and q, k and v as views of one projection, as models pass them."""

    def __init__(self, session: Session, shape: Shape) -> None:
        self.session, self.shape = session, shape
        self.batch = shape.make().to(session.device)
        dtype = torch.float32 if session.rehearse else torch.bfloat16
        tokens = self.batch.tokens
        generator = torch.Generator(session.device).manual_seed(1)
        options = {"device": session.device, "dtype": dtype, "generator": generator}
        packed = torch.randn(tokens, shape.heads, 3 * shape.dim, **options)  # type: ignore[call-overload]
        self.qkv = [x.detach().requires_grad_() for x in packed.split(shape.dim, 2)]
        self.upstream = torch.randn(tokens, shape.heads, shape.dim, **options)  # type: ignore[call-overload]
        self.pairs = self.batch.pairs
        self.bias, self.divisor = RelativeBias(), "length"
        if shape.biased:
            tables = (torch.randn(n, shape.heads, device=session.device).requires_grad_() for n in (1025, 64))
            # Events a few minutes apart.
            stamps = torch.randint(1, 600, (tokens,), generator=torch.Generator().manual_seed(2)).cumsum(0)
            self.bias, self.divisor = RelativeBias(*tables, stamps.to(session.device)), "visible"

    def facts(self) -> dict[str, Any]:
        samples, tokens = len(self.batch.offsets) - 1, self.batch.tokens
        facts = {"samples": samples, "tokens": tokens, "pairs": self.pairs}
        return {"heads": self.shape.heads, "dim": self.shape.dim, **facts}

    def ours(self) -> Run:
        if self.shape.softmax:
            spans = in_two_spans(self.batch)
            return Run(lambda: span_attention(*self.qkv, spans, max_length=self.shape.longest), self.qkv, self.upstream)
        where = (self.batch.offsets, self.batch.begin, self.batch.end)
        given = {"divisor": self.divisor, "bias": self.bias, "max_length": self.shape.longest}
        return Run(
            lambda: interval_attention(*self.qkv, *where, **given), [*self.qkv, *self.bias.tables], self.upstream
        )

    def time(self, run: Run) -> dict[str, float]:
        """Rates over visible pairs: forward 2 H (Dqk + Dv) flops a pair, backward 2 H (3 Dqk + 2 Dv)."""
        flops = 4 * self.shape.heads * self.shape.dim * self.pairs
        with torch.no_grad():
            forward = self.session.time_ms(run.attend)
        out = run.attend()
        backward = self.session.time_ms(lambda: torch.autograd.grad(out, run.leaves, run.upstream, retain_graph=True))
        return {
            "forward_ms": round(forward, 4),
            "forward_tflops": round(flops / forward / 1e9, 1),
            "backward_ms": round(backward, 4),
            "backward_tflops": round(2.5 * flops / backward / 1e9, 1),
        }

    def check(self) -> dict[str, Any]:
        """The configurations that tuning chose, on the shape being timed: the first sample, forward and
        backward, against the definition in float32. Of tables' gradients, sums over all samples, it says nothing."""
        n = int(self.batch.offsets[1])
        first = Batch(self.batch.offsets[:2], self.batch.begin[:n], self.batch.end[:n])
        scale = row_scale(self.divisor, first.mask)
        run = self.ours()
        out = run.attend()
        got = [out.detach(), *torch.autograd.grad(out, self.qkv, run.upstream)]
        bias = RelativeBias(*(None if t is None else t.detach() for t in self.bias))

        def define(kind: torch.dtype) -> list[Tensor]:
            leaves = [x.detach()[:n].to(kind).requires_grad_() for x in self.qkv]
            alpha = self.shape.dim**-0.5
            if self.shape.softmax:
                result = reference_span_attention(
                    *leaves, SpanCall(in_two_spans(first), scale, SpanBias(), alpha, True)
                )
            else:
                result = reference_attention(*leaves, AttentionCall(first.mask, scale.to(kind), bias, alpha))
            return [result.detach(), *torch.autograd.grad(result, leaves, self.upstream[:n].to(kind))]

        return largest_error([x[:n] for x in got], define(torch.float32), define(self.qkv[0].dtype))


def in_two_spans(batch: Batch) -> Spans:
    """Each interval cut in the middle; of these masks every query sees itself in its own."""
    middle = (batch.begin + batch.end) // 2
    return make_spans(batch.offsets, batch.offsets, [(batch.begin, middle), (middle, batch.end)])


def measure_attention(session: Session, shape: Shape) -> dict[str, Any]:
    setting = Setting(session, shape)
    row: dict[str, Any] = {**setting.facts(), **setting.time(setting.ours())}
    if shape.longest <= CHECKED:
        row["tuned"] = setting.check()
    return row


def measure_meta(session: Session, shape: Shape) -> dict[str, Any]:
    """The best of its settings in each direction, and how far its result lies from ours."""
    setting = Setting(session, shape)
    best: dict[str, Any] = {}
    runs = meta_runs(shape, setting.batch, *setting.qkv, setting.upstream)
    for setting, run in runs.items():
        try:
            times = setting.time(run)
        except Exception as error:
            if setting == "pointers":
                raise
            best["tma_error"] = described(error)
            continue
        for direction in ("forward", "backward"):
            if times[f"{direction}_ms"] < best.get(f"{direction}_ms", float("inf")):
                best |= {key: value for key, value in times.items() if key.startswith(direction)}
                best[f"{direction}_setting"] = setting
    where = (setting.batch.offsets, setting.batch.begin, setting.batch.end)
    with torch.no_grad():
        mine = interval_attention(*setting.qkv, *where, divisor=shape.longest).float()
        best["difference"] = float((runs["pointers"].attend().float() - mine).abs().max() / mine.abs().max())
    return best


def measure_flex(session: Session, shape: Shape) -> dict[str, Any]:
    setting = Setting(session, shape)
    run = flex_run(setting.batch, *setting.qkv, setting.upstream)
    if session.rehearse:
        return {"shape": list(run.attend().shape)}
    return setting.time(run)


def measure_tma(session: Session, shape: Shape) -> dict[str, Any]:
    """The same kernels with the configurations that load by TMA."""
    with environment("GENRANK_TMA", "1"):
        setting = Setting(session, shape)
        row = {**setting.time(setting.ours()), "tuned": setting.check()}
    if not session.rehearse:
        from genrank.kernels.attention import gpu as attention_gpu

        for name in ("forward_tuned", "backward_q_tuned", "backward_kv_tuned"):
            row[name] = str(getattr(attention_gpu, name).latest)
    return row


def measure_gluon(session: Session, shape: Shape) -> dict[str, Any]:
    """The kernels for sm_90 beside the usual ones, on one batch: correct on its first sample, repeating to the bit, and their
    times. With a bias, backward's dQ is the usual kernel's in both. A device that they are not for is an error."""
    setting = Setting(session, shape)
    row: dict[str, Any] = {"before": setting.time(setting.ours())}
    if session.rehearse:  # They need the device: what is rehearsed is the comparison.
        return row | row["before"] | {"tuned": setting.check()}
    if torch.cuda.get_device_capability()[0] != 9:
        raise RuntimeError("the Gluon kernels are for sm_90")
    with environment("GENRANK_GLUON", "1"):
        run = setting.ours()
        first, again = ([out := run.attend(), *torch.autograd.grad(out, run.leaves, run.upstream)] for _ in range(2))
        row["repeats_to_the_bit"] = all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        del first, again
        row |= setting.time(run)
        row["tuned"] = setting.check() if shape.longest <= CHECKED else {"correct": True}
    row["tuned"]["correct"] = row["tuned"]["correct"] and row["repeats_to_the_bit"]
    return row


@contextmanager
def heaviest_units_first() -> Iterator[None]:
    """The order of units that `kernels.attention.plan` is compared with: by their own work over the whole batch, so that the
    programs of one moment belong to as many samples."""
    make = attention_gpu.make_plan

    def reordered(mask: IntervalMask, key_tokens: int) -> Plan:
        plan, sees = make(mask, key_tokens), (mask.begin < mask.end).long()
        index = torch.arange(len(sees), device=sees.device)
        first = mask.k_offsets[torch.searchsorted(mask.q_offsets, index, right=True) - 1]
        change = sees.new_zeros(key_tokens + 1)
        change.index_add_(0, first + mask.begin, sees).index_add_(0, first + mask.end, -sees)
        by_query, by_key = (mask.end - mask.begin).clamp(min=0).long(), change[:-1].cumsum(0)
        return plan._replace(q_units=by_work(plan.q_units, by_query), k_units=by_work(plan.k_units, by_key))

    attention_gpu.make_plan = reordered
    try:
        yield
    finally:
        attention_gpu.make_plan = make


def by_work(units: Tensor, work: Tensor) -> Tensor:
    """Units with the most work first; work: [tokens] int64."""
    running = torch.nn.functional.pad(work.cumsum(0), (1, 0))
    row, rows, start, _ = units.long().unbind(1)
    first, last = start + row, start + torch.minimum(row + UNIT, rows)
    cost = running[last.clamp(0, len(work))] - running[first.clamp(0, len(work))]
    return units[torch.argsort(torch.where(rows < 0, -1, cost), descending=True, stable=True)].contiguous()


def measure_order(session: Session, shape: Shape) -> dict[str, Any]:
    """Both orders in turn; the order decides nothing but time, so their results are equal to the bit."""
    row: dict[str, Any] = {}
    with heaviest_units_first():
        before = Setting(session, shape)
        row["before"] = before.time(before.ours())
        out = [before.ours().attend()]
        out += torch.autograd.grad(out[0], before.qkv, before.upstream)
    now = Setting(session, shape)
    row |= now.time(now.ours())
    mine = [now.ours().attend()]
    mine += torch.autograd.grad(mine[0], now.qkv, now.upstream)
    row["tuned"] = {"correct": all(torch.equal(a, b) for a, b in zip(out, mine, strict=True))}
    return row


# --- around attention -------------------------------------------------------------------------------------------------


def measure_pointwise(session: Session, name: str, dim: int) -> dict[str, Any]:
    """Bytes that must move, over time: to compare with a copy."""
    tokens = 32 if session.rehearse else 2**30 // (4 * dim)
    dtype = torch.float32 if session.rehearse else torch.bfloat16
    attn, u, above = (torch.randn(tokens, dim, device=session.device, dtype=dtype).requires_grad_() for _ in range(3))
    weight, bias = (torch.randn(4, dim, device=session.device).requires_grad_() for _ in range(2))
    groups = runs_of_groups(tokens, session.device)
    gated = name != "group_layer_norm"

    def run() -> Tensor:
        if gated:
            return norm_gate(attn, u, weight, bias, order=name, group_ids=groups)  # type: ignore[arg-type]
        return group_layer_norm(attn, groups, weight, bias)

    with torch.no_grad():
        forward = session.time_ms(run)
    out = run()
    leaves = [attn, u, weight, bias] if gated else [attn, weight, bias]
    backward = session.time_ms(lambda: torch.autograd.grad(out, leaves, above.detach(), retain_graph=True))
    size = tokens * dim * attn.element_size()
    return {
        "dim": dim,
        "tokens": tokens,
        "forward_ms": round(forward, 4),
        "backward_ms": round(backward, 4),
        "forward_gb_s": round((2 + gated) * size / forward / 1e6, 1),
        "backward_gb_s": round((3 + 2 * gated) * size / backward / 1e6, 1),
    }


def runs_of_groups(tokens: int, device: str) -> Tensor:
    """[tokens] int32: samples of 8 user tokens, 992 of history, 100 realtime ones and 300 candidates, as a step of `step` has them nearly."""
    sample = torch.tensor([8, 992, 100, 300]).repeat(tokens // 1400 + 1)
    kinds = torch.arange(4, dtype=torch.int32).repeat(tokens // 1400 + 1)
    return torch.repeat_interleave(kinds, sample)[:tokens].to(device)


def measure_block(session: Session, name: str, dim: int) -> dict[str, Any]:
    """A block's pieces as one op, and as the operations that they replace; and by how much their results differ, on some rows.

    `sum and norm`: the residual (float32) plus a change (bfloat16) and its bias, and the norm after it; apart the bias takes a pass forward that a
    product would hide, and backward the sum over rows that it takes there too. `split`: a projection to four parts of `dim` with
    SiLU; of it backward, without its two matrix products, is what differs.
    """
    tokens = 32 if session.rehearse else 2**29 // (4 * dim)
    half = torch.float32 if session.rehearse else torch.bfloat16
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator).to(session.device, dtype).requires_grad_()

    groups = runs_of_groups(tokens, session.device)
    x, weight, bias, added = drawn(tokens, dim), drawn(4, dim), drawn(4, dim), drawn(dim)
    change, above = drawn(tokens, dim, dtype=half), torch.randn(tokens, dim, device=session.device)
    matrix = (0.05 * drawn(4 * dim, dim, dtype=half)).detach().requires_grad_()
    shift = drawn(4 * dim, dtype=half)
    sizes, parts = [dim] * 4, [above.to(half)] * 4

    def sum_and_norm(apart: bool, n: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        first, second = (x, change) if n == tokens else (x[:n], change[:n])
        if apart:
            whole = first + (second + added.to(half))
            found = [whole, group_layer_norm(whole, groups[:n], weight, bias).to(half)]
        else:
            found = list(add_norm(first, second, weight, bias, group_ids=groups[:n], dtype=half, shift=added))
        return found, [above[:n], above[:n].to(half)], [x, change, weight, bias, added]

    def split(apart: bool, n: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        given = change if n == tokens else change[:n], matrix, shift, sizes, 4 * dim
        return list((reference_split if apart else silu_split)(*given)), [p[:n] for p in parts], [change, matrix, shift]

    run = sum_and_norm if name == "sum and norm" else split
    row: dict[str, Any] = {"dim": dim, "tokens": tokens}
    results = []
    for apart in (False, True):
        out, upstream, leaves = run(apart, tokens)
        backward = session.time_ms(lambda: torch.autograd.grad(out, leaves, upstream, retain_graph=True))  # noqa: B023
        with torch.no_grad():
            forward = session.time_ms(lambda: run(apart, tokens))  # noqa: B023
        row |= {
            f"{'apart_' * apart}forward_ms": round(forward, 4),
            f"{'apart_' * apart}backward_ms": round(backward, 4),
        }
        out, upstream, leaves = run(apart, min(tokens, 1400))
        results.append([*(value.detach() for value in out), *torch.autograd.grad(out, leaves, upstream)])
    errors = [float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in zip(*results, strict=True)]
    return {**row, "difference": max(errors), "correct": max(errors) < 0.02}


# --- sections ---------------------------------------------------------------------------------------------------------


def attention(session: Session) -> None:
    session.attempt("ceilings", "ceilings", lambda: ceilings(session))
    for shape in shapes(session.rehearse):
        session.attempt("attention", shape.name, lambda s=shape: measure_attention(session, s))
        if shape.targets is not None and META.exists() and not session.rehearse:
            session.attempt("meta", shape.name, lambda s=shape: measure_meta(session, s))


def around(session: Session) -> None:
    for name in ("group_layer_norm", "norm_gate", "gate_norm"):
        for dim in (512,) if session.rehearse else (512, 1024):
            session.attempt("pointwise", f"{name} D={dim}", lambda n=name, d=dim: measure_pointwise(session, n, d))
    for name in ("sum and norm", "split"):
        for dim in (512,) if session.rehearse else (512, 768):
            session.attempt("block", f"{name} D={dim}", lambda n=name, d=dim: measure_block(session, n, d))


def tma(session: Session) -> None:
    for shape in (s for s in shapes(session.rehearse) if s.name in TMA):
        session.attempt("tma", shape.name, lambda s=shape: measure_tma(session, s))


def order(session: Session) -> None:
    for shape in (s for s in shapes(session.rehearse) if s.name in ORDER):
        session.attempt("order", shape.name, lambda s=shape: measure_order(session, s))


def gluon(session: Session) -> None:
    plain = [shape for shape in shapes(session.rehearse) if shape.name in GLUON]
    for shape in (*plain[:2], *other_shapes(session.rehearse), *plain[2:]):
        session.attempt("gluon", shape.name, lambda s=shape: measure_gluon(session, s))


def flex(session: Session) -> None:
    for shape in (s for s in shapes(session.rehearse) if session.rehearse or s.name in FLEX):
        session.attempt("flex", shape.name, lambda s=shape: measure_flex(session, s))

"""Whether each op is correct on this device: against its definition in float64, at most 2x (forward) and 3x (backward) the error
of the definition run in the same precision; and backward must repeat to the bit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.session import Session, environment
from benchmarks.kernels_cases import MASKS, make_batch
from genrank.kernels import jagged, losses, rowwise
from genrank.kernels.attention import (
    AttentionCall,
    RelativeBias,
    delta_attention,
    interval_attention,
    local_positions,
    reference_attention,
    row_scale,
)
from genrank.kernels.norm import group_layer_norm, norm_gate
from genrank.kernels.shared_rows import add_shared_relu
from genrank.kernels.spans import make_spans, span_attention


def largest_error(got: list[Tensor], exact: list[Tensor], rough: list[Tensor]) -> dict[str, Any]:
    """Worst error as a multiple of what is allowed: 2x (forward) and 3x (backward) the error of the definition run
    in the same precision, and a floor of 4 roundings of the largest value."""
    worst = 0.0
    for at, (g, e, r) in enumerate(zip(got, exact, rough, strict=True)):
        e = e.double()
        floor = 4 * torch.finfo(g.dtype).eps * float(e.abs().max())
        allowed = (2 if at == 0 else 3) * float((r.double() - e).abs().max()) + floor
        worst = max(worst, float((g.double() - e).abs().max()) / max(allowed, 1e-30))
    return {"error_over_allowed": round(worst, 3), "correct": worst <= 1.0}


def check_attention(
    session: Session, dtype: torch.dtype, mask: str, dims: tuple[int, int], bias: bool
) -> dict[str, Any]:
    lengths = [20, 0, 1] if session.rehearse else [700, 0, 1, 333, 128, 64]
    batch = make_batch(lengths, mask, seed=5).to(session.device)
    generator = torch.Generator().manual_seed(1)
    heads, tokens = 2, batch.tokens
    base = [torch.randn(tokens, heads, d, generator=generator).to(session.device, dtype) for d in (dims[0], *dims)]
    upstream = torch.randn(tokens, heads, dims[1], generator=generator).to(session.device, dtype)
    tables = [torch.randn(n, heads, generator=generator).to(session.device) for n in (513, 64)] if bias else []
    # Powers of 7 keep time differences off the buckets' edges, where two correct logarithms may disagree.
    stamps = (7 ** torch.randint(0, 6, (tokens,), generator=generator)).to(session.device)

    def outputs(kind: torch.dtype, attend: Callable[[list[Tensor], RelativeBias], Tensor]) -> list[Tensor]:
        leaves = [x.to(kind).requires_grad_() for x in base] + [
            t.to(torch.float64 if kind == torch.float64 else t.dtype).requires_grad_() for t in tables
        ]
        given = RelativeBias(leaves[3], leaves[4], stamps) if bias else RelativeBias()
        out = attend(leaves[:3], given)
        return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]

    divisor = "visible" if bias else "length"
    scale = row_scale(divisor, batch.mask)

    def define(qkv: list[Tensor], given: RelativeBias) -> Tensor:
        call = AttentionCall(batch.mask, scale.to(qkv[0].dtype), given, dims[0] ** -0.5)
        return reference_attention(*qkv, call)

    def ours(qkv: list[Tensor], given: RelativeBias) -> Tensor:
        where = (batch.offsets, batch.begin, batch.end)
        return interval_attention(*qkv, *where, divisor=divisor, bias=given if bias else None)

    got = outputs(dtype, ours)
    row = largest_error(got, outputs(torch.float64, define), outputs(dtype, define))
    again = outputs(dtype, ours)
    row["repeats_to_the_bit"] = all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    row["correct"] = row["correct"] and row["repeats_to_the_bit"]
    return row


def check_gluon(session: Session, mask: str, dim: int, biased: bool) -> dict[str, Any]:
    """The kernels for sm_90: as `check_attention`, and what is not finite stays in its sample."""
    if session.rehearse or torch.cuda.get_device_capability()[0] != 9:
        return {"left_out": "they are for sm_90"}
    with environment("GENRANK_GLUON", "1"):
        row = check_attention(session, torch.bfloat16, mask, (dim, dim), biased)
        batch = make_batch([700, 333, 129], mask, seed=5).to(session.device)
        generator = torch.Generator().manual_seed(1)
        base = torch.randn(4, batch.tokens, 2, dim, generator=generator).to(session.device, torch.bfloat16)
        stamps = (7 ** torch.randint(0, 6, (batch.tokens,), generator=generator)).to(session.device)
        tables = [torch.randn(n, 2, generator=generator).to(session.device) for n in (513, 64)]
        bias = RelativeBias(*tables, stamps) if biased else None
        found = []
        for value, stamp in ((0.0, 0), (torch.nan, 2**62)):
            base[:, 700:1033] = value
            # Another tensor: what kernels make of one they keep.
            stamps = stamps.clone()
            stamps[700:1033] = stamp
            bias = bias and bias._replace(timestamps=stamps)
            leaves = [x.clone().requires_grad_() for x in base[:3]]
            out = interval_attention(*leaves, batch.offsets, batch.begin, batch.end, bias=bias)
            found.append([out.detach(), *torch.autograd.grad(out, leaves, base[3])])
        kept = [(a[:700], a[1033:], b[:700], b[1033:]) for a, b in zip(*found, strict=True)]
        row["isolated"] = all(torch.equal(a, c) and torch.equal(b, d) for a, b, c, d in kept)
    row["correct"] = row["correct"] and row["isolated"]
    return row


def check_gluon_spans(session: Session, dim: int, count: int) -> dict[str, Any]:
    """The kernels for sm_90 of span attention by softmax, with queries apart from keys; what is not finite stays in its sample."""
    if session.rehearse or torch.cuda.get_device_capability()[0] != 9:
        return {"left_out": "they are for sm_90"}
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([[700, 900], [333, 129], [129, 1000]])
    offsets = F.pad(lengths.cumsum(0), (0, 0, 1, 0)).to(session.device)
    most = torch.repeat_interleave(lengths[:, 1], lengths[:, 0])
    edges = (
        (torch.rand(2 * count, len(most), generator=generator) * (most + 1)).long().sort(0).values.to(session.device)
    )
    spans = make_spans(offsets[:, 0], offsets[:, 1], [(edges[2 * i], edges[2 * i + 1]) for i in range(count)])
    tokens = lengths.sum(0).tolist()
    base = [torch.randn(tokens[side], 2, dim, generator=generator) for side in (0, 1, 1, 0)]
    base = [x.to(session.device, torch.bfloat16) for x in base]

    def outputs(dtype: torch.dtype, backend: str) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in base[:3]]
        with implementation(backend), environment("GENRANK_GLUON", "1"):
            out = span_attention(*leaves, spans)
            return [out.detach(), *torch.autograd.grad(out, leaves, base[3].to(dtype))]

    exact, rough = outputs(torch.float64, "reference"), outputs(torch.bfloat16, "reference")
    clean = outputs(torch.bfloat16, "triton")
    row = largest_error(clean, exact, rough)
    for at, (low, high) in enumerate(((700, 1033), (900, 1029), (900, 1029), (700, 1033))):
        base[at][low:high] = torch.nan
    dirty = outputs(torch.bfloat16, "triton")
    parts = ((700, 1033), (700, 1033), (900, 1029), (900, 1029))
    row["isolated"] = all(
        torch.equal(a[:low], b[:low]) and torch.equal(a[high:], b[high:])
        for a, b, (low, high) in zip(clean, dirty, parts, strict=True)
    )
    row["correct"] = row["correct"] and row["isolated"]
    return row


def check_delta(session: Session, dtype: torch.dtype) -> dict[str, Any]:
    """New queries against cached keys give the rows of the whole."""
    batch = make_batch([20, 1] if session.rehearse else [700, 1, 333], "mtgr", seed=5).to(session.device)
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(batch.tokens, 2, 64, generator=generator).to(session.device, dtype) for _ in range(3))
    chosen = (torch.rand(batch.tokens, generator=generator) < 0.3).to(session.device)
    counts = torch.stack([part.sum() for part in chosen.tensor_split(batch.offsets[1:-1].cpu())])
    q_offsets = F.pad(counts.cumsum(0), (1, 0))
    positions = local_positions(batch.offsets, batch.tokens)
    rows = (positions[chosen], batch.begin[chosen], batch.end[chosen])
    whole = interval_attention(q, k, v, batch.offsets, batch.begin, batch.end)[chosen]
    some = delta_attention(q[chosen], k, v, q_offsets, batch.offsets, *rows)
    return largest_error([some], [whole], [whole])


def check_norm(session: Session, dtype: torch.dtype, order: str) -> dict[str, Any]:
    tokens = 5 if session.rehearse else 4097
    generator = torch.Generator().manual_seed(1)
    base = [torch.randn(tokens, 192, generator=generator).to(session.device, dtype) for _ in range(3)]
    tables = [torch.randn(4, 192, generator=generator).to(session.device) for _ in range(2)]
    groups = torch.randint(0, 4, (tokens,), generator=generator, dtype=torch.int32).to(session.device)

    def outputs(kind: torch.dtype, backend: str) -> list[Tensor]:
        attn, u = (x.to(kind).requires_grad_() for x in base[:2])
        weight, bias = (t.to(kind).requires_grad_() for t in tables)
        with implementation(backend):
            if order == "plain":
                out = group_layer_norm(attn, groups, weight, bias)
                return [out.detach(), *torch.autograd.grad(out, [attn, weight, bias], base[2].to(kind))]
            out = norm_gate(attn, u, weight, bias, order=order, group_ids=groups)  # type: ignore[arg-type]
            return [out.detach(), *torch.autograd.grad(out, [attn, u, weight, bias], base[2].to(kind))]

    return largest_error(outputs(dtype, "triton"), outputs(torch.float64, "reference"), outputs(dtype, "reference"))


def check_jagged(session: Session, dtype: torch.dtype) -> dict[str, Any]:
    """Rows are moved, forward and backward: equal or wrong."""
    generator = torch.Generator().manual_seed(1)
    parts = []
    for _ in range(3):
        lengths = torch.randint(0, 4 if session.rehearse else 60, (7,), generator=generator)
        offsets = F.pad(lengths.cumsum(0), (1, 0))
        values = torch.randn(int(offsets[-1]), 48, generator=generator).to(session.device, dtype)
        parts.append((values, offsets.to(session.device)))
    upstream = torch.randn(sum(len(values) for values, _ in parts), 48, generator=generator).to(session.device, dtype)

    def outputs(kind: torch.dtype, backend: str) -> list[Tensor]:
        leaves = [values.to(kind).requires_grad_() for values, _ in parts]
        with implementation(backend):
            whole, _ = jagged.jagged_concat([(x, o) for x, (_, o) in zip(leaves, parts, strict=True)])
            return [whole.detach(), *torch.autograd.grad(whole, leaves, upstream.to(kind))]

    ours, exact = outputs(dtype, "triton"), outputs(dtype, "reference")
    return {"correct": all(torch.equal(a, b) for a, b in zip(ours, exact, strict=True))}


def check_rowwise(session: Session) -> dict[str, Any]:
    """The same updates give the same tables on both devices."""
    generator = torch.Generator().manual_seed(1)
    count = 40 if session.rehearse else 200_000
    tables = [torch.zeros(2 * count, 16, device=session.device), torch.zeros(2 * count, 16)]
    states = [torch.zeros(2 * count, device=session.device), torch.zeros(2 * count)]
    for _ in range(3):
        rows = torch.randint(0, 2 * count, (count,), generator=generator)
        grads = torch.randn(count, 16, generator=generator)
        for backend, table, state in zip(("triton", "reference"), tables, states, strict=True):
            with implementation(backend):
                rowwise.rowwise_adagrad_(table, state, rows.to(table.device), grads.to(table.device), lr=0.1)
    error = float((tables[0].cpu() - tables[1]).abs().max())
    return {"table_error": error, "correct": error < 1e-4}


def check_losses(session: Session) -> dict[str, Any]:
    """Tasks of every kind, two sets of logits over the same labels."""
    generator = torch.Generator().manual_seed(1)
    binary = [losses.TaskRow(None, 1.0), losses.TaskRow(0, 2.0), losses.TaskRow(1, 3.0), losses.TaskRow(0, 0.5)]
    logits = 4 * torch.randn(2, 5, 300 if session.rehearse else 20_000, generator=generator).to(session.device)
    drawn = torch.rand(2, *logits.shape[1:], generator=generator).to(session.device)
    targets, weights = (drawn[0] < 0.3).float(), (drawn[1] < 0.8).float()
    upstream = torch.arange(1.0, 6.0, device=session.device)

    def outputs(kind: torch.dtype, ours: bool) -> list[Tensor]:
        leaf, y, w = logits.to(kind).requires_grad_(), targets.to(kind), weights.to(kind)
        if ours:
            with implementation("triton"):
                sums = losses.loss_sums([each.unbind() for each in leaf], y.unbind(), w.unbind(), binary)
                return [sums.detach(), *torch.autograd.grad(sums, leaf, upstream)]
        sums = losses.reference_loss_sums(leaf, y, w, binary)
        return [sums.detach(), *torch.autograd.grad(sums, leaf, upstream.to(kind))]

    return largest_error(outputs(torch.float32, True), outputs(torch.float64, False), outputs(torch.float32, False))


def check_shared(session: Session, dtype: torch.dtype) -> dict[str, Any]:
    """A row of each sample added to the sample's rows; its gradient is their sum."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(0, 4 if session.rehearse else 60, (40,), generator=generator)
    offsets, rows = F.pad(lengths.cumsum(0), (1, 0)).to(session.device), int(lengths.sum())
    base = [torch.randn(n, 128, generator=generator).to(session.device, dtype) for n in (rows, 40, rows)]

    def outputs(kind: torch.dtype, backend: str) -> list[Tensor]:
        leaves = [each.to(kind).requires_grad_() for each in base[:2]]
        with implementation(backend):
            out = add_shared_relu(*leaves, offsets)
            return [out.detach(), *torch.autograd.grad(out, leaves, base[2].to(kind))]

    return largest_error(outputs(dtype, "triton"), outputs(torch.float64, "reference"), outputs(dtype, "reference"))


def implementation(name: str) -> AbstractContextManager[None]:
    return environment("GENRANK_KERNELS", name)


def check_all(session: Session) -> None:
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if session.rehearse:
        dtypes = {"fp32": torch.float32}
    for name, dtype in dtypes.items():
        masks = MASKS if name == "bf16" else ("mtgr", "random")
        variants = [((48, 128), True)]
        if name == "bf16" and not session.rehearse:
            variants = [((64, 64), False), ((48, 128), True), ((256, 256), False)]
        for mask in masks[-2:] if session.rehearse else masks:
            for dims, bias in variants:
                if dims[0] == 256 and mask not in ("mtgr", "causal"):
                    continue

                def attention(
                    d: torch.dtype = dtype, m: str = mask, s: tuple[int, int] = dims, b: bool = bias
                ) -> dict[str, Any]:
                    return check_attention(session, d, m, s, b)

                session.attempt(
                    "correctness", f"attention {name} {mask} {dims[0]}x{dims[1]}{' bias' * bias}", attention
                )
        for dim in (64, 128, 256) if name == "bf16" else ():
            for mask, biased in (*((m, False) for m in ("causal", "mtgr", "random")), ("mtgr", True), ("random", True)):

                def gluon(m: str = mask, d: int = dim, b: bool = biased) -> dict[str, Any]:
                    return check_gluon(session, m, d, b)

                session.attempt("correctness", f"gluon {mask} {dim}{' bias' * biased}", gluon)
        for dim, count in ((64, 1), (64, 3), (128, 2)) if name == "bf16" else ():
            session.attempt(
                "correctness", f"gluon spans {dim} {count}", lambda d=dim, c=count: check_gluon_spans(session, d, c)
            )
        session.attempt("correctness", f"delta attention {name}", lambda d=dtype: check_delta(session, d))
        for order in ("plain", "norm_gate", "gate_norm"):
            session.attempt("correctness", f"norm {name} {order}", lambda d=dtype, o=order: check_norm(session, d, o))
        session.attempt("correctness", f"jagged {name}", lambda d=dtype: check_jagged(session, d))
        session.attempt("correctness", f"shared rows {name}", lambda d=dtype: check_shared(session, d))
    session.attempt("correctness", "losses", lambda: check_losses(session))
    session.attempt("correctness", "rowwise", lambda: check_rowwise(session))

"""Every kernel on this machine's GPU: first right, then how fast, against its peers and against the chip.

    python -m benchmarks.gpu [--budget 480] [--only TEXT]      measure, write benchmarks/results/gpu.json and
    benchmarks/gpu.md python -m benchmarks.gpu --rehearse                        run every path once, tiny, in
    Triton's interpreter; write nothing

Needs torch and triton; with matplotlib it draws plots. Meta's kernel is measured when its repository lies in `peers/`:

    git clone https://github.com/facebookresearch/generative-recommenders peers/generative-recommenders

Rates count visible pairs only: forward 2 H (Dqk + Dv) flops a pair, backward 2 H (3 Dqk + 2 Dv). Times are medians,
all of one run. Ceilings are measured in the same run: a large bfloat16 matrix product and a large copy. Exits 1 if
an op is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels_cases import MASKS, Batch, hstu, make_batch, mtgr
from kernels import idmap, jagged
from kernels.attention import RelativeBias, interval_attention, reference_attention, row_scale
from kernels.norm import group_layer_norm, norm_gate

HERE = Path(__file__).parent
RESULT = HERE / "results" / "gpu.json"
PAGE = HERE / "gpu.md"
PLOT = HERE / "results" / "gpu.png"
PEERS = HERE.parent / "peers" / "generative-recommenders"
MARK = "<!-- written by benchmarks/gpu.py below this line -->"


@dataclass
class Session:
    """What one run knows: device, deadline, and the results so far, saved after each."""

    device: str
    deadline: float
    rehearse: bool
    only: str
    results: dict[str, Any] = field(default_factory=dict)

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def save(self) -> None:
        if not self.rehearse:
            RESULT.parent.mkdir(exist_ok=True)
            RESULT.write_text(json.dumps(self.results, indent=1) + "\n")

    def time_ms(self, run: Callable[[], object]) -> float:
        """Median milliseconds of `run`, after warming up (and, the first time, autotuning)."""
        run()
        if self.rehearse:
            return 1.0
        import triton.testing

        return float(triton.testing.do_bench(run, warmup=20, rep=100, return_mode="median"))

    def attempt(self, section: str, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """One row of a section; a failure is a row too, and past the deadline what is left out is named."""
        rows = self.results.setdefault(section, [])
        if self.only and self.only not in f"{section} {name}":
            return
        if self.left() <= 0:
            rows.append({"name": name, "left_out": "the budget was spent"})
            return
        start = time.monotonic()
        try:
            row = measure()
        except Exception as error:
            if self.rehearse:
                raise
            traceback.print_exc()
            row = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        rows.append({"name": name, **row, "seconds_spent": round(time.monotonic() - start, 1)})
        print(json.dumps(rows[-1]), flush=True)
        self.save()


# --- right ------------------------------------------------------------------------------------------------------------


def largest_error(got: list[Tensor], exact: list[Tensor], rough: list[Tensor]) -> dict[str, Any]:
    """Worst error as a multiple of what is allowed: 2x (forward) and 3x (backward) the error of the definition run
    in the same precision, and a floor of 4 roundings of the largest value."""
    worst = 0.0
    for at, (g, e, r) in enumerate(zip(got, exact, rough, strict=True)):
        e = e.double()
        floor = 4 * torch.finfo(g.dtype).eps * float(e.abs().max())
        allowed = (2 if at == 0 else 3) * float((r.double() - e).abs().max()) + floor
        worst = max(worst, float((g.double() - e).abs().max()) / max(allowed, 1e-30))
    return {"error_over_allowed": round(worst, 3), "right": worst <= 1.0}


def check_attention(
    session: Session, dtype: torch.dtype, mask: str, dims: tuple[int, int], bias: bool
) -> dict[str, Any]:
    lengths = [20, 0, 1] if session.rehearse else [700, 0, 1, 333, 128, 64]
    batch = make_batch(lengths, mask, seed=5).to(session.device)
    generator = torch.Generator().manual_seed(1)
    heads, tokens = 2, batch.tokens
    base = [torch.randn(tokens, heads, d, generator=generator).to(session.device, dtype) for d in (dims[0], *dims)]
    upstream = torch.randn(tokens, heads, dims[1], generator=generator).to(session.device, dtype)
    tables = [torch.randn(n, heads, generator=generator).to(session.device) for n in (101, 24)] if bias else []
    # Powers of 7 keep time differences off the buckets' edges, where two correct logarithms may disagree.
    stamps = (7 ** torch.randint(0, 6, (tokens,), generator=generator)).to(session.device)

    def outputs(kind: torch.dtype, attend: Callable[[list[Tensor], RelativeBias], Tensor]) -> list[Tensor]:
        leaves = [x.to(kind).requires_grad_() for x in base] + [
            t.to(torch.float64 if kind == torch.float64 else t.dtype).requires_grad_() for t in tables
        ]
        given = RelativeBias(leaves[3], leaves[4], stamps) if bias else RelativeBias()
        out = attend(leaves[:3], given)
        return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]

    scale = row_scale("length", batch.offsets, batch.offsets, None, batch.begin, batch.end)
    where = (batch.offsets, batch.offsets, None, batch.begin, batch.end)

    def define(qkv: list[Tensor], given: RelativeBias) -> Tensor:
        return reference_attention(*qkv, *where, scale.to(qkv[0].dtype), given, dims[0] ** -0.5)

    def ours(qkv: list[Tensor], given: RelativeBias) -> Tensor:
        return interval_attention(*qkv, batch.offsets, batch.begin, batch.end, bias=given if bias else None)

    got = outputs(dtype, ours)
    row = largest_error(got, outputs(torch.float64, define), outputs(dtype, define))
    again = outputs(dtype, ours)
    row["repeats_to_the_bit"] = all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    row["right"] = row["right"] and row["repeats_to_the_bit"]
    return row


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
    generator = torch.Generator().manual_seed(1)
    parts = []
    for _ in range(3):
        lengths = torch.randint(0, 4 if session.rehearse else 60, (7,), generator=generator)
        offsets = F.pad(lengths.cumsum(0), (1, 0))
        values = torch.randn(int(offsets[-1]), 48, generator=generator).to(session.device, dtype)
        parts.append((values, offsets.to(session.device)))
    with implementation("triton"):
        whole, offsets = jagged.jagged_concat(parts)
        back = jagged.jagged_split(whole, offsets, [o for _, o in parts])
    with implementation("reference"):
        exact = jagged.jagged_concat(parts)[0]
    moved = torch.equal(whole, exact) and all(torch.equal(a, b) for a, (b, _) in zip(back, parts, strict=True))
    groups = torch.randint(0, 3, (len(whole),), generator=generator, dtype=torch.int32).to(session.device)
    weight = (torch.randn(3, 48, 80, generator=generator) / 7).to(session.device, dtype)

    def project(kind: torch.dtype, backend: str) -> list[Tensor]:
        x, w = whole.to(kind).requires_grad_(), weight.to(kind).requires_grad_()
        with implementation(backend):
            y = jagged.grouped_linear(x, groups, w)
            return [y.detach(), *torch.autograd.grad(y, [x, w], torch.ones_like(y))]

    row = largest_error(project(dtype, "triton"), project(torch.float64, "reference"), project(dtype, "reference"))
    row["right"] = row["right"] and moved
    return row


def check_idmap(session: Session) -> dict[str, Any]:
    """The same calls on both devices give the same rows; the same updates the same tables."""
    generator = torch.Generator().manual_seed(1)
    count = 40 if session.rehearse else 200_000
    maps = [idmap.IdMap(16, session.device), idmap.IdMap(16, "cpu")]
    tables = [torch.zeros(2 * count, 16, device=session.device), torch.zeros(2 * count, 16)]
    states = [torch.zeros(2 * count, device=session.device), torch.zeros(2 * count)]
    same = True
    for step in range(3):
        ids = torch.randint(-count, count, (count,), generator=generator)
        grads = torch.randn(count, 16, generator=generator)
        rows = []
        for backend, ours, table, state in zip(("triton", "reference"), maps, tables, states, strict=True):
            device = table.device
            with implementation(backend):
                rows.append(ours.insert(ids.to(device)).rows)
                idmap.rowwise_adagrad_(table, state, rows[-1], grads.to(device), lr=0.1)
                ours.evict(ids[: count // 4 * step].to(device))
        same = same and torch.equal(rows[0].cpu(), rows[1])
    error = float((tables[0].cpu() - tables[1]).abs().max())
    return {"same_rows": same, "table_error": error, "right": same and error < 1e-4}


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """An environment variable for the time of a block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def implementation(name: str) -> AbstractContextManager[None]:
    return environment("GENRANK_KERNELS", name)


def check_all(session: Session) -> None:
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if session.rehearse:
        dtypes = {"fp32": torch.float32}
    for name, dtype in dtypes.items():
        masks = MASKS if name == "bf16" else ("mtgr", "random")
        variants = [((48, 128), True)] if name != "bf16" or session.rehearse else [((64, 64), False), ((48, 128), True)]
        for mask in masks[-2:] if session.rehearse else masks:
            for dims, bias in variants:

                def attention(
                    d: torch.dtype = dtype, m: str = mask, s: tuple[int, int] = dims, b: bool = bias
                ) -> dict[str, Any]:
                    return check_attention(session, d, m, s, b)

                session.attempt("right", f"attention {name} {mask} {dims[0]}x{dims[1]}{' bias' * bias}", attention)
        for order in ("plain", "norm_gate", "gate_norm"):
            session.attempt("right", f"norm {name} {order}", lambda d=dtype, o=order: check_norm(session, d, o))
        session.attempt("right", f"jagged {name}", lambda d=dtype: check_jagged(session, d))
    session.attempt("right", "idmap", lambda: check_idmap(session))


# --- fast -------------------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Shape:
    """A benchmark batch; `targets` and `window` say how Meta's kernel expresses it, None where it cannot."""

    name: str
    make: Callable[[], Batch]
    heads: int
    dim: int
    longest: int
    targets: int | None = None
    window: int = 0
    flex: bool = True


def uniform(samples: int, longest: int) -> list[int]:
    """Lengths 0.9 N .. N."""
    generator = torch.Generator().manual_seed(longest)
    low = max(1, int(0.9 * longest))
    return torch.randint(low, longest + 1, (samples,), generator=generator).tolist()


def zipf(samples: int, longest: int) -> list[int]:
    """Most samples short, some as long as can be: rank-frequency slope 1."""
    generator = torch.Generator().manual_seed(longest)
    ranks = torch.rand(samples, generator=generator).mul(math.log(longest / 32)).exp() * 32
    return ranks.int().clamp(1, longest).tolist()


def shapes(session: Session) -> Iterator[Shape]:
    """In order of what matters most, should the budget end early."""
    if session.rehearse:
        yield Shape("mtgr K=8", lambda: mtgr(2, 10, 4, 8), 2, 16, 22)
        yield Shape("causal N=32", lambda: hstu(uniform(2, 32)), 2, 16, 32, targets=0)
        return
    tokens = 2**18
    for n in (4096, 1024):
        yield Shape(f"causal N={n}", lambda n=n: hstu(uniform(tokens // n, n)), 4, 128, n, targets=0)
    for k in (32, 300, 1024):
        yield Shape(f"mtgr K={k} H2 D256", lambda k=k: mtgr(64, 1000, 100, k), 2, 256, 1100 + k)
    yield Shape("targets K=1024 N=2124 H2 D256", lambda: hstu([2124] * 64, 1024), 2, 256, 2124, targets=1024)
    for n in (2048, 8192, 16384, 512):
        yield Shape(f"causal N={n}", lambda n=n: hstu(uniform(tokens // n, n)), 4, 128, n, targets=0)
    for n in (1024, 4096):
        yield Shape(f"targets 20 N={n}", lambda n=n: hstu(uniform(tokens // n, n), 20), 4, 128, n, targets=20)
    yield Shape("zipf N=4096", lambda: hstu(zipf(512, 4096)), 4, 128, 4096, targets=0)
    yield Shape(
        "window 1024 N=8192", lambda: hstu(uniform(32, 8192), window=1024), 4, 128, 8192, targets=0, window=1024
    )
    for k in (32, 300, 1024):
        yield Shape(f"mtgr K={k} H3 D256", lambda k=k: mtgr(64, 1000, 100, k), 3, 256, 1100 + k, flex=False)


def measure_attention(session: Session, shape: Shape) -> dict[str, Any]:
    batch = shape.make().to(session.device)
    tokens, dtype = batch.tokens, torch.float32 if session.rehearse else torch.bfloat16
    packed = torch.randn(tokens, shape.heads, 3 * shape.dim, device=session.device, dtype=dtype)
    q, k, v = (x.detach().requires_grad_() for x in packed.split(shape.dim, 2))
    upstream = torch.randn(tokens, shape.heads, shape.dim, device=session.device, dtype=dtype)
    forward_flops = 4 * shape.heads * shape.dim * batch.pairs
    row: dict[str, Any] = {
        "heads": shape.heads, "dim": shape.dim, "samples": len(batch.offsets) - 1, "tokens": tokens, "pairs": batch.pairs,
    }  # fmt: skip

    def record(who: str, attend: Callable[[], Tensor], of: list[Tensor], above: Tensor) -> None:
        with torch.no_grad():
            forward = session.time_ms(attend)
        out = attend()
        backward = session.time_ms(lambda: torch.autograd.grad(out, of, above, retain_graph=True))
        row[who] = {
            "forward_ms": round(forward, 4),
            "forward_tflops": round(forward_flops / forward / 1e9, 1),
            "backward_ms": round(backward, 4),
            "backward_tflops": round(2.5 * forward_flops / backward / 1e9, 1),
        }

    record("genrank", lambda: interval_attention(q, k, v, batch.offsets, batch.begin, batch.end), [q, k, v], upstream)
    if shape.longest <= 4300:
        row["first_sample"] = check_first_sample(batch, q, k, v)
        session.results["right"].append({"name": f"tuned {shape.name}", **row["first_sample"]})
    peers: list[tuple[str, Callable[[], tuple[Callable[[], Tensor], list[Tensor], Tensor]]]] = []
    if shape.targets is not None:
        peers.append(("meta_triton", lambda: meta_peer(shape, batch, q, k, v, upstream)))
    if shape.flex:
        peers.append(("flex_attention", lambda: flex_peer(session, batch, q, k, v, upstream)))
    for who, prepare in peers:
        try:
            record(who, *prepare())
            for direction in ("forward", "backward"):
                row[who][f"{direction}_ratio"] = round(
                    row[who][f"{direction}_ms"] / row["genrank"][f"{direction}_ms"], 2
                )
        except Exception as error:
            row[who] = {"not_measured": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    return row


def check_first_sample(batch: Batch, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Any]:
    """The configuration that the autotuner chose, on the shape being timed, against the definition in float32."""
    n = int(batch.offsets[1])
    first = Batch(batch.offsets[:2], batch.begin[:n], batch.end[:n])
    scale = row_scale("length", first.offsets, first.offsets, None, first.begin, first.end)
    where = (first.offsets, first.offsets, None, first.begin, first.end)
    with torch.no_grad():
        got = interval_attention(q, k, v, batch.offsets, batch.begin, batch.end)[:n]
        exact, rough = (
            reference_attention(
                *(x[:n].to(kind) for x in (q, k, v)), *where, scale.to(kind), RelativeBias(), q.shape[2] ** -0.5
            )
            for kind in (torch.float32, q.dtype)
        )
    return largest_error([got], [exact], [rough])


def warm(session: Session, part: int, parts: int) -> None:
    """Compile this part of all configurations, ours and Meta's, into Triton's cache, by running each on a tiny
    batch.
    """
    from kernels import attention_triton

    for tuned in (
        attention_triton.forward_tuned,
        attention_triton.backward_q_tuned,
        attention_triton.backward_kv_tuned,
    ):
        tuned.configs = tuned.configs[part::parts] or tuned.configs[:1]
    if PEERS.exists():
        for kernel in meta_kernels():
            kernel.configs = kernel.configs[part::parts] or kernel.configs[:1]
    variants = {(s.heads, s.dim, s.targets, s.window) for s in shapes(session)}
    for heads, dim, targets, window in sorted(variants, key=str):
        batch = hstu([64] * 16, min(targets or 0, 32)).to(session.device)
        packed = torch.randn(batch.tokens, heads, 3 * dim, device=session.device, dtype=torch.bfloat16)
        q, k, v = (x.detach().requires_grad_() for x in packed.split(dim, 2))
        above = torch.randn(batch.tokens, heads, dim, device=session.device, dtype=torch.bfloat16)
        torch.autograd.grad(interval_attention(q, k, v, batch.offsets, batch.begin, batch.end), [q, k, v], above)
        if targets is None or not PEERS.exists():
            continue
        shape = Shape("warm", lambda b=batch: b, heads, dim, 64, min(targets, 32), window)
        run, _, _ = meta_peer(shape, batch, q, k, v, above)
        torch.autograd.grad(run(), [q, k, v], above)


def warm_up(session: Session) -> None:
    """`warm` in one process a core: compiling is most of the first run, and happens before anything is timed."""
    parts = max(1, (os.cpu_count() or 2) - 2)
    command = [sys.executable, "-m", "benchmarks.gpu", "--warm"]
    start = time.monotonic()
    workers = [
        subprocess.Popen([*command, str(part), str(parts)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for part in range(parts)
    ]
    for worker in workers:
        try:
            worker.wait(timeout=max(1.0, session.left() / 2))
        except subprocess.TimeoutExpired:
            worker.kill()
    done = sum(worker.returncode == 0 for worker in workers)
    session.results["warm_up"] = {"seconds": round(time.monotonic() - start, 1), "workers": parts, "finished": done}
    print(json.dumps(session.results["warm_up"]), flush=True)


def meta_kernels() -> list[Any]:
    """Meta's two autotuned kernels, from `peers/`."""
    if not PEERS.exists():
        raise FileNotFoundError(f"{PEERS.relative_to(HERE.parent)} is not there")
    if str(PEERS) not in sys.path:
        sys.path.insert(0, str(PEERS))
    from generative_recommenders.ops.triton import triton_hstu_attention as meta

    return [meta._hstu_attn_fwd, meta._hstu_attn_bwd]


def meta_peer(
    shape: Shape, batch: Batch, q: Tensor, k: Tensor, v: Tensor, upstream: Tensor
) -> tuple[Callable[[], Tensor], list[Tensor], Tensor]:
    """Meta's Triton kernel with its best setting: the runtime length in its autotune key, samples sorted by length."""
    meta_kernels()
    from generative_recommenders.common import set_use_runtime_max_seq_len
    from generative_recommenders.ops.triton.triton_hstu_attention import triton_hstu_mha

    set_use_runtime_max_seq_len(True)
    samples = len(batch.offsets) - 1
    targets = torch.full((samples,), shape.targets or 0, dtype=torch.int32, device=q.device) if shape.targets else None

    def attend() -> Tensor:
        return triton_hstu_mha(
            N=shape.longest, alpha=shape.dim**-0.5, q=q, k=k, v=v, seq_offsets=batch.offsets, num_targets=targets,
            max_attn_len=shape.window, sort_by_length=True,
        )  # fmt: skip

    return attend, [q, k, v], upstream


def flex_peer(
    session: Session, batch: Batch, q: Tensor, k: Tensor, v: Tensor, upstream: Tensor
) -> tuple[Callable[[], Tensor], list[Tensor], Tensor]:
    """PyTorch's FlexAttention with the same mask over the packed batch. It has a softmax where we have SiLU: the
    peer does the same matrix products over the same pairs, not the same function."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if session.rehearse:
        raise RuntimeError("FlexAttention is not rehearsed")
    index = torch.arange(batch.tokens, device=q.device)
    sample = torch.searchsorted(batch.offsets, index, right=True) - 1
    start = batch.offsets[sample]
    low, high = start + batch.begin, start + batch.end

    def visible(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return ((column >= low[row]) & (column < high[row])) | (row == column)

    mask = create_block_mask(visible, None, None, batch.tokens, batch.tokens, device=q.device, _compile=True)
    run = torch.compile(flex_attention, dynamic=False)
    dense = [x.detach().transpose(0, 1).unsqueeze(0).contiguous().requires_grad_() for x in (q, k, v)]
    above = upstream.transpose(0, 1).unsqueeze(0).contiguous()
    return lambda: run(*dense, block_mask=mask), dense, above


def measure_pointwise(session: Session, name: str, dim: int) -> dict[str, Any]:
    """Share of the copy bandwidth: bytes that must move, over time, over the rate of a copy."""
    tokens = 32 if session.rehearse else 2**30 // (4 * dim)
    dtype = torch.float32 if session.rehearse else torch.bfloat16
    attn, u, above = (torch.randn(tokens, dim, device=session.device, dtype=dtype).requires_grad_() for _ in range(3))
    weight, bias = (torch.randn(4, dim, device=session.device).requires_grad_() for _ in range(2))
    groups = torch.randint(0, 4, (tokens,), dtype=torch.int32, device=session.device)
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
    copy = session.results["ceilings"]["copy_gb_s"]
    rates = {"forward": (2 + gated) * size / forward / 1e6, "backward": (3 + 2 * gated) * size / backward / 1e6}
    row: dict[str, Any] = {
        "dim": dim,
        "tokens": tokens,
        "forward_ms": round(forward, 4),
        "backward_ms": round(backward, 4),
    }
    for direction, rate in rates.items():
        row[f"{direction}_gb_s"] = round(rate, 1)
        row[f"{direction}_share_of_copy"] = round(rate / copy, 3)
    return row


def measure_all(session: Session) -> None:
    for shape in shapes(session):
        session.attempt("attention", shape.name, lambda s=shape: measure_attention(session, s))
    for name in ("group_layer_norm", "norm_gate", "gate_norm"):
        for dim in (512,) if session.rehearse else (512, 1024):
            session.attempt("pointwise", f"{name} D={dim}", lambda n=name, d=dim: measure_pointwise(session, n, d))


# --- told -------------------------------------------------------------------------------------------------------------


def targets_met(results: dict[str, Any]) -> list[tuple[str, str, bool | None]]:
    """(what must show, what was measured, whether it does); None where it was not measured."""
    matmul = results["ceilings"]["matmul_tflops"]
    rows = {row["name"]: row for row in results.get("attention", []) if "genrank" in row}
    told: list[tuple[str, str, bool | None]] = []

    def add(what: str, values: list[float], least: float, unit: str = "") -> None:
        text = f"{min(values):.2f}{unit} to {max(values):.2f}{unit}" if values else "not measured"
        told.append((what, text, min(values) >= least if values else None))

    long = [rows[f"causal N={n}"]["genrank"] for n in (4096, 8192, 16384) if f"causal N={n}" in rows]
    add("forward >= 60 % of matmul, D 128, N >= 4096 causal", [r["forward_tflops"] / matmul for r in long], 0.6)
    add("backward >= 50 % of matmul, D 128, N >= 4096 causal", [r["backward_tflops"] / matmul for r in long], 0.5)
    meta = {n: r["meta_triton"] for n, r in rows.items() if "forward_ratio" in r.get("meta_triton", {})}
    own = [r for n, r in meta.items() if "K=1024" not in n]
    for direction in ("forward", "backward"):
        add(f">= 1.3x Meta's Triton, {direction}, at its shapes", [r[f"{direction}_ratio"] for r in own], 1.3, "x")
        many = [r[f"{direction}_ratio"] for n, r in meta.items() if "K=1024" in n]
        add(f">= 2x Meta's Triton, {direction}, at K = 1024", many, 2.0, "x")
    by_k = [
        rows[f"mtgr K={k} H2 D256"]["genrank"]["forward_ms"] for k in (32, 300, 1024) if f"mtgr K={k} H2 D256" in rows
    ]
    if len(by_k) == 3:
        slopes = ((by_k[1] - by_k[0]) / 268, (by_k[2] - by_k[1]) / 724)
        told.append(
            (
                "time linear in K: second slope / first within 1.25",
                f"{slopes[1] / slopes[0]:.2f}",
                slopes[1] <= 1.25 * slopes[0],
            )
        )
    else:
        told.append(("time linear in K", "not measured", None))
    shares = [r["forward_share_of_copy"] for r in results.get("pointwise", []) if "forward_share_of_copy" in r]
    add("GLN and norm-gate forward >= 85 % of copy bandwidth", shares, 0.85)
    return told


def page(results: dict[str, Any]) -> str:
    lines = [
        f"Measured on {results['gpu']}, torch {results['torch']}, triton {results['triton']}, {results['date']}.",
        "",
    ]
    ceiling = results["ceilings"]
    lines += [
        f"Ceilings in this run: matrix product {ceiling['matmul_tflops']} TFLOPS, copy {ceiling['copy_gb_s']} GB/s.",
        "",
    ]
    lines += ["| must show | measured | |", "|---|---|---|"]
    lines += [f"| {w} | {t} | {'-' if ok is None else 'yes' if ok else 'NO'} |" for w, t, ok in targets_met(results)]
    lines += [
        "",
        "| attention | forward ms | TFLOPS | % matmul | backward ms | TFLOPS | % matmul | Meta fwd, bwd | Flex fwd, bwd |",
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for row in results.get("attention", []):
        if "genrank" not in row:
            lines.append(f"| {row['name']} | {row.get('error') or row.get('left_out')} | | | | | | | |")
            continue
        ours = row["genrank"]
        cells = [row["name"]]
        for way in ("forward", "backward"):
            rate = ours[f"{way}_tflops"]
            cells += [f"{ours[f'{way}_ms']:.3f}", f"{rate:.0f}", f"{100 * rate / ceiling['matmul_tflops']:.0f}"]
        for who in ("meta_triton", "flex_attention"):
            peer = row.get(who, {})
            cells.append(
                f"{peer['forward_ratio']}x, {peer['backward_ratio']}x"
                if "forward_ratio" in peer
                else peer.get("not_measured", "cannot express it")
            )
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| pointwise | forward GB/s | of copy | backward GB/s | of copy |", "|---|---|---|---|---|"]
    for row in results.get("pointwise", []):
        if "forward_gb_s" in row:
            lines.append(
                f"| {row['name']} | {row['forward_gb_s']} | {row['forward_share_of_copy']:.0%} "
                f"| {row['backward_gb_s']} | {row['backward_share_of_copy']:.0%} |"
            )
    wrong = [row["name"] for row in results.get("right", []) if not row.get("right")]
    lines += [
        "",
        f"Correctness: {len(results.get('right', []))} checks; {'wrong: ' + ', '.join(wrong) if wrong else 'all right'}.",
    ]
    return "\n".join([*lines, ""])


def plot(results: dict[str, Any]) -> None:
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no plot")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in results.get("attention", []) if "genrank" in row]
    figure, axes = pyplot.subplots(1, 2, figsize=(14, 0.4 * len(rows) + 2), sharey=True)
    for axis, way in zip(axes, ("forward", "backward"), strict=True):
        for shift, who in enumerate(("genrank", "meta_triton", "flex_attention")):
            at = [i + 0.27 * (shift - 1) for i, r in enumerate(rows) if f"{way}_tflops" in r.get(who, {})]
            rates = [r[who][f"{way}_tflops"] for r in rows if f"{way}_tflops" in r.get(who, {})]
            axis.barh(at, rates, height=0.25, label=who)
        axis.axvline(results["ceilings"]["matmul_tflops"], color="black", linestyle=":", label="matrix product")
        axis.set_title(f"{way}, TFLOPS over visible pairs")
        axis.set_yticks(range(len(rows)), [r["name"] for r in rows])
        axis.invert_yaxis()
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(PLOT, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=450, help="seconds after which no new measurement starts")
    parser.add_argument("--only", default="", help="only rows whose 'section name' contains this")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes in the interpreter, nothing written")
    parser.add_argument("--warm", type=int, nargs=2, metavar=("PART", "PARTS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rehearse:
        if os.environ.get("TRITON_INTERPRET") != "1":
            sys.exit("error: --rehearse needs TRITON_INTERPRET=1 in the environment")
        os.environ["GENRANK_KERNELS"] = "triton"
    elif not torch.cuda.is_available():
        sys.exit("error: no GPU here; see --rehearse for a run without one")
    import triton

    session = Session("cpu" if args.rehearse else "cuda", time.monotonic() + args.budget, args.rehearse, args.only)
    if args.warm:
        return warm(session, *args.warm)
    session.results |= {
        "gpu": "none" if args.rehearse else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "peers": {"meta_triton": str(PEERS.relative_to(HERE.parent)) if PEERS.exists() else "not there: not measured"},
        "ceilings": ceilings(session),
    }
    if not args.rehearse:
        warm_up(session)
    with environment("GENRANK_AUTOTUNE", "0"):
        check_all(session)
    wrong = [row["name"] for row in session.results.get("right", []) if not row.get("right")]
    print(f"correctness: {'wrong: ' + ', '.join(wrong) if wrong else 'all right'}", flush=True)
    measure_all(session)
    wrong = [row["name"] for row in session.results.get("right", []) if not row.get("right")]
    text = page(session.results)
    if not args.rehearse:
        session.save()
        plot(session.results)
        head = PAGE.read_text().split(MARK)[0]
        PAGE.write_text(f"{head}{MARK}\n\n{text}")
    print(text)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

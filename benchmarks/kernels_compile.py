"""Compile every Triton kernel for every GPU generation, without a GPU: registers, shared memory, spills, tensor-core
instructions.

    python -m benchmarks.kernels_compile [--arch 80 90 100] [--only TEXT] [--quick] [--seconds N] [--workers 2]
    python -m benchmarks.kernels_compile --spills     # measure both spills.csv (kernels/attention, kernels/spans) again

A kernel is compiled exactly as it would be launched: its op is called with launches recorded instead of run, for
each dtype, shape and configuration that tuning may choose. Each row goes to
benchmarks/results/kernels_compile.jsonl as it is made, under a digest of the kernel's source and of everything it is
compiled with, so that a run that was stopped (or bounded by --seconds) goes on where it was, and a changed kernel alone
is compiled again. benchmarks/kernels_compile.md shows the table. Exits 1 if a kernel spills registers to
memory or asks for more shared memory than the chip has, 2 if rows are still missing.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.kernels_features import autodis_launches, lookup_launches, vocabulary_launches
from benchmarks.kernels_gluon import descriptor_type, gluon_launches, gluon_span_launches, source_class
from benchmarks.kernels_heads import loss_launches, shared_launches
from benchmarks.kernels_plans import plan_launches, span_plan_launches
from benchmarks.kernels_table import PAGE, RESULT, SHARED_LIMIT, Row, group_of, keep, known_rows, page
from genrank.kernels.attention import AttentionCall, IntervalMask, RelativeBias, configs, row_scale
from genrank.kernels.attention import gpu as attention_gpu
from genrank.kernels.attention.plan import summary_tuned, units
from genrank.kernels.autodis import LARGEST
from genrank.kernels.jagged import gpu as jagged_gpu
from genrank.kernels.launch import Launch, recording
from genrank.kernels.merge import gpu as merge_gpu
from genrank.kernels.norm import gpu as norm_gpu
from genrank.kernels.rowwise import RowUpdate
from genrank.kernels.rowwise import gpu as rowwise_gpu
from genrank.kernels.silu_split import gpu as split_gpu
from genrank.kernels.spans import SpanBias, SpanCall, make_spans
from genrank.kernels.spans import configs as span_configs
from genrank.kernels.spans import gpu as spans_gpu
from genrank.kernels.spans.plan import summary_tuned as span_summary

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def attention_launches(
    dtype: torch.dtype, heads: int, dim: int, value_dim: int, kind: str, device: str = "cpu", seed: int = 7
) -> list[Launch]:
    """Forward, dQ and dKV of one shape; kind: "plain", "bias" (with gradients of both tables and a divisor of each
    query's own), "dropout", "delta" or "tma" (only the configurations that load by it). The plan's kernels have a case of their own."""
    tokens = 256
    packed = torch.zeros(tokens, heads, 2 * dim + value_dim, dtype=dtype, device=device)
    q, k, v = packed.split([dim, dim, value_dim], 2)
    grad_out = torch.zeros(tokens, heads, value_dim, dtype=dtype, device=device)
    offsets = torch.tensor([0, tokens], device=device)
    begin = torch.zeros(tokens, dtype=torch.int32, device=device)
    end = torch.arange(tokens, dtype=torch.int32, device=device)
    own = end.clone() if kind == "delta" else None
    mask = IntervalMask(offsets, offsets, own, begin, end)
    scale = row_scale("length", mask)
    bias = RelativeBias()
    if kind == "bias":
        stamps = torch.zeros(tokens, dtype=torch.int64, device=device)
        tables = (torch.zeros(rows, heads, device=device) for rows in (513, 64))
        bias = RelativeBias(*tables, stamps)
    call = AttentionCall(mask, scale, bias, 0.125, 0.1 if kind == "dropout" else 0.0, seed, same_scale=kind != "bias")
    with tma(kind == "tma"), recording() as launches:
        attention_gpu.forward(q, k, v, call)
        if kind != "delta":
            attention_gpu.backward(grad_out, q, k, v, call)
    return [launch for launch in launches if launch.tuned not in (summary_tuned, units)]


@contextlib.contextmanager
def tma(on: bool) -> Iterator[None]:
    before = os.environ.get("GENRANK_TMA", "")
    os.environ["GENRANK_TMA"] = "1" if on else ""
    try:
        yield
    finally:
        os.environ["GENRANK_TMA"] = before


@dataclass(frozen=True)
class Case:
    """A call of an op, at one shape and dtype."""

    name: str
    dtype: str
    archs: tuple[int, ...]
    record: Callable[[], list[Launch]]


EVERY = (80, 90, 100)


def attention_cases() -> Iterator[Case]:
    """Plain attention for every dtype; the features and odd head dims in bfloat16, and biases in all where they are
    tightest."""
    plain = [((d, d), "plain", name, EVERY) for d in (128, 64, 256) for name in DTYPES]
    features = [((128, 128), kind, "bf16", EVERY) for kind in ("bias", "dropout", "delta")]
    features += [((64, 64), kind, "bf16", EVERY) for kind in ("bias", "dropout")]
    features += [((256, 256), "bias", "bf16", EVERY), *(((128, 128), "bias", name, EVERY) for name in ("fp32", "fp16"))]
    odd = [(dims, "plain", "bf16", EVERY) for dims in ((32, 128), (48, 48), (16, 16))]
    tma = [((d, d), "tma", "bf16", (90, 100)) for d in (128, 64, 256)]
    for dims, kind, name, archs in (*plain, *features, *odd, *tma):
        record = functools.partial(attention_launches, DTYPES[name], 4, *dims, kind)
        yield Case(f"attention {dims[0]}x{dims[1]} {kind}", name, archs, record)
    for dim in (128, 256, 64):
        for kind in ("plain", "bias"):
            name = f"attention {dim}x{dim} gluon{' bias' * (kind == 'bias')}"
            yield Case(name, "bf16", (90,), functools.partial(gluon_launches, dim, kind))


def norm_launches(
    dtype: torch.dtype,
    dim: int,
    groups: int,
    gate: int,
    dropout: float,
    device: str = "cpu",
    seed: int = 7,
    tokens: int = 64,
) -> list[Launch]:
    with torch.device(device):
        attn, u = (torch.zeros(tokens, dim, dtype=dtype) for _ in range(2))
        weight, bias = (torch.zeros(groups, dim) for _ in range(2))
        group_ids = torch.zeros(tokens, dtype=torch.int32) if groups > 1 else None
    rest = (attn, u if gate else None, weight, bias, group_ids, gate, 1e-6, dropout, seed)
    with recording() as launches:
        _, statistics = norm_gpu.norm_gate_op(*rest)
        norm_gpu.norm_gate_backward_op(attn, *rest[:5], statistics, gate, dropout, seed)
        if not gate:
            stream, shift = attn.float(), weight[0]
            norm_gpu.add_norm_op(stream, attn, shift, weight, bias, group_ids, 1.0, 1e-6, dtype)
            norm_gpu.add_norm_backward_op(stream, attn, stream, shift, weight, bias, group_ids, statistics, 1.0, dtype)
    return launches


def split_launches(dtype: torch.dtype, inner: int, device: str = "cpu", tokens: int = 64) -> list[Launch]:
    """Backward of the block's projection, with SiLU on all of its columns."""
    z = torch.zeros(tokens, 4 * inner, dtype=dtype, device=device)
    with recording() as launches:
        split_gpu.pack_gradients([torch.zeros(tokens, inner, dtype=dtype, device=device)] * 4, z, 4 * inner)
    return launches


def jagged_launches(dtype: torch.dtype, device: str = "cpu") -> list[Launch]:
    with torch.device(device):
        x, offsets = torch.zeros(64, 256, dtype=dtype), torch.tensor([0, 64])
        rows, table = torch.zeros(64, dtype=torch.int64), torch.zeros(9, 256)
    with recording() as launches:
        jagged_gpu.concat_op([x], [offsets])
        jagged_gpu.split_op(x, [offsets], [64])
        jagged_gpu.assemble(x, rows, table, [rows, rows])
    return launches


def rowwise_launches(dtype: torch.dtype, device: str = "cpu") -> list[Launch]:
    with torch.device(device):
        # More than a chunk: sums that cross its end take another pass.
        count = rowwise_gpu.CHUNK + 32
        ids = torch.zeros(count, dtype=torch.int64)
        table, grads = torch.zeros(64, 128), torch.zeros(count, 128, dtype=dtype)
    state = table[:, 0].contiguous()
    with recording() as launches:
        for mean in (None, table):
            rowwise_gpu.rowwise([RowUpdate(table, mean, state, ids, grads, 0.1, 1e-8, (0.9, 0.999), 2)])
    return launches


def span_launches(dtype: torch.dtype, dim: int, kind: str, device: str = "cpu") -> list[Launch]:
    """Forward, dQ and dKV, but not their plan; kind: "softmax" or "silu", the number of spans, and "bias" with both tables."""
    tokens, heads = 256, 4
    weighting, spans, *bias = kind.split()
    q, k, v, grad_out = (torch.zeros(tokens, heads, dim, dtype=dtype, device=device) for _ in range(4))
    offsets, at = torch.tensor([0, tokens], device=device), torch.arange(tokens, device=device)
    seen = make_spans(offsets, offsets, [(at * 0, at)] * int(spans))
    tables = SpanBias()
    if bias:
        places, stamps = at.int(), torch.zeros(tokens, dtype=torch.int64, device=device)
        tables = SpanBias(
            *(torch.zeros(rows, heads, device=device) for rows in (513, 64)), places, places, stamps, stamps
        )
    call = SpanCall(seen, torch.ones(tokens, device=device), tables, 0.125, weighting == "softmax")
    with recording() as launches:
        _, lse = spans_gpu.forward(q, k, v, call)
        spans_gpu.backward(grad_out, lse, lse, q, k, v, call)
    return [launch for launch in launches if launch.tuned not in (span_summary, units)]


def merge_launches(dtype: torch.dtype) -> list[Launch]:
    x, offsets, starts = torch.zeros(64, 256, dtype=dtype), torch.tensor([0, 64]), torch.tensor([0, 16])
    with recording() as launches:
        merge_gpu.unmerge(merge_gpu.merge(x, offsets, starts, 4, 16), offsets, starts, 4, 64)
    return launches


SPANS = (
    *((64, "softmax 2", name) for name in DTYPES),
    *((dim, "softmax 2", "bf16") for dim in (32, 128, 256)),
    *((64, "softmax 1", "bf16"), (128, "softmax 2 bias", "bf16"), (128, "silu 3 bias", "bf16")),
)
"""Head dim, kind and dtype: what the encoders ask for."""


def other_cases() -> Iterator[Case]:
    for dim, kind, name in SPANS:

        def record_spans(dtype: torch.dtype = DTYPES[name], dim: int = dim, kind: str = kind) -> list[Launch]:
            return span_launches(dtype, dim, kind)

        yield Case(f"spans {dim} {kind}", name, EVERY, record_spans)
    for dim in (64, 128):
        for count in (1, 2, 3):
            yield Case(f"spans {dim} gluon {count}", "bf16", (90,), functools.partial(gluon_span_launches, dim, count))
    for offsets in (torch.int32, torch.int64):
        yield Case(f"attention plan {str(offsets)[6:]}", "fp32", EVERY, functools.partial(plan_launches, offsets))
        yield Case(f"spans plan {str(offsets)[6:]}", "fp32", EVERY, functools.partial(span_plan_launches, offsets, 3))
    yield Case("lookups", "fp32", EVERY, lookup_launches)
    yield Case("losses", "fp32", EVERY, loss_launches)
    yield Case("vocabulary", "fp32", EVERY, vocabulary_launches)
    for buckets, dim in ((16, 8), (LARGEST, 32)):
        record_autodis = functools.partial(autodis_launches, buckets, dim)
        yield Case(f"autodis {buckets}x{dim}", "fp32", EVERY, record_autodis)
    for name, dtype in DTYPES.items():
        yield Case("merge", name, EVERY, lambda dtype=dtype: merge_launches(dtype))
        for dim, groups, gate, dropout in ((512, 4, 0, 0.0), (512, 1, 1, 0.1), (512, 4, 2, 0.1), (2048, 1, 1, 0.0)):

            def record(
                dtype: torch.dtype = dtype, rest: tuple[Any, ...] = (dim, groups, gate, dropout)
            ) -> list[Launch]:
                return norm_launches(dtype, *rest)

            yield Case(f"norm {dim} groups {groups} {('plain', 'norm_gate', 'gate_norm')[gate]}", name, EVERY, record)
        yield Case("silu_split 512", name, EVERY, lambda dtype=dtype: split_launches(dtype, 512))
        yield Case("jagged", name, EVERY, lambda dtype=dtype: jagged_launches(dtype))
        yield Case("shared_rows", name, EVERY, lambda dtype=dtype: shared_launches(dtype))
        yield Case("rowwise", name, EVERY, lambda dtype=dtype: rowwise_launches(dtype))


@dataclass(frozen=True)
class Job:
    """One kernel to compile: a launch, a configuration, a generation."""

    launch: Launch
    config: triton.Config
    case: str
    dtype: str
    arch: int

    def source(self) -> ASTSource:
        kernel = self.launch.kernel
        constants = {**self.launch.constants, **self.config.kwargs}
        signature: dict[str, str | tuple[str, ...]] = {}
        constexprs: dict[tuple[int, ...], object] = {}
        attrs: dict[tuple[int, ...], list[list[object]]] = {}
        values = dict(zip(kernel.arg_names, self.launch.arguments, strict=False)) | constants
        if self.config.pre_hook is not None:
            self.config.pre_hook(values)
        for at, name in enumerate(kernel.arg_names):
            value = values[name]
            varies = kernel.params[at].do_not_specialize
            if name in constants or value is None or (type(value) is int and value == 1 and not varies):
                signature[name], constexprs[(at,)] = "constexpr", value
                continue
            signature[name] = tuple(map(type_name, value)) if isinstance(value, tuple) else type_name(value)
            if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0 and not varies):
                attrs[(at,)] = [["tt.divisibility", 16]]
        return source_class(kernel)(kernel, signature, constexprs, attrs)

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.config.num_warps, "num_stages": self.config.num_stages}

    @property
    def digest(self) -> str:
        """Of the kernel's source, its helpers', its arguments, its configuration and the compiler's version."""
        whole = f"{triton.__version__} {self.source().hash()} {sorted(self.options.items())} {self.arch}"
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

    def compile(self) -> Row:
        start, digest = time.perf_counter(), self.digest  # Compiling a Gluon kernel changes what its source hashes to.
        compiled = triton.compile(self.source(), target=GPUTarget("cuda", self.arch, 32), options=self.options)
        usage, sass = dump(compiled.asm["cubin"], "--dump-resource-usage"), dump(compiled.asm["cubin"], "-sass")
        numbers = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
        found = [
            f"{op} {n}"
            for op in ("UTCHMMA", "UTCQMMA", "HGMMA", "HMMA", "QMMA")
            if (n := len(re.findall(rf"\b{op}\b", sass)))
        ]
        chosen = {**self.config.kwargs, "warps": self.config.num_warps, "stages": self.config.num_stages}
        return Row(
            digest, self.launch.kernel.__name__, self.case, self.dtype, self.arch,
            ", ".join(f"{k}={v}" for k, v in chosen.items()),
            numbers["REG"], numbers["STACK"] + numbers["LOCAL"], compiled.metadata.shared, ", ".join(found) or "none",
            round(time.perf_counter() - start, 1), triton.__version__,
        )  # fmt: skip


def type_name(value: object) -> str:
    if hasattr(value, "block_shape"):
        return descriptor_type(value, type_name(value.base)[1:])
    if isinstance(value, torch.Tensor):
        name = str(value.dtype).removeprefix("torch.")
        return "*" + {"bool": "i1"}.get(name, triton.runtime.jit.type_canonicalisation_dict.get(name, name))
    return "fp32" if isinstance(value, float) else "i32"


def dump(cubin: bytes, what: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, what, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


QUICK = ("attention 128x128 plain", "attention 256x256 plain")
"""Where all that dK and dV may choose on sm_90 is compiled: theirs are the configurations nearest to spilling."""


def whole(launch: Launch, case: str, dtype: str, arch: int) -> bool:
    """Whether `--quick` compiles all configurations: those nearest to spilling."""
    tight = launch.kernel.__name__ == "backward_kv_kernel" and dtype == "bf16" and case in QUICK
    return arch == 90 and (tight or launch.kernel.is_gluon())


def jobs(archs: list[int], only: str, quick: bool) -> list[Job]:
    """quick: the first case and configuration of each kernel on each generation, in bfloat16, and all that `whole` names."""
    work: list[Job] = []
    seen: set[tuple[str, int]] = set()
    cases = [*attention_cases(), *other_cases()]
    # What training uses first, should the time end early.
    for case in sorted(cases, key=lambda case: ("bf16", "fp32", "fp16").index(case.dtype)):
        for launch in case.record():
            name = launch.kernel.__name__
            if only not in f"{name} {case.name} {case.dtype}":
                continue
            for arch in (a for a in archs if a in case.archs):
                first = (name, arch) not in seen
                seen.add((name, arch))
                chosen = launch.configs(arch)
                if case.name.endswith(" tma") and not launch.constants["DESCRIBED"]:
                    continue  # As in the plain case.
                if quick and not whole(launch, case.name, case.dtype, arch):
                    chosen = chosen[: 1 if first else 0]
                work += [Job(launch, config, case.name, case.dtype, arch) for config in chosen]
    return work


_work: list[Job] = []


def compile_at(at: int) -> Row:
    return _work[at].compile()


def compiled(work: list[Job], workers: int, seconds: float) -> Iterator[Row]:
    """Rows as they are made; none is begun after `seconds`. Workers are forked: launches hold live kernels."""
    from genrank.schemas.console import progress_bar  # Not above: the GPU benchmark needs torch and triton only.

    _work[:] = work
    deadline = time.monotonic() + seconds
    # Forked before the bar starts its thread.
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(multiprocessing.get_context("fork").Pool(workers)) if workers > 1 else None
        rows = pool.imap_unordered(compile_at, range(len(work))) if pool else map(compile_at, range(len(work)))
        bar = stack.enter_context(progress_bar("compiling", len(work), unit="kernel"))
        for row in rows:
            yield row
            bar.advance()
            if time.monotonic() > deadline:
                return


def measure_spills(path: Path) -> None:
    """Compile the case of each line of a `spills.csv` and write how many bytes it spills, with which Triton."""
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        row = spilling_job(line).compile()
        line |= {"measured_with": triton.__version__, "spilled_bytes": str(row.stack_bytes)}
        print(row.line(), flush=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def spilling_job(line: dict[str, str]) -> Job:
    """The measured case of a line: "attention 256x256 plain bf16 dk" on `case_arch`. Of all configurations from 32 rows on,
    the smallest."""
    if line["case"].startswith("spans"):
        return spilling_span_job(line)
    _, dims, kind, dtype, which = line["case"].split()
    dim, value_dim = map(int, dims.split("x"))
    situated = {"dk": {"dk"}, "dv": {"dv"}, "dkv": {"dk", "dv"}}.get(which, set())
    for launch in attention_launches(DTYPES[dtype], 4, dim, value_dim, kind):
        named = {**dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)), **launch.constants}
        situation = configs.Situation.of(named, int(line["case_arch"]))
        if situation.kernel == ("dkv" if situated else which) and situation.features & {"dk", "dv"} == situated:
            wanted = "32x32x4" if line["config"] == configs.LARGE else line["config"]
            listed = (c for c in configs.CONFIGS[situation.kernel] if configs.name_of(c) == wanted)
            config = next(c for c in listed if c.kwargs["TMA"] == ("tma" in situation.features))
            return Job(launch, config, line["case"].rsplit(maxsplit=2)[0], dtype, situation.arch)
    raise ValueError(f"spills.csv: no kernel is launched by the case {line['case']!r}")


def spilling_span_job(line: dict[str, str]) -> Job:
    """The same of span attention: "spans 128 softmax 2 bf16 dkv"."""
    case, dtype, which = line["case"].rsplit(maxsplit=2)
    _, dim, kind = case.split(maxsplit=2)
    launch = span_launches(DTYPES[dtype], int(dim), kind)[("forward", "dq", "dkv").index(which)]
    config = next(c for c in launch.tuned.configs if configs.name_of(c) == line["config"])
    return Job(launch, config, case, dtype, int(line["case_arch"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100], choices=sorted(SHARED_LIMIT))
    parser.add_argument("--only", default="", help="only kernels whose 'kernel case dtype' contains this")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a case of each kernel, and on sm_90 all of dK and dV and of the Gluon kernels; nothing written",
    )
    parser.add_argument("--spills", action="store_true", help="only measure the configurations that are left out")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no kernel after this long")
    parser.add_argument("--workers", type=int, default=1, help="processes that compile")
    args = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("error: TRITON_INTERPRET=1 replaces the compiler; unset it")
    if args.spills:
        for module in (configs, span_configs):
            measure_spills(Path(module.__file__).with_name("spills.csv"))
        return
    work = jobs(args.arch, args.only, args.quick)
    known = {} if args.quick else known_rows()
    order = [job.digest for job in work]
    missing = {digest: job for digest, job in zip(order, work, strict=True) if digest not in known}
    rows = {digest: known[digest] for digest in order if digest in known}
    for row in rows.values():
        print(row.line())
    RESULT.parent.mkdir(exist_ok=True)
    # Hopper first, should the time end early.
    for row in compiled(sorted(missing.values(), key=lambda job: job.arch != 90), args.workers, args.seconds):
        rows[row.digest] = row
        print(row.line(), flush=True)
        if not args.quick:
            with RESULT.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
    left = len(set(order) - set(rows))
    failing = sum(row.fails for row in rows.values())
    print(f"{len(rows)} kernels compiled, {failing} fail, {left} left")
    if not args.quick and not args.only and args.arch == [80, 90, 100]:
        kept = [rows[digest] for digest in dict.fromkeys(order) if digest in rows]
        today = {group_of(row) for row in kept}
        # A kernel that several cases share is a row of one of them.
        without = [job for digest, job in zip(order, work, strict=True) if digest not in rows]
        cases = {(job.launch.kernel.__name__, job.case, job.dtype, job.arch) for job in without} - today
        stale = [row for digest, row in known.items() if digest not in rows and group_of(row) in cases]
        keep([*kept, *stale])
        PAGE.write_text(page(kept, stale, left, triton.__version__))
    if left:
        sys.exit(2)
    sys.exit(1 if failing else 0)


if __name__ == "__main__":
    main()

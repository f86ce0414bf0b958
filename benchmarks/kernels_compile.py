"""Compile every Triton kernel for every GPU generation, without a GPU: registers, shared memory, spills, tensor-core
instructions.

    python -m benchmarks.kernels_compile [--arch 80 90 100] [--only NAME] [--quick]

A kernel is compiled exactly as it would be launched: its op is called with launches recorded instead of run, for
each dtype, shape and configuration that the autotuner may choose. Writes benchmarks/results/kernels_compile.json and
exits 1 if a kernel spills registers to memory, or asks for more shared memory than the chip has.
"""

from __future__ import annotations

import argparse
import json
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
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import attention_triton, idmap_triton, jagged_triton, norm_triton
from kernels.attention import RelativeBias, row_scale
from kernels.interval import Problem
from kernels.launch import Launch, recording

RESULT = Path(__file__).parent / "results" / "kernels_compile.json"
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that one block may use (CUDA C++ programming guide, compute capabilities 8.0, 9.0, 10.0)."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass
class Row:
    kernel: str
    case: str
    dtype: str
    arch: int
    config: str
    registers: int
    stack_bytes: int
    """Spilled registers: memory that each thread would keep in its stack."""
    shared_bytes: int
    tensor_core: str
    seconds: float

    @property
    def fails(self) -> bool:
        return self.stack_bytes > 0 or self.shared_bytes > SHARED_LIMIT[self.arch]


def attention_launches(dtype: torch.dtype, heads: int, dim: int, value_dim: int, kind: str) -> list[Launch]:
    """Forward, dQ and dKV of one shape; kind: "plain", "bias" (with gradients of both tables), "dropout" or "delta"."""
    tokens = 256
    q, k = (torch.zeros(tokens, heads, dim, dtype=dtype) for _ in range(2))
    v = torch.zeros(tokens, heads, value_dim, dtype=dtype)
    offsets = torch.tensor([0, tokens])
    begin, end = torch.zeros(tokens, dtype=torch.int32), torch.arange(tokens, dtype=torch.int32)
    own = end.clone() if kind == "delta" else None
    problem = Problem(offsets, offsets, own, begin, end)
    scale = row_scale("length", offsets, offsets, own, begin, end)
    bias = RelativeBias()
    if kind == "bias":
        stamps = torch.zeros(tokens, dtype=torch.int64)
        bias = RelativeBias(torch.zeros(513, heads), torch.zeros(64, heads), stamps)
    rest = (problem, scale, bias, 0.125, 0.1 if kind == "dropout" else 0.0, 7)
    with recording() as launches:
        attention_triton.forward(q, k, v, *rest)
        if kind != "delta":
            attention_triton.backward(v, q, k, v, *rest)
    return launches


@dataclass(frozen=True)
class Case:
    """A call of an op, at one shape and dtype."""

    name: str
    dtype: str
    archs: tuple[int, ...]
    record: Callable[[], list[Launch]]


EVERY = (80, 90, 100)


def attention_cases() -> Iterator[Case]:
    """Every head dim and feature in bfloat16 on Hopper; what training uses most in the other dtypes and generations."""
    for dim, value_dim in ((128, 128), (64, 64), (256, 256), (32, 128), (48, 48)):
        kinds = ("plain", "bias", "dropout", "delta") if dim in (64, 128) else ("plain",)
        for kind in kinds:
            for name, dtype in DTYPES.items():
                common = dim in (64, 128) and kind == "plain"
                if name != "bf16" and not common:
                    continue
                archs = EVERY if name == "bf16" and common else (90,)

                def record(dtype: torch.dtype = dtype, d: int = dim, v: int = value_dim, k: str = kind) -> list[Launch]:
                    return attention_launches(dtype, 4, d, v, k)

                yield Case(f"attention {dim}x{value_dim} {kind}", name, archs, record)


def norm_launches(dtype: torch.dtype, dim: int, groups: int, gate: int, dropout: float) -> list[Launch]:
    attn, u = torch.zeros(64, dim, dtype=dtype), torch.zeros(64, dim, dtype=dtype)
    weight, bias = torch.zeros(groups, dim), torch.zeros(groups, dim)
    group_ids = torch.zeros(64, dtype=torch.int32) if groups > 1 else None
    rest = (attn, u if gate else None, weight, bias, group_ids, gate, 1e-6, dropout, 7)
    with recording() as launches:
        norm_triton.norm_gate_op(*rest)
        norm_triton.norm_gate_backward_op(attn, *rest)
    return launches


def jagged_launches(dtype: torch.dtype) -> list[Launch]:
    x, offsets = torch.zeros(64, 256, dtype=dtype), torch.tensor([0, 64])
    groups = torch.zeros(64, dtype=torch.int32)
    weight, bias = torch.zeros(3, 256, 512, dtype=dtype), torch.zeros(3, 512, dtype=dtype)
    with recording() as launches:
        jagged_triton.concat_op([x], [offsets])
        jagged_triton.split_op(x, [offsets], [64])
        jagged_triton.linear_op(x, groups, weight, bias)
        jagged_triton.linear_backward_op(weight.new_zeros(64, 512), x, groups, weight, bias)
        jagged_triton.encode_op(x, torch.zeros(8, 256), groups, torch.zeros(8, 256), groups.long(), 2.0)
    return launches


def idmap_launches(dtype: torch.dtype) -> list[Launch]:
    keys, ids = torch.zeros(64, dtype=torch.int64), torch.zeros(32, dtype=torch.int64)
    table, grads = torch.zeros(64, 128), torch.zeros(32, 128, dtype=dtype)
    adam = {"lr": 0.1, "eps": 1e-8, "betas": (0.9, 0.999), "step": 2, "weight_decay": 0.0}
    with recording() as launches:
        idmap_triton.find_slots(keys, ids)
        idmap_triton.place(keys, keys, ids, ids)
        idmap_triton.rowwise(table, None, table[:, 0].contiguous(), ids, grads, **adam)
        idmap_triton.rowwise(table, table, table[:, 0].contiguous(), ids, grads, **adam)
    return launches


def other_cases() -> Iterator[Case]:
    for name, dtype in DTYPES.items():
        archs = EVERY if name == "bf16" else (90,)
        for dim, groups, gate, dropout in ((512, 4, 0, 0.0), (512, 1, 1, 0.1), (512, 4, 2, 0.1), (2048, 1, 1, 0.0)):

            def record(
                dtype: torch.dtype = dtype, rest: tuple[Any, ...] = (dim, groups, gate, dropout)
            ) -> list[Launch]:
                return norm_launches(dtype, *rest)

            yield Case(f"norm {dim} groups {groups} {('plain', 'norm_gate', 'gate_norm')[gate]}", name, archs, record)
        yield Case("jagged", name, archs, lambda dtype=dtype: jagged_launches(dtype))
        yield Case("idmap", name, archs, lambda dtype=dtype: idmap_launches(dtype))


def compile_one(launch: Launch, config: triton.Config, arch: int) -> tuple[bytes, dict[str, int]]:
    """The cubin, and what Triton knows of it."""
    kernel = launch.kernel
    constants = {**launch.constants, **config.kwargs}
    signature: dict[str, str] = {}
    constexprs: dict[tuple[int, ...], object] = {}
    attrs: dict[tuple[int, ...], list[list[object]]] = {}
    values = dict(zip(kernel.arg_names, launch.arguments, strict=False)) | constants
    for at, name in enumerate(kernel.arg_names):
        value = values[name]
        if name in constants or (type(value) is int and value == 1):
            signature[name], constexprs[(at,)] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + {torch.bool: "i1"}.get(
                value.dtype,
                triton.runtime.jit.type_canonicalisation_dict.get(
                    str(value.dtype).removeprefix("torch."), str(value.dtype)
                ),
            )
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attrs[(at,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs, attrs)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return compiled.asm["cubin"], {"shared": compiled.metadata.shared}


def measure(launch: Launch, config: triton.Config, case: str, dtype: str, arch: int) -> Row:
    start = time.perf_counter()
    cubin, facts = compile_one(launch, config, arch)
    cuobjdump = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [cuobjdump, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        sass = subprocess.run([cuobjdump, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    numbers = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    found = [
        f"{op} {n}"
        for op in ("UTCHMMA", "UTCQMMA", "HGMMA", "HMMA", "QMMA")
        if (n := len(re.findall(rf"\b{op}\b", sass)))
    ]
    text = ", ".join(f"{k}={v}" for k, v in config.kwargs.items())
    return Row(
        launch.kernel.__name__, case, dtype, arch, f"{text}, warps={config.num_warps}, stages={config.num_stages}",
        numbers["REG"], numbers["STACK"] + numbers["LOCAL"], facts["shared"], ", ".join(found) or "none",
        round(time.perf_counter() - start, 1),
    )  # fmt: skip


def table(archs: list[int], only: str, quick: bool) -> Iterator[Row]:
    """quick: the first case and configuration of each kernel, in bfloat16."""
    work = []
    seen: set[str] = set()
    for case in (*attention_cases(), *other_cases()):
        for launch in case.record():
            name = launch.kernel.__name__
            if only not in f"{name} {case.name} {case.dtype}" or (quick and name in seen):
                continue
            seen.add(name)
            for arch in (a for a in archs if a in case.archs):
                chosen = launch.configs(arch)
                work += [(launch, config, case.name, case.dtype, arch) for config in (chosen[:1] if quick else chosen)]
    for one in tqdm(work, unit="kernel", disable=not sys.stderr.isatty()):
        yield measure(*one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100], choices=sorted(SHARED_LIMIT))
    parser.add_argument("--only", default="", help="only kernels whose 'kernel case dtype' contains this")
    parser.add_argument("--quick", action="store_true", help="one case and configuration of each kernel")
    args = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("error: TRITON_INTERPRET=1 replaces the compiler; unset it")
    rows = []
    for row in table(args.arch, args.only, args.quick):
        rows.append(row)
        print(
            f"{'FAILS ' if row.fails else ''}{row.kernel:20} {row.case:26} {row.dtype} sm_{row.arch:<3} {row.config:48} "
            f"registers {row.registers:3} spilled {row.stack_bytes:4} shared {row.shared_bytes:6}  {row.tensor_core}",
            flush=True,
        )
    if not args.only and not args.quick:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(
            json.dumps({"triton": triton.__version__, "rows": [asdict(r) for r in rows]}, indent=0) + "\n"
        )
    failing = sum(row.fails for row in rows)
    print(f"{len(rows)} kernels compiled, {failing} fail")
    sys.exit(1 if failing else 0)


if __name__ == "__main__":
    main()

"""Compile in all cores what the run will need, before anything is timed: otherwise compiling would be most of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton

from benchmarks.gpu import step
from benchmarks.gpu.peers import META, meta_kernels, meta_runs
from benchmarks.gpu.session import Session
from benchmarks.gpu.shapes import Shape, shapes
from benchmarks.kernels_cases import hstu
from benchmarks.kernels_compile import (
    attention_launches,
    jagged_launches,
    norm_launches,
    rowwise_launches,
    span_launches,
    split_launches,
)
from benchmarks.kernels_features import autodis_launches, vocabulary_launches
from benchmarks.kernels_gluon import gluon_launches, gluon_span_launches
from benchmarks.kernels_heads import loss_launches, shared_launches
from benchmarks.kernels_plans import plan_launches, span_plan_launches
from genrank.kernels.launch import Launch


def launches(device: str) -> Iterator[tuple[Launch, bool]]:
    """What will be launched, and whether tuning will try all its configurations (or the first one alone).

    With the seed, the table sizes and the magnitudes of the run: whether an integer is a multiple of 16 is part of what is
    compiled."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    for kind in ("plain", "tma"):
        for dim in (128, 256):
            for launch in attention_launches(bf16, 4, dim, dim, kind, device, seed=0):
                yield launch, True
    for heads, dim in ((4, 128), (8, 64)):
        for launch in attention_launches(bf16, heads, dim, dim, "bias", device, seed=0):
            yield launch, True
    for offsets in (torch.int32, torch.int64):
        for launch in (*plan_launches(offsets, device), *span_plan_launches(offsets, 2, device)):
            yield launch, True
    if device == "cuda" and torch.cuda.get_device_capability()[0] == 9:
        for dim in (128, 256, 64):
            for kind in ("plain", "bias"):
                for launch in gluon_launches(dim, kind, device):
                    yield launch, True
        for dim, count in ((64, 1), (64, 2), (64, 3), (128, 2)):
            for launch in (
                *gluon_span_launches(dim, count, device),
                *span_launches(bf16, dim, f"softmax {count}", device),
            ):
                yield launch, True
    for dtype, dims, kind in (
        *((bf16, (64, 64), "plain"), (bf16, (48, 128), "bias"), (fp16, (48, 128), "bias"), (fp32, (48, 128), "bias")),
        *((bf16, (64, 64), "delta"), (fp16, (64, 64), "delta"), (fp32, (64, 64), "delta")),
    ):
        for launch in attention_launches(dtype, 2, *dims, kind, device, seed=0):
            yield launch, False
    for dim in (512, 1024):
        for groups, gate in ((4, 0), (4, 1), (4, 2), (1, 0), (1, 1)):
            for launch in norm_launches(bf16, dim, groups, gate, 0.0, device, seed=0, tokens=2**14):
                yield launch, True
    for dim in (512, 768):
        for launch in split_launches(bf16, dim, device, 2**14):
            yield launch, True
    for dtype in (bf16, fp16, fp32):
        for gate in (0, 1, 2):
            for launch in norm_launches(dtype, 192, 4, gate, 0.0, device, seed=0, tokens=4097):
                yield launch, False
        for launch in (*jagged_launches(dtype, device), *shared_launches(dtype, device)):
            yield launch, False
    for launch in autodis_launches(16, 8, device):
        yield launch, True
    for launch in (*rowwise_launches(fp32, device), *vocabulary_launches(device), *loss_launches(device)):
        yield launch, False
    yield from step.launches(device)


def warm_up(session: Session, part: int, parts: int) -> None:
    """Every `parts`-th job, from `part`. A kernel that fails to compile fails again, with its error, where it is used."""
    if session.device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        jobs = [
            (launch, config)
            for launch, tuned in launches(session.device)
            for config in launch.configs(10 * major + minor)[: None if tuned else 1]
        ]
    else:
        jobs = []
    for launch, config in jobs[part::parts]:
        if session.left() <= 0:
            return
        try:
            compile_for_launch(launch, config)
        except Exception as error:
            print(f"{launch.kernel.__name__}: {error}")
    if META.exists() and session.device == "cuda":
        warm_meta(session, part, parts)


def compile_for_launch(launch: Launch, config: triton.Config) -> None:
    """Into Triton's cache, by the path that a launch takes, without running."""
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    if config.pre_hook is not None:
        named = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))
        config.pre_hook({**named, **launch.constants, **config.kwargs})
    launch.kernel.warmup(*launch.arguments, grid=(1,), **launch.constants, **config.kwargs, **options)


def warm_meta(session: Session, part: int, parts: int) -> None:
    """A part of Meta's configurations each, by running them on a tiny batch."""
    for kernel in meta_kernels():
        kernel.configs = kernel.configs[part::parts] or kernel.configs[:1]
    variants = {(s.dim, bool(s.targets), s.window): s for s in shapes(False) if s.targets is not None}
    for shape in variants.values():
        batch = hstu([64] * 16, min(shape.targets or 0, 32)).to(session.device)
        q, k, v, above = (
            torch.randn(batch.tokens, shape.heads, shape.dim, device=session.device, dtype=torch.bfloat16)
            for _ in range(4)
        )
        tiny = Shape(
            shape.name, lambda b=batch: b, shape.heads, shape.dim, 64, min(shape.targets or 0, 32), shape.window
        )
        for run in meta_runs(tiny, batch, q, k, v, above).values():
            if session.left() <= 0:
                return
            try:
                torch.autograd.grad(run.attend(), run.leaves, run.upstream)
            except Exception as error:
                print(f"Meta: {error}")

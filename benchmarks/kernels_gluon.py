"""What of `benchmarks.kernels_compile` is about the Gluon kernels: their launches, and how their sources and descriptors are named."""

from __future__ import annotations

from typing import Any

import torch
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from genrank.kernels.attention import AttentionCall, IntervalMask, RelativeBias, row_scale
from genrank.kernels.attention.hopper import gpu as hopper_gpu
from genrank.kernels.attention.hopper import plan as hopper_plan
from genrank.kernels.launch import Launch, recording
from genrank.kernels.spans import SpanBias, SpanCall, make_spans
from genrank.kernels.spans.hopper import gpu as span_gpu
from genrank.kernels.spans.hopper import plan as span_plan


def gluon_launches(dim: int, kind: str = "plain", device: str = "cpu") -> list[Launch]:
    """Forward, dQ and dKV by the kernels for sm_90, and what makes their records; kind: "plain" or "bias" (both tables), without the
    usual kernel's dQ."""
    tokens, heads = 256, 4
    q, k, v = torch.zeros(tokens, heads, 3 * dim, dtype=torch.bfloat16, device=device).split(dim, 2)
    offsets, own = torch.tensor([0, tokens], device=device), torch.arange(tokens, dtype=torch.int32, device=device)
    mask = IntervalMask(offsets, offsets, None, own * 0, own)
    bias = RelativeBias()
    if kind == "bias":
        tables = (torch.zeros(rows, heads, device=device) for rows in (1025, 64))
        bias = RelativeBias(*tables, torch.zeros(tokens, dtype=torch.int64, device=device))
    call = AttentionCall(mask, row_scale("length", mask), bias, 0.125, same_scale=True)
    with recording() as launches:
        hopper_gpu.forward(q, k, v, call)
        hopper_gpu.backward(torch.zeros_like(v).contiguous(), q, k, v, call, lambda _: [q])
    own = (*hopper_gpu.KERNELS, *hopper_plan.KERNELS)
    return [launch for launch in launches if launch.tuned in own]


def gluon_span_launches(dim: int, count: int, device: str = "cpu") -> list[Launch]:
    """Forward, dQ and dKV of span attention by softmax, and what makes their records."""
    tokens = 256
    packed = torch.zeros(tokens, 4, 3 * dim, dtype=torch.bfloat16, device=device)
    q, k, v = packed.split(dim, 2)
    offsets, at = torch.tensor([0, tokens], device=device), torch.arange(tokens, device=device)
    seen = make_spans(offsets, offsets, [(at * 0, at)] * count)
    call = SpanCall(seen, torch.ones(tokens, device=device), SpanBias(), 0.125, True)
    with recording() as launches:
        _, lse = span_gpu.forward(q, k, v, call)
        span_gpu.backward(torch.zeros_like(v).contiguous(), lse, lse, q, k, v, call)
    own = (*span_gpu.KERNELS, *span_plan.KERNELS)
    return [launch for launch in launches if launch.tuned in own]


def source_class(kernel: Any) -> type[ASTSource]:
    """Of a kernel of either language."""
    return GluonASTSource if kernel.is_gluon() else ASTSource  # type: ignore[no-any-return]


def descriptor_type(descriptor: Any, element: str) -> str:
    """As signatures have it; Gluon's say how tiles lie in shared memory."""
    layout = f",{descriptor.layout!r}" if hasattr(descriptor, "layout") else ""
    return f"tensordesc<{element}{descriptor.block_shape}{layout}>"

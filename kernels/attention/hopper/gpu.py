"""Launches the Gluon kernels.

`serves` says which calls they can compute; whether they do is `choice.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from genrank.kernels.attention.call import AttentionCall
from genrank.kernels.attention.hopper.gluon_forward import gluon_forward_kernel
from genrank.kernels.attention.hopper.gluon_key import narrow_key_kernel, wide_key_kernel
from genrank.kernels.attention.hopper.gluon_query import narrow_query_kernel, wide_query_kernel
from genrank.kernels.attention.hopper.plan import intervals, key_records, query_records
from genrank.kernels.launch import Tuned, generation

DIMS = (64, 128, 256)
"""Head dims, of keys and of values alike."""
ROWS = 64
"""Of a warpgroup."""


def config(**sizes: int) -> triton.Config:
    """Four warps a role; REGISTERS of a computing thread, LOADER of a loading one: together those that a multiprocessor has."""
    return triton.Config({"REGISTERS": 240, "LOADER": 24, **sizes}, num_warps=4, num_stages=1)


def fits(chosen: triton.Config, arguments: dict[str, Any], arch: int) -> bool:
    """One configuration a head dim."""
    return bool((arguments["DIM"] == 256) == (chosen.kwargs["BLOCK"] == 64))


forward_tuned = Tuned(gluon_forward_kernel, [config(BLOCK=128, STAGES=2), config(BLOCK=64, STAGES=2)], ["DIM"], fits)
narrow_query_tuned = Tuned(narrow_query_kernel, [config(BLOCK=64, K_STAGES=3, V_STAGES=2)], ["DIM"])
wide_query_tuned = Tuned(wide_query_kernel, [config(BLOCK=64, SLOTS=3, REGISTERS=232, LOADER=32)], ["DIM"])
narrow_key_tuned = Tuned(narrow_key_kernel, [config(BLOCK=64, STAGES=3)], ["DIM"])
wide_key_tuned = Tuned(wide_key_kernel, [config(BLOCK=64, STAGES=2)], ["DIM"])


def serves(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> bool:
    """Whether these kernels compute this call: on sm_90, bfloat16, head dims of `DIMS`, queries that are the keys, one divisor a
    sample, no bias, no dropout, and rows that TMA can load."""
    return q.is_cuda and generation(q.device) == 90 and computes(q, k, v, call)


def computes(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> bool:
    """The same, whatever the device."""
    plain = call.mask.q_positions is None and not call.bias.tables and call.dropout == 0.0 and call.same_scale
    dims = q.dtype == torch.bfloat16 and q.shape[2] in DIMS and v.shape[2] == q.shape[2]
    return plain and dims and len(q) > 0 and all(loadable(x) for x in (q, k, v))


def loadable(x: Tensor) -> bool:
    """Whether TMA can load x [tokens, heads, dim] as a matrix with a row a token: rows apart, and all aligned to 16 bytes."""
    token, head, column = x.stride()
    aligned = not (x.data_ptr() % 16 or token * x.element_size() % 16 or head * x.element_size() % 16)
    return column == 1 and aligned and token >= across(x)


def across(x: Tensor) -> int:
    """Columns of that matrix."""
    return (x.shape[1] - 1) * x.stride(1) + x.shape[2]


def descriptor(x: Tensor, rows: int) -> TensorDescriptor:
    """Of tiles of `rows` rows of one head."""
    block = [rows, x.shape[2]]
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16)
    return TensorDescriptor(x, [len(x), across(x)], [x.stride(0), 1], block, layout)


def forward(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
    """[T, H, D]: as `kernels.attention.gpu.forward`, for what `computes` admits."""
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    records, seen = query_records(call.mask), intervals(call.mask)
    rows = 64 if q.shape[2] == 256 else 128
    forward_tuned(
        per_unit(records, 2, q),
        [
            *(descriptor(q, ROWS), descriptor(k, rows), descriptor(v, rows), out, seen, seen.stride(0), call.scale),
            *(records, q.shape[1], 0.5 * call.alpha, q.stride(1), k.stride(1), v.stride(1), *out.stride()[:2]),
        ],
        {"DIM": q.shape[2]},
    )
    return out


def backward(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> list[Tensor]:
    """Gradients of q, k and v: as `kernels.attention.gpu.backward`, for what `computes` admits."""
    grad_out = grad_out if loadable(grad_out) else grad_out.contiguous()
    tokens, heads, dim = q.shape
    wide = dim == 256
    records, seen = query_records(call.mask), intervals(call.mask)
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    tiles = [descriptor(x, ROWS) for x in (q, grad_out, k, v)]
    steps = [x.stride(1) for x in (q, grad_out, k, v)]
    (wide_query_tuned if wide else narrow_query_tuned)(
        per_unit(records, 1 if wide else 2, q),
        [
            *(*tiles, dq, seen, seen.stride(0), call.scale, records, heads, 0.5 * call.alpha),
            *(*steps, *dq.stride()[:2]),
        ],
        {"DIM": dim},
    )
    both = torch.empty(2, seen.stride(0), heads, dim, dtype=k.dtype, device=k.device)
    records = key_records(call.mask, 64 if wide else 128)
    (wide_key_tuned if wide else narrow_key_tuned)(
        per_unit(records, 1, q),
        [
            *(*tiles, both, seen, seen.stride(0), call.scale, records, heads, 0.5 * call.alpha),
            *(*steps, *both.stride()[1:3]),
        ],
        {"DIM": dim},
    )
    return [dq, both[0, :tokens], both[1, :tokens]]


def per_unit(records: Tensor, units: int, q: Tensor) -> Callable[[dict[str, Any]], tuple[int, ...]]:
    """A program for so many records, and head; heads innermost."""
    return lambda _: (records.numel() // records.shape[-1] // units * q.shape[1],)

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

from genrank.kernels.attention.bias import RelativeBias
from genrank.kernels.attention.call import AttentionCall
from genrank.kernels.attention.hopper.gluon_forward import gluon_forward_kernel
from genrank.kernels.attention.hopper.gluon_key import narrow_key_kernel, wide_key_kernel
from genrank.kernels.attention.hopper.gluon_query import narrow_query_kernel, wide_query_kernel
from genrank.kernels.attention.hopper.plan import intervals, key_records, places, query_records
from genrank.kernels.launch import Tuned, generation

DIMS = (64, 128, 256)
"""Head dims, of keys and of values alike."""
ROWS = 64
"""Of a warpgroup."""
POSITION_ROWS = {64: 16384, 128: 2048, 256: 2048}
"""Of a position table, at most, for each head dim: a head's lies in shared memory beside the tiles. Twice as many would fit beyond 64 columns,
too, but cost forward 8 bytes of spills."""
TIME_ROWS = 128
"""Of a time table, at most."""
GATHERS = hasattr(gl.shared_memory_descriptor, "gather")
"""Whether this Triton can read single values of shared memory, as biases do: from 3.7 on."""


def config(**sizes: int) -> triton.Config:
    """Four warps a role; REGISTERS of a computing thread, LOADER of a loading one: together those that a multiprocessor has."""
    return triton.Config({"REGISTERS": 240, "LOADER": 24, **sizes}, num_warps=4, num_stages=1)


def fits(chosen: triton.Config, arguments: dict[str, Any], arch: int) -> bool:
    """One configuration a head dim, and another with biases."""
    biased = arguments["POSITION_ROWS"] + arguments["TIME_ROWS"] > 0
    wanted = FORWARD[(arguments["DIM"] == 256) + 2 * biased]
    return chosen is wanted


FORWARD = [
    *(config(BLOCK=128, STAGES=2), config(BLOCK=64, STAGES=2)),
    *(config(BLOCK=64, STAGES=4), config(BLOCK=32, STAGES=4)),
]
"""Head dims up to 128, 256; and both with a bias."""
forward_tuned = Tuned(gluon_forward_kernel, FORWARD, ["DIM"], fits)
narrow_query_tuned = Tuned(narrow_query_kernel, [config(BLOCK=64, K_STAGES=3, V_STAGES=2)], ["DIM"])
wide_query_tuned = Tuned(wide_query_kernel, [config(BLOCK=64, SLOTS=3, REGISTERS=232, LOADER=32)], ["DIM"])
narrow_key_tuned = Tuned(narrow_key_kernel, [config(BLOCK=64, STAGES=3)], ["DIM"])
wide_key_tuned = Tuned(wide_key_kernel, [config(BLOCK=64, STAGES=2, REGISTERS=232)], ["DIM"])
KERNELS = (forward_tuned, narrow_query_tuned, wide_query_tuned, narrow_key_tuned, wide_key_tuned)


def serves(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> bool:
    """Whether these kernels compute this call: on sm_90, bfloat16, head dims of `DIMS`, queries that are the keys, no dropout, bias tables
    that fit the shared memory, and rows that TMA can load."""
    return q.is_cuda and generation(q.device) == 90 and computes(q, k, v, call)


def computes(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> bool:
    """The same, whatever the device."""
    plain = call.mask.q_positions is None and call.dropout == 0.0
    dims = q.dtype == torch.bfloat16 and q.shape[2] in DIMS and v.shape[2] == q.shape[2]
    return plain and dims and len(q) > 0 and holds(call.bias, q.shape[2]) and all(loadable(x) for x in (q, k, v))


def holds(bias: RelativeBias, dim: int) -> bool:
    """Whether shared memory holds a head of its tables."""
    position, time = bias.position_table, bias.time_table
    short = (position is None or len(position) <= POSITION_ROWS[dim]) and (time is None or len(time) <= TIME_ROWS)
    return not bias.tables or (short and GATHERS)


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
    biases, sizes = bias_arguments(call)
    wide, biased = q.shape[2] == 256, bool(call.bias.tables)
    rows = FORWARD[wide + 2 * biased].kwargs["BLOCK"]
    forward_tuned(
        per_unit(records, 2, q),
        [
            *(descriptor(q, ROWS), descriptor(k, rows), descriptor(v, rows), out, seen, seen.stride(0), call.scale),
            *(records, q.shape[1], 0.5 * call.alpha, q.stride(1), k.stride(1), v.stride(1), *out.stride()[:2], *biases),
        ],
        {"DIM": q.shape[2], **sizes},
    )
    return out


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    call: AttentionCall,
    with_tables: Callable[[Tensor], list[Tensor]],
) -> list[Tensor]:
    """Gradients of q, k, v and the bias tables: as `kernels.attention.gpu.backward`, for what `computes` admits.

    With tables dQ stays with the usual kernel, which has all that it takes at hand where it sums the tables' gradients: with_tables gives
    both.
    """
    grad_out = grad_out if loadable(grad_out) else grad_out.contiguous()
    if call.bias.tables:
        dq, *of_tables = with_tables(grad_out)
        return [dq, *key_gradients(grad_out, q, k, v, call), *of_tables]
    return [query_gradients(grad_out, q, k, v, call), *key_gradients(grad_out, q, k, v, call)]


def query_gradients(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
    """dQ, without biases."""
    heads, dim = q.shape[1:]
    records, seen = query_records(call.mask), intervals(call.mask)
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    (wide_query_tuned if dim == 256 else narrow_query_tuned)(
        per_unit(records, 1 if dim == 256 else 2, q),
        [
            *(descriptor(x, ROWS) for x in (q, grad_out, k, v)),
            *(dq, seen, seen.stride(0), call.scale, records, heads, 0.5 * call.alpha),
            *(x.stride(1) for x in (q, grad_out, k, v)),
            *dq.stride()[:2],
        ],
        {"DIM": dim},
    )
    return dq


def key_gradients(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> list[Tensor]:
    """dK and dV."""
    scale = call.scale
    if not call.same_scale:
        # A divisor of each query's own multiplies its gradient, once, and not each pair, whose registers are all taken.
        grad_out = (grad_out * scale[:, None, None]).to(grad_out.dtype)
        scale = torch.ones_like(scale)
    tokens, heads, dim = q.shape
    seen, records = intervals(call.mask), key_records(call.mask, 64 if dim == 256 else 128)
    both = torch.empty(2, seen.stride(0), heads, dim, dtype=k.dtype, device=k.device)
    biases, sizes = bias_arguments(call)
    (wide_key_tuned if dim == 256 else narrow_key_tuned)(
        per_unit(records, 1, q),
        [
            *(descriptor(x, ROWS) for x in (q, grad_out, k, v)),
            *(both, seen, seen.stride(0), scale, records, heads, 0.5 * call.alpha),
            *(x.stride(1) for x in (q, grad_out, k, v)),
            *both.stride()[1:3],
            *biases,
        ],
        {"DIM": dim, **sizes},
    )
    return [both[0, :tokens], both[1, :tokens]]


def bias_arguments(call: AttentionCall) -> tuple[list[Tensor], dict[str, int]]:
    """(position_table, time_table, positions, times), another tensor in the place of what is not read; and the tables' sizes: in shared memory
    (0: no table), and their own."""
    position, time = call.bias.position_table, call.bias.time_table
    rows = [0 if t is None else len(t) for t in (position, time)]
    held = [max(128, triton.next_power_of_2(n)) if n else 0 for n in rows]
    sizes = {"POSITION_ROWS": held[0], "TIME_ROWS": held[1], "REACH": max(rows[0] - 1, 0) // 2, "BUCKETS": rows[1]}
    if not any(rows):
        return [call.scale] * 4, sizes
    placed = places(call.mask, call.bias)
    return [*(call.scale if t is None else t.contiguous() for t in (position, time)), *placed], sizes


def per_unit(records: Tensor, units: int, q: Tensor) -> Callable[[dict[str, Any]], tuple[int, ...]]:
    """A program for so many records, and head; heads innermost."""
    return lambda _: (records.numel() // records.shape[-1] // units * q.shape[1],)

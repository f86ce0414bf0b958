"""Interval attention on GPU: Triton kernels that touch the tiles that the intervals need, and no others.

    triton_forward.py        a program per query block: walks the keys `[min begin, max end)` of its rows
    triton_backward.py       the same walk for dQ and the bias tables, a pass of its own, so that dQ sums in float32, in
                             order; and a program per key block, which walks the query blocks that see it, for dK and dV
    triton_tiles.py          what their tiles are made of
    hopper/                  kernels of their own for sm_90, where `GENRANK_GLUON` asks for them
    plan.py                  which program does what: units of work, a sample's together, heaviest samples first

Each walk has two parts. Tiles that every row sees whole run without mask arithmetic; the tiles at the edges of the
intervals are masked. Rows outside their own interval (candidates) meet their own keys in further masked tiles, so
that candidates cost their diagonal tiles only. Programs start sample by sample, in descending order of their work, over
units of `UNIT` rows: no launch slot waits for a sample that is not there, the heaviest samples do not finish last, and the
programs of one moment share their keys and values.

Determinism: every sum has one owner and one order. Table gradients, which many programs share, add as 64-bit integers
in a fixed-point scale derived from the data, because integer sums do not depend on their order.

`configs.py` says which configurations a call may choose; this file launches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from genrank import environment
from genrank.kernels.attention.bias import RelativeBias
from genrank.kernels.attention.call import AttentionCall
from genrank.kernels.attention.configs import (
    BACKWARD_KV_CONFIGS,
    BACKWARD_Q_CONFIGS,
    FORWARD_CONFIGS,
    TUNED_FOR,
    fits,
)
from genrank.kernels.attention.hopper import choice
from genrank.kernels.attention.interval import planned
from genrank.kernels.attention.plan import CHUNK, UNIT, Plan, make_plan
from genrank.kernels.attention.triton_backward import backward_kv_kernel, backward_q_kernel
from genrank.kernels.attention.triton_forward import forward_kernel
from genrank.kernels.launch import INTERPRET, Tuned

HEADROOM = 256.0
"""Where each query has a divisor of its own, `backward_kv_kernel` multiplies p and ds, which carry the factor 1/n, by
this before they are rounded to float16."""

forward_tuned = Tuned(forward_kernel, FORWARD_CONFIGS, [*TUNED_FOR, "SELF"], fits, length="bucket")
backward_q_tuned = Tuned(backward_q_kernel, BACKWARD_Q_CONFIGS, TUNED_FOR, fits, ["position_sum", "time_sum"], "bucket")
backward_kv_tuned = Tuned(
    backward_kv_kernel, BACKWARD_KV_CONFIGS, [*TUNED_FOR, "WANT_K", "WANT_V", "HEADROOM"], fits, length="bucket"
)

# --- launches ---------------------------------------------------------------------------------------------------------


def forward(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, chosen: triton.Config | None = None) -> Tensor:
    """[Tq, H, Dv]: `reference_attention` with dropout by counter. chosen: overrides what tuning chose."""
    if chosen is None and choice.wanted():
        from genrank.kernels.attention.hopper import gpu as hopper

        usual, gluon = (lambda: own_forward(q, k, v, call)), (lambda: hopper.forward(q, k, v, call))
        served = hopper.serves(q, k, v, call)
        return choice.run("attention forward", served, choice_key(q, call), q.device, usual, gluon)
    return own_forward(q, k, v, call, chosen)


def own_forward(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, chosen: triton.Config | None = None) -> Tensor:
    """`forward` by the kernels of this folder."""
    mask, scale, bias = call[:3]
    q, k, v = (unit_stride(x) for x in (q, k, v))
    check_reach(call.max_length, q, k, v)
    out = v.new_empty(q.shape[0], q.shape[1], v.shape[2])
    if not len(q):
        return out
    plan = planned(mask, ("triton", len(k)), lambda: make_plan(mask, len(k)))
    own = mask.begin if mask.q_positions is None else mask.q_positions
    where = [mask.k_offsets, own, mask.begin, mask.end, scale]
    described = descriptors(k, v)
    forward_tuned(
        per_unit(len(plan.q_units), q.shape[1], "BLOCK_M"),
        [
            *(q, k, v, *described, out, *where, plan.q_units, *pointers(bias, scale)),
            *(*scalars(call, q), len(q), *strides(q, k, v, out), bucket_of(call)),
        ],
        constants(q, v, call, described) | {"SELF": mask.q_positions is None},
        chosen,
    )
    return out


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, chosen: triton.Config | None = None
) -> list[Tensor]:
    """Gradients of q, k, v and of whichever tables the bias has, in their dtypes."""
    if chosen is None and choice.wanted():
        from genrank.kernels.attention.hopper import gpu as hopper

        usual = lambda: own_backward(grad_out, q, k, v, call)  # noqa: E731
        with_tables = lambda grad: query_gradients(grad, q, k, v, call)  # noqa: E731
        gluon = lambda: hopper.backward(grad_out, q, k, v, call, with_tables)  # noqa: E731
        served = hopper.serves(q, k, v, call)
        return choice.run("attention backward", served, choice_key(q, call), q.device, usual, gluon)
    return own_backward(grad_out, q, k, v, call, chosen)


def choice_key(q: Tensor, call: AttentionCall) -> str:
    """What a choice between these kernels and those for sm_90 depends on."""
    tables = " ".join(f"{t}={getattr(call.bias, t) is not None}" for t in ("position_table", "time_table"))
    return f"bucket={bucket_of(call)} DIM={q.shape[2]} {tables}"


def own_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, chosen: triton.Config | None = None
) -> list[Tensor]:
    """`backward` by the kernels of this folder."""
    grad_out, q, k, v = (unit_stride(x) for x in (grad_out, q, k, v))
    dq, *of_tables = query_gradients(grad_out, q, k, v, call, chosen)
    return [dq, *key_gradients(grad_out, q, k, v, call, chosen), *of_tables]


def query_gradients(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, chosen: triton.Config | None = None
) -> list[Tensor]:
    """dQ, and the gradients of whichever tables there are. All have adjacent columns."""
    mask, scale, bias = call[:3]
    check_reach(call.max_length, grad_out, q, k, v)
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    tables = bias.tables
    if not len(q):
        return [dq, *[torch.zeros_like(t) for t in tables]]
    plan = planned(mask, ("triton", len(k)), lambda: make_plan(mask, len(k)))
    sums = [torch.zeros(t.shape, dtype=torch.int64, device=t.device) for t in tables]
    fixed_point = fixed_point_for(grad_out, v, call, plan) if tables else scale
    # Never another argument in their place: tuning sets them to zero between its trials.
    unused = plan.q_units.new_empty(1)
    position_sum = sums[0] if bias.position_table is not None else unused
    time_sum = sums[-1] if bias.time_table is not None else unused
    described = (None, None) if beyond_registers(q, v) else descriptors(k, v)
    backward_q_tuned(
        per_unit(len(plan.q_units), q.shape[1], "BLOCK_M"),
        [
            *(q, k, v, *described, grad_out, dq, mask.begin, mask.end, scale, plan.q_units, *pointers(bias, scale)),
            *(position_sum, time_sum, fixed_point, *scalars(call, q), len(q), *strides(q, k, v, grad_out, dq)),
            bucket_of(call),
        ],
        constants(q, v, call, described)
        | {"GRAD_POSITION": bias.position_table is not None, "GRAD_TIME": bias.time_table is not None},
        chosen,
    )
    return [dq, *[(s.double() / fixed_point).to(t.dtype) for s, t in zip(sums, tables, strict=True)]]


def key_gradients(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, chosen: triton.Config | None = None
) -> list[Tensor]:
    """dK and dV. All have adjacent columns."""
    mask, scale, bias = call[:3]
    check_reach(call.max_length, grad_out, q, k, v)
    dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
    if not len(q):
        return [dk, dv]
    plan = planned(mask, ("triton", len(k)), lambda: make_plan(mask, len(k)))
    wide = beyond_registers(q, v)
    described = (None, None) if wide else descriptors(q, grad_out)
    for wanted in ((True, False), (False, True)) if wide else ((True, True),):
        backward_kv_tuned(
            per_unit(len(plan.k_units), q.shape[1], "BLOCK_N"),
            [
                *(q, k, v, *described, grad_out, dk, dv, mask.begin, mask.end, scale),
                *(plan.k_units, plan.summary, *pointers(bias, scale), *scalars(call, q), len(k)),
                *(*strides(q, k, v, grad_out, dk, dv), bucket_of(call)),
            ],
            constants(q, v, call, described)
            | {"HEADROOM": 0.0 if call.same_scale else HEADROOM, "CHUNK_ROWS": CHUNK}
            | dict(zip(("WANT_K", "WANT_V"), wanted, strict=True)),
            chosen,
        )
    return [dk, dv]


def beyond_registers(q: Tensor, v: Tensor) -> bool:
    """Whether the sums of dK and dV do not fit one program's registers, beyond 128 columns: a pass for each. Nor does TMA fit."""
    return max(q.shape[2], v.shape[2]) > 128


def per_unit(units: int, heads: int, block: str) -> Callable[[dict[str, Any]], tuple[int, ...]]:
    """One dimension, heads innermost: all heads of a unit start together."""
    return lambda chosen: (units * (UNIT // chosen[block]) * heads,)


def bucket_of(call: AttentionCall) -> int:
    """The longest sample, or else the mean length, rounded up to a power of two."""
    mask, length = call.mask, call.max_length
    if length < 0:
        length = len(mask.begin) // max(len(mask.q_offsets) - 1, 1)
    return 1 << length.bit_length()


def check_reach(longest: int, *tensors: Tensor) -> None:
    """Raises ValueError where a sample reaches over 2^31 elements of a tensor: its rows are addressed in 32 bits."""
    far = max(x.stride(0) for x in tensors)
    if longest * far >= 2**31:
        raise ValueError(
            f"a sample of {longest} tokens whose rows lie {far} elements apart reaches beyond 2^31 elements; "
            "pass contiguous tensors, fewer heads at once, or shorter samples"
        )


def descriptors(*streamed: Tensor) -> tuple[TensorDescriptor | None, ...]:
    """Of the tensors that a kernel streams, for TMA; None where it cannot be used. Only `GENRANK_TMA=1` asks for it: no
    device has shown yet that it pays."""
    none = (None,) * len(streamed)
    if not environment.TMA.is_set_to("1"):
        return none
    if streamed[0].is_cuda and torch.cuda.get_device_capability(streamed[0].device)[0] < 9:
        return none
    made = []
    for x in streamed:
        tokens, heads, dim = x.shape
        token, head = x.stride()[:2]
        steps = (x.data_ptr(), token * x.element_size(), head * x.element_size())
        across = (heads - 1) * head + dim
        if dim < 16 or dim != triton.next_power_of_2(dim) or any(step % 16 for step in steps) or token < across:
            return none
        made.append(TensorDescriptor(x, [tokens, across], [token, 1], [32, dim]))
    return tuple(made)


def pointers(bias: RelativeBias, absent: Tensor) -> list[Tensor]:
    """The bias's tensors; `absent`, which is not read, in the place of those that it lacks."""
    return [absent if t is None else t.contiguous() for t in bias]


def scalars(call: AttentionCall, q: Tensor) -> list[float]:
    """alpha, reach, time_rows, seed, threshold, inverse_keep and heads of the kernels."""
    bias, alpha, dropout, seed = call[2:6]
    reach = 0 if bias.position_table is None else (bias.position_table.shape[0] - 1) // 2
    time_rows = 0 if bias.time_table is None else bias.time_table.shape[0]
    return [alpha, reach, time_rows, seed, round(dropout * 2**24), 1.0 / (1.0 - dropout), q.shape[1]]


def strides(*tensors: Tensor) -> list[int]:
    """Steps to the next token and to the next head, of each tensor."""
    return [step for t in tensors for step in t.stride()[:2]]


def constants(
    q: Tensor, v: Tensor, call: AttentionCall, described: tuple[TensorDescriptor | None, ...]
) -> dict[str, Any]:
    """Compile-time arguments that all three kernels have."""
    bias, dropout = call.bias, call.dropout
    return {
        "DIM": q.shape[2],
        "VALUE_DIM": v.shape[2],
        "WIDTH": max(16, triton.next_power_of_2(q.shape[2])),
        "VALUE_WIDTH": max(16, triton.next_power_of_2(v.shape[2])),
        "HAS_POSITION": bias.position_table is not None,
        "HAS_TIME": bias.time_table is not None,
        "HAS_POSITIONS": bias.positions is not None,
        "DROPOUT": dropout > 0.0,
        "FAST": q.dtype == torch.bfloat16 and not INTERPRET,
        "PRECISION": precision(q, v, bias),
        "UNIT_ROWS": UNIT,
        "DESCRIBED": described[0] is not None,
    }


def precision(q: Tensor, v: Tensor, bias: RelativeBias) -> str:
    """Of products of float32: three TF32 products, exact to float32's own rounding, or where those do not fit the
    registers the plain units; one TF32 product if PyTorch was set to be content with it."""
    if q.is_cuda and torch.backends.cuda.matmul.allow_tf32:
        return "tf32"
    widest = 128 if bias.position_table is None and bias.time_table is None else 64
    return "ieee" if q.dtype == torch.float32 and max(q.shape[2], v.shape[2]) > widest else "tf32x3"


def unit_stride(x: Tensor) -> Tensor:
    """x [tokens, heads, dim] with adjacent columns, copied only if they are not."""
    return x if x.stride(2) == 1 else x.contiguous()


def fixed_point_for(grad_out: Tensor, v: Tensor, call: AttentionCall, plan: Plan) -> Tensor:
    """float32 []: a power of two F such that all gradients of the scores, times F, add up to less than 2^61.

    |ds| <= |grad_out| |v| max|silu'| / n / (1 - dropout), for a pair of `plan.pairs` or a query and itself. NaN where a gradient is
    not finite.
    """
    grad_norm, v_norm = (torch.linalg.vector_norm(x, dim=2, dtype=torch.float32) for x in (grad_out, v))
    bound = (grad_norm.amax(1) * call.scale).amax() * v_norm.amax() * (1.1 / (1.0 - call.dropout))
    exponent = (61.0 - torch.log2(bound.double() * (plan.pairs.sum() + len(grad_out)))).floor().clamp(max=100.0)
    return torch.where(bound.isfinite(), torch.exp2(exponent), torch.nan).float()

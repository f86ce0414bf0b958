"""Interval attention on GPU: Triton kernels that touch the tiles that the intervals need, and no others.

    attention_forward.py     a program per query block: walks the keys `[min begin, max end)` of its rows
    attention_backward.py    the same walk for dQ and the bias tables, a pass of its own, so that dQ sums in float32, in
                             order; and a program per key block, which walks the query blocks that see it, for dK and dV
    attention_tiles.py       what their tiles are made of
    attention_plan.py        which program does what: units of work, a sample's together, heaviest samples first

Each walk has two parts. Tiles that every row sees whole run without mask arithmetic; the tiles at the edges of the
intervals are masked. Rows outside their own interval (candidates) meet their own keys in further masked tiles, so
that candidates cost their diagonal tiles only. Programs start sample by sample, in descending order of their work, over
units of `UNIT` rows: no launch slot waits for a sample that is not there, the heaviest samples do not finish last, and the
programs of one moment share their keys and values.

Determinism: every sum has one owner and one order. Table gradients, which many programs share, add as 64-bit integers
in a fixed-point scale derived from the data, because integer sums do not depend on their order.

This file chooses configurations and launches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from genrank import environment
from genrank.kernels.attention_backward import backward_kv_kernel, backward_q_kernel
from genrank.kernels.attention_forward import forward_kernel
from genrank.kernels.attention_plan import CHUNK, UNIT, Plan, make_plan
from genrank.kernels.interval import Problem, planned
from genrank.kernels.launch import INTERPRET, Tuned

if TYPE_CHECKING:
    from genrank.kernels.attention import RelativeBias

HEADROOM = 256.0
"""Where each query has a divisor of its own, `backward_kv_kernel` multiplies p and ds, which carry the factor 1/n, by
this before they are rounded to float16."""

# --- configurations ---------------------------------------------------------------------------------------------------


def config(rows: int, keys: int, warps: int, stages: int, tma: bool = False) -> triton.Config:
    blocks = {"BLOCK_M": rows, "BLOCK_N": keys, "TMA": tma}
    return triton.Config(blocks, num_warps=warps, num_stages=stages, pre_hook=shape_descriptors if tma else None)


def shape_descriptors(named: dict[str, Any]) -> None:
    """Descriptors load one block at a time: of keys in the forward and dQ kernels, of queries in the other."""
    for name, block, width in (
        *(("k_desc", "BLOCK_N", "WIDTH"), ("v_desc", "BLOCK_N", "VALUE_WIDTH")),
        *(("q_desc", "BLOCK_M", "WIDTH"), ("above_desc", "BLOCK_M", "VALUE_WIDTH")),
    ):
        if named.get(name) is not None:
            named[name].block_shape = [named[block], named[width]]


def configs(*blocks: tuple[int, int, int, int]) -> list[triton.Config]:
    """The largest blocks loading by TMA, then all of them without; the interpreter takes the last one."""
    return [*(config(*b, tma=True) for b in blocks if max(b[:2]) == 128), *(config(*b) for b in blocks)]


FORWARD_CONFIGS = configs(
    *((128, 64, 8, 3), (128, 64, 8, 2), (128, 128, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2), (128, 32, 8, 3)),
    *((32, 32, 8, 2), (16, 32, 4, 1), (16, 32, 8, 1), (32, 32, 4, 2)),
)
BACKWARD_Q_CONFIGS = configs(
    *((128, 64, 8, 2), (64, 64, 4, 2), (128, 32, 8, 3), (128, 32, 8, 2), (64, 32, 4, 3)),
    *((32, 32, 8, 2), (16, 32, 4, 1), (16, 32, 8, 1), (32, 32, 4, 2)),
)
BACKWARD_KV_CONFIGS = configs(
    *((32, 128, 8, 3), (64, 128, 8, 2), (32, 128, 8, 2), (64, 64, 4, 2), (32, 64, 4, 3)),
    *((32, 32, 8, 2), (16, 32, 8, 1), (16, 16, 8, 1), (32, 32, 4, 2)),
)
TUNED_FOR = ["bucket", "DIM", "VALUE_DIM", "HAS_POSITION", "HAS_TIME", "DROPOUT", "DESCRIBED"]
"""What a choice of configuration depends on; `bucket` is the batch's own length, so short batches never inherit the
choice made for long ones. Dtypes count besides."""


SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that a block may use."""


def fits(chosen: triton.Config, arguments: dict[str, Any], arch: int) -> bool:
    """Whether accumulators and score tiles stay in registers and tiles in shared memory."""
    rows, keys, warps = chosen.kwargs["BLOCK_M"], chosen.kwargs["BLOCK_N"], chosen.num_warps
    if chosen.kwargs["TMA"] != arguments["DESCRIBED"] or (chosen.kwargs["TMA"] and arch < 90):
        return False
    width, dtype = max(arguments["WIDTH"], arguments["VALUE_WIDTH"]), arguments["k_data"].dtype
    kernel = "kv" if "dk_data" in arguments else "dq" if "dq_data" in arguments else "forward"
    biased = arguments["HAS_POSITION"] or arguments["HAS_TIME"]
    if (rows == 16) != smallest_only(kernel, arguments, width, dtype, biased, arch):
        return False
    narrow = kernel == "kv" and arguments["WIDTH"] < arguments["VALUE_WIDTH"]
    if (rows, keys, warps) == (32, 32, 8) and not (
        (narrow and arch < 90) or (biased and (kernel != "kv" or width > 64))
    ):
        return False
    if narrow and (rows, keys, warps) == (32, 32, 4):
        return False
    if spills(kernel, (rows, keys, warps), arguments, width, dtype, biased, arch):
        return False
    if arguments["DROPOUT"] and rows * keys > 32 * 32 * warps:
        return False
    wanted = arguments["WANT_K"] + arguments["WANT_V"] if kernel == "kv" else 1
    sums, tiles = (keys if kernel == "kv" else rows) * wanted * width, rows * keys * (1 if kernel == "forward" else 2)
    held = keys * (1 + arguments["WANT_K"]) if kernel == "kv" else rows * (1 + (kernel == "dq"))
    streamed = 2 * (rows if kernel == "kv" else keys) * width * dtype.itemsize
    shared, most = held * width * dtype.itemsize + streamed * chosen.num_stages, SHARED[80 if arch < 90 else 90]
    if arch >= 100 or chosen.kwargs["TMA"]:
        most -= 16 * 1024  # Tiles pass through shared memory there, and barriers lie in it.
    listed = {"forward": FORWARD_CONFIGS, "dq": BACKWARD_Q_CONFIGS, "kv": BACKWARD_KV_CONFIGS}[kernel]
    deeper = any(c.kwargs == chosen.kwargs and c.num_stages > chosen.num_stages for c in listed)
    if deeper and shared + streamed <= most:
        return False  # The same blocks with one stage more fit, too.
    wide_dk = kernel == "kv" and arguments["WANT_K"] and width > 128 and arch >= 100
    limit = register_limit(kernel, dtype, width, warps, arch, biased, arguments["DROPOUT"], wanted, wide_dk)
    return (sums + tiles) / (32 * warps) <= limit and shared <= most


def smallest_only(
    kernel: str, arguments: dict[str, Any], width: int, dtype: torch.dtype, biased: bool, arch: int
) -> bool:
    """Where blocks of 32 rows spill, whatever their count of registers says."""
    if dtype.itemsize == 4:
        return width >= 128
    if kernel == "forward":
        return biased and width > 128 and arch < 90
    if kernel == "dq":
        return biased and width > (128 if arch < 100 else 64)
    return bool(arguments["WANT_K"]) and width > 128 and arch >= 100 and (biased or dtype == torch.float16)


def spills(
    kernel: str,
    blocks: tuple[int, int, int],
    arguments: dict[str, Any],
    width: int,
    dtype: torch.dtype,
    biased: bool,
    arch: int,
) -> bool:
    """Single configurations (rows, keys, warps) that spill where their neighbours do not."""
    if kernel == "forward":
        return (
            (arch >= 90 and width <= 64 and biased and blocks == (32, 32, 4))
            or (arch >= 100 and width <= 64 and blocks == (128, 128, 8))
            or (arch < 90 and not arguments["SELF"] and blocks in ((128, 64, 8), (64, 64, 4)))
            or (arch < 90 and width == 128 and dtype == torch.float16 and blocks == (64, 64, 4))
        )
    if kernel == "dq":
        return blocks == (16, 32, 4) and biased and width > 128
    return (
        (biased and width > 128 and blocks == (16, 16, 8))
        or (arch < 90 and width <= 16 and blocks == (64, 64, 4))
        or (arch >= 100 and width <= 16 and blocks == (32, 32, 4))
        or (arch >= 100 and 16 < width <= 64 and blocks == (32, 64, 4))
    )


def register_limit(
    kernel: str,
    dtype: torch.dtype,
    width: int,
    warps: int,
    arch: int,
    biased: bool,
    dropout: bool,
    wanted: int,
    dk_alone: bool,
) -> int:
    """float32 values a thread may hold in accumulators and score tiles: where the compiler began to spill
    (`benchmarks/kernels_compile.py`)."""
    if dtype.itemsize == 4:
        return 34 if width <= 128 else 24
    if biased:  # Two gathers a pair, through 64-bit addresses.
        return {"forward": 44, "dq": 24 if width <= 128 else 40, "kv": 72}[kernel]
    if arch < 90:  # Operands of the products pass through registers, too.
        return 90 if dropout else 96
    half = dtype == torch.float16  # Its exact SiLU holds more than bfloat16's.
    if arch >= 100:
        if kernel == "kv":
            return 80 if dk_alone else 140 if dropout else 100 if half and width <= 128 else 192 if wanted == 2 else 160
        return 60 if dropout else 90 if half else 128 if kernel == "forward" else 112
    if dropout:
        return {"forward": 100, "dq": 128, "kv": 140}[kernel] if warps == 8 else 90
    if warps == 4:
        return 112 if half and kernel == "dq" else 144
    if kernel == "kv":
        return 192 if wanted == 2 and not half else 160
    return 150 if kernel == "dq" and half else 160


forward_tuned = Tuned(forward_kernel, FORWARD_CONFIGS, [*TUNED_FOR, "SELF"], fits, length="bucket")
backward_q_tuned = Tuned(backward_q_kernel, BACKWARD_Q_CONFIGS, TUNED_FOR, fits, ["position_sum", "time_sum"], "bucket")
backward_kv_tuned = Tuned(
    backward_kv_kernel, BACKWARD_KV_CONFIGS, [*TUNED_FOR, "WANT_K", "WANT_V", "ROOM"], fits, length="bucket"
)

# --- launches ---------------------------------------------------------------------------------------------------------


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    problem: Problem,
    scale: Tensor,
    bias: RelativeBias,
    alpha: float,
    dropout: float = 0.0,
    seed: int = 0,
    longest: int = -1,
    chosen: triton.Config | None = None,
) -> Tensor:
    """[Tq, H, Dv]; arguments as in `kernels.attention.reference_attention`.

    longest: tokens of the longest sample, -1 if not known; chosen: overrides what tuning chose.
    """
    q, k, v = (unit_stride(x) for x in (q, k, v))
    check_reach(longest, q, k, v)
    out = v.new_empty(q.shape[0], q.shape[1], v.shape[2])
    if not len(q):
        return out
    plan = planned(problem, ("triton", len(k)), lambda: make_plan(problem, len(k)))
    where = [problem.k_offsets]
    where += [problem.begin if problem.q_positions is None else problem.q_positions, problem.begin, problem.end, scale]
    described = descriptors(k, v)
    forward_tuned(
        per_unit(len(plan.q_units), q.shape[1], "BLOCK_M"),
        [
            *(q, k, v, *described, out, *where, plan.q_units, *pointers(bias, scale)),
            *(*scalars(bias, alpha, dropout, seed, q), len(q), *strides(q, k, v, out), bucket_of(problem, longest)),
        ],
        constants(q, v, bias, dropout, described) | {"SELF": problem.q_positions is None},
        chosen,
    )
    return out


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    problem: Problem,
    scale: Tensor,
    bias: RelativeBias,
    alpha: float,
    dropout: float = 0.0,
    seed: int = 0,
    same_scale: bool = False,
    longest: int = -1,
    chosen: triton.Config | None = None,
) -> list[Tensor]:
    """Gradients of q, k, v and of whichever tables `bias` has. same_scale: all queries of a sample share one scale."""
    grad, q, k, v = (unit_stride(x) for x in (grad, q, k, v))
    check_reach(longest, grad, q, k, v)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    tables = [t for t in (bias.position_table, bias.time_table) if t is not None]
    if not len(q):
        return [dq, dk, dv, *[torch.zeros_like(t) for t in tables]]
    plan = planned(problem, ("triton", len(k)), lambda: make_plan(problem, len(k)))
    sums = [torch.zeros(t.shape, dtype=torch.int64, device=t.device) for t in tables]
    fixed_point = fixed_point_for(grad, v, scale, dropout, plan) if tables else scale
    # Never another argument in their place: tuning sets them to zero between its trials.
    unused = plan.q_units.new_empty(1)
    position_sum = sums[0] if bias.position_table is not None else unused
    time_sum = sums[-1] if bias.time_table is not None else unused
    where = [problem.begin, problem.end, scale]
    biases, numbers = pointers(bias, scale), scalars(bias, alpha, dropout, seed, q)
    # Beyond 128 columns, the sums of dK and dV do not fit one program's registers: a pass for each. Nor does TMA fit.
    wide = max(q.shape[2], v.shape[2]) > 128
    bucket, described = bucket_of(problem, longest), (None, None) if wide else descriptors(k, v)
    backward_q_tuned(
        per_unit(len(plan.q_units), q.shape[1], "BLOCK_M"),
        [
            *(q, k, v, *described, grad, dq, *where, plan.q_units, *biases),
            *(position_sum, time_sum, fixed_point, *numbers, len(q), *strides(q, k, v, grad, dq), bucket),
        ],
        constants(q, v, bias, dropout, described)
        | {"GRAD_POSITION": bias.position_table is not None, "GRAD_TIME": bias.time_table is not None},
        chosen,
    )
    described = (None, None) if wide else descriptors(q, grad)
    for wanted in ((True, False), (False, True)) if wide else ((True, True),):
        backward_kv_tuned(
            per_unit(len(plan.k_units), q.shape[1], "BLOCK_N"),
            [
                *(q, k, v, *described, grad, dk, dv, *where),
                *(plan.k_units, plan.summary, *biases),
                *(*numbers, len(k), *strides(q, k, v, grad, dk, dv), bucket),
            ],
            constants(q, v, bias, dropout, described)
            | {"ROOM": 0.0 if same_scale else HEADROOM, "CHUNK_ROWS": CHUNK}
            | dict(zip(("WANT_K", "WANT_V"), wanted, strict=True)),
            chosen,
        )
    return [dq, dk, dv, *[(s.double() / fixed_point).to(t.dtype) for s, t in zip(sums, tables, strict=True)]]


def per_unit(units: int, heads: int, block: str) -> Callable[[dict[str, Any]], tuple[int, ...]]:
    """One dimension, heads innermost: all heads of a unit start together."""
    return lambda chosen: (units * (UNIT // chosen[block]) * heads,)


def bucket_of(problem: Problem, longest: int) -> int:
    """The longest sample, or else the mean length, rounded up to a power of two."""
    length = longest if longest >= 0 else len(problem.begin) // max(len(problem.q_offsets) - 1, 1)
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
    return [absent if t is None else t.contiguous() for t in bias]


def scalars(bias: RelativeBias, alpha: float, dropout: float, seed: int, q: Tensor) -> list[Any]:
    reach = 0 if bias.position_table is None else (bias.position_table.shape[0] - 1) // 2
    time_rows = 0 if bias.time_table is None else bias.time_table.shape[0]
    return [alpha, reach, time_rows, seed, round(dropout * 2**24), 1.0 / (1.0 - dropout), q.shape[1]]


def strides(*tensors: Tensor) -> list[int]:
    return [step for t in tensors for step in t.stride()[:2]]


def constants(
    q: Tensor, v: Tensor, bias: RelativeBias, dropout: float, described: tuple[TensorDescriptor | None, ...]
) -> dict[str, Any]:
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
    registers the plain units; one TF32 product if PyTorch was told to be content with it."""
    if q.is_cuda and torch.backends.cuda.matmul.allow_tf32:
        return "tf32"
    widest = 128 if bias.position_table is None and bias.time_table is None else 64
    return "ieee" if q.dtype == torch.float32 and max(q.shape[2], v.shape[2]) > widest else "tf32x3"


def unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def fixed_point_for(grad: Tensor, v: Tensor, scale: Tensor, dropout: float, plan: Plan) -> Tensor:
    """float32 []: a power of two F such that all gradients of the scores, times F, add up to less than 2^61.

    |ds| <= |grad| |v| max|silu'| / n / (1 - dropout), and there are `plan.pairs` of them. NaN where a gradient is not
    finite.
    """
    grad_norm, v_norm = (torch.linalg.vector_norm(x, dim=2, dtype=torch.float32) for x in (grad, v))
    bound = (grad_norm.amax(1) * scale).amax() * v_norm.amax() * (1.1 / (1.0 - dropout))
    exponent = (61.0 - torch.log2(bound.double() * plan.pairs)).floor().clamp(max=100.0)
    return torch.where(bound.isfinite(), torch.exp2(exponent), torch.nan).float()

"""Configurations of the attention kernels (block sizes, warps, stages), and which of them a call may choose.

A configuration may be chosen where the compiler keeps it in registers. That was measured; three tables beside this file
hold it, and `python -m benchmarks.kernels_compile` measures it again:

    limits.csv          float32 values that a thread may hold in accumulators and score tiles before the compiler spills;
                        of the lines about a situation the first one counts
    spills.csv          single configurations that spill all the same, and the bytes that were measured: in which case, for
                        which GPU, with which Triton (`--spills` measures them again). 0: spilled in
                        another case or under another Triton
    last_resorts.csv    where the smallest configuration of 32 rows with 8 warps is offered

Their columns: `kernel` (forward, dq, dkv), `arch` (80, 90, 100), `dtype`, `warps` and `triton` (major.minor) list values, `*`
is any; `width`, the wider of the two head dims, rounded up to a power of two, is a range; all `features` must be there: bias,
dropout, plain (neither), delta (queries apart from keys), square (Dqk = Dv), narrow (Dqk < Dv), tma (tiles are loaded by the tensor
memory accelerator), dk and dv (the gradients that a pass computes). `config` is rows x keys
x warps.
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton


def config(rows: int, keys: int, warps: int, stages: int, tma: bool = False) -> triton.Config:
    """Blocks of `rows` queries and `keys` keys; tma: tiles are loaded by the tensor memory accelerator."""
    blocks = {"BLOCK_M": rows, "BLOCK_N": keys, "TMA": tma}
    return triton.Config(blocks, num_warps=warps, num_stages=stages, pre_hook=shape_descriptors)


def shape_descriptors(named: dict[str, Any]) -> None:
    """Descriptors load one block at a time: of keys in the forward and dQ kernels, of queries in the other. Where a configuration leaves
    them unused, too: their shape is part of what is compiled."""
    for name, block, width in (
        *(("k_desc", "BLOCK_N", "WIDTH"), ("v_desc", "BLOCK_N", "VALUE_WIDTH")),
        *(("q_desc", "BLOCK_M", "WIDTH"), ("grad_out_desc", "BLOCK_M", "VALUE_WIDTH")),
    ):
        if named.get(name) is not None:
            named[name].block_shape = [named[block], named[width]]


Blocks = tuple[int, int, int, int]
"""Rows, keys, warps, stages."""


def configs(*blocks: Blocks, tma: tuple[Blocks, ...] = ()) -> list[triton.Config]:
    """The largest blocks, and `tma`, loading by TMA, then all of `blocks` without; the interpreter takes the last one."""
    by_tma = (*(each for each in blocks if max(each[:2]) == 128), *tma)
    return [*(config(*each, tma=True) for each in by_tma), *(config(*each) for each in blocks)]


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
    tma=((64, 64, 8, 2),),
)
CONFIGS = {"forward": FORWARD_CONFIGS, "dq": BACKWARD_Q_CONFIGS, "dkv": BACKWARD_KV_CONFIGS}
LAST_RESORTS = {"32x32x8"}
"""Chosen only in situations of `last_resorts.csv`."""
TUNED_FOR = ["bucket", "DIM", "VALUE_DIM", "HAS_POSITION", "HAS_TIME", "DROPOUT", "DESCRIBED"]
"""What a choice of configuration depends on; `bucket` is the batch's own length, so short batches never inherit the
choice made for long ones. Dtypes count besides."""

# --- the tables -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Situation:
    """What of a call decides which configurations fit."""

    kernel: str
    arch: int
    dtype: str
    width: int
    features: frozenset[str]

    @classmethod
    def of(cls, arguments: Mapping[str, Any], arch: int) -> Situation:
        """Of a launch: its arguments by name, and the generation of the GPU (80, 86, 90, 100, ...)."""
        kernel = "dkv" if "dk_data" in arguments else "dq" if "dq_data" in arguments else "forward"
        have = {
            "bias": arguments["HAS_POSITION"] or arguments["HAS_TIME"],
            "dropout": arguments["DROPOUT"],
            "delta": kernel == "forward" and not arguments["SELF"],
            "plain": not (arguments["HAS_POSITION"] or arguments["HAS_TIME"] or arguments["DROPOUT"]),
            "square": arguments["WIDTH"] == arguments["VALUE_WIDTH"],
            "narrow": kernel == "dkv" and arguments["WIDTH"] < arguments["VALUE_WIDTH"],
            "tma": arguments["DESCRIBED"],
            "dk": kernel == "dkv" and arguments["WANT_K"],
            "dv": kernel == "dkv" and arguments["WANT_V"],
        }
        width = max(arguments["WIDTH"], arguments["VALUE_WIDTH"])
        dtype = str(arguments["k_data"].dtype).removeprefix("torch.")
        return cls(kernel, min(arch // 10 * 10, 100), dtype, width, frozenset(name for name in have if have[name]))


@dataclass(frozen=True)
class Line:
    """A line of a table: the situations that it is about, and its own cells."""

    cells: Mapping[str, str]

    def about(self, situation: Situation) -> bool:
        """Whether the situation is among them."""
        low, high = span(self.cells["width"])
        return (
            lists(self.cells["kernel"], situation.kernel)
            and lists(self.cells["arch"], str(situation.arch))
            and lists(self.cells["dtype"], situation.dtype)
            and low <= situation.width <= high
            and situation.features.issuperset(self.cells["features"].split())
        )


def lists(cell: str, value: str) -> bool:
    """Whether a cell of values names this one."""
    return cell == "*" or value in cell.split()


def span(cell: str) -> tuple[float, float]:
    """The least and the largest value of a range: "128-", "-64", "32-64" or "*"."""
    if cell == "*":
        return 0, math.inf
    low, _, high = cell.partition("-")
    return float(low or 0), float(high or math.inf)


@functools.cache
def table(name: str) -> tuple[Line, ...]:
    """The lines of `limits`, `spills` or `last_resorts`; of spills, those of the Triton that is installed."""
    with Path(__file__).with_name(f"{name}.csv").open(newline="") as file:
        lines = tuple(Line(cells) for cells in csv.DictReader(file))
    version = ".".join(triton.__version__.split(".")[:2])
    return tuple(line for line in lines if lists(line.cells.get("triton", "*"), version))


def named(name: str, situation: Situation) -> set[str]:
    """The configurations that a table's lines about this situation name."""
    return {line.cells["config"] for line in table(name) if line.about(situation)}


def register_limit(situation: Situation, warps: int) -> int:
    """float32 values that a thread may hold in accumulators and score tiles."""
    found = (line for line in table("limits") if line.about(situation) and lists(line.cells["warps"], str(warps)))
    return int(next(found).cells["values"])


# --- what fits --------------------------------------------------------------------------------------------------------

SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that a block may use (CUDA C++ programming guide, compute capabilities 8.0, 9.0, 10.0)."""
LARGE = "32+"
"""In `spills`: every configuration of 32 rows or more."""


def fits(chosen: triton.Config, arguments: Mapping[str, Any], arch: int) -> bool:
    """Whether accumulators and score tiles stay in registers and tiles in shared memory."""
    situation = Situation.of(arguments, arch)
    rows, keys, warps, tma = chosen.kwargs["BLOCK_M"], chosen.kwargs["BLOCK_N"], chosen.num_warps, chosen.kwargs["TMA"]
    if tma != arguments["DESCRIBED"] or (tma and arch < 90):
        return False
    name, spilling = name_of(chosen), named("spills", situation)
    if name in spilling or (rows == 16) != (LARGE in spilling):
        return False
    if name in LAST_RESORTS and name not in named("last_resorts", situation):
        return False
    if "dropout" in situation.features and rows * keys > 32 * 32 * warps:
        return False  # A random number a pair, too.
    if held_values(chosen, situation) > register_limit(situation, warps):
        return False
    most = SHARED[situation.arch]
    if arch >= 100 or tma:
        most -= 16 * 1024  # Tiles pass through shared memory there, and barriers lie in it.
    held, stage = shared_bytes(chosen, situation)
    needed: int = held + chosen.num_stages * stage
    listed = CONFIGS[situation.kernel]
    if any(c.kwargs == chosen.kwargs and c.num_stages > chosen.num_stages for c in listed):
        # With one stage more the same blocks may fit, too.
        return needed <= most < needed + stage
    return needed <= most


def name_of(chosen: triton.Config) -> str:
    """Rows x keys x warps, as the tables name a configuration."""
    return f"{chosen.kwargs['BLOCK_M']}x{chosen.kwargs['BLOCK_N']}x{chosen.num_warps}"


def held_values(chosen: triton.Config, situation: Situation) -> float:
    """float32 values a thread holds: the accumulators, and one tile of scores (in backward two)."""
    rows, keys, threads = int(chosen.kwargs["BLOCK_M"]), int(chosen.kwargs["BLOCK_N"]), 32 * int(chosen.num_warps)
    sums = {"forward": rows, "dq": rows, "dkv": keys * len(situation.features & {"dk", "dv"})}[situation.kernel]
    tiles = 1 if situation.kernel == "forward" else 2
    return (sums * situation.width + tiles * rows * keys) / threads


def shared_bytes(chosen: triton.Config, situation: Situation) -> tuple[int, int]:
    """Bytes of shared memory for what a program holds, and for each stage of what it streams (two tiles)."""
    rows, keys = int(chosen.kwargs["BLOCK_M"]), int(chosen.kwargs["BLOCK_N"])
    row = situation.width * (4 if situation.dtype == "float32" else 2)
    if situation.kernel == "dkv":
        return keys * (1 + ("dk" in situation.features)) * row, 2 * rows * row
    return rows * (1 + (situation.kernel == "dq")) * row, 2 * keys * row

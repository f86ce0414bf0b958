"""Configurations of the span kernels (block sizes, warps, stages), and which of them a call may choose.

A configuration may be chosen where the compiler keeps it in registers and shared memory: by a bound on what a thread holds, and without the
lines of `spills.csv`, single configurations that spill all the same, and the bytes that were measured: in which case, for which GPU, with
which Triton (`python -m benchmarks.kernels_compile --spills` measures them again). Its columns are those of `kernels.attention`'s tables.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import triton

from genrank.kernels.attention.configs import Line, Situation, name_of


def config(rows: int, keys: int, warps: int, stages: int) -> triton.Config:
    """Blocks of `rows` queries and `keys` keys."""
    return triton.Config({"BLOCK_M": rows, "BLOCK_N": keys}, num_warps=warps, num_stages=stages)


LAST_RESORT = config(16, 16, 4, 1)
"""Chosen only where nothing else fits: half a tensor core's tile of rows is wasted work wherever larger blocks do."""
FORWARD = [*(config(*c) for c in ((128, 64, 8, 2), (64, 64, 4, 2), (32, 32, 4, 2))), LAST_RESORT]
BACKWARD_Q = [*(config(*c) for c in ((64, 64, 8, 2), (64, 32, 4, 2), (32, 32, 4, 2), (16, 16, 8, 1))), LAST_RESORT]
BACKWARD_KV = [*(config(*c) for c in ((32, 64, 8, 2), (32, 64, 4, 2), (32, 32, 4, 2))), LAST_RESORT]
"""The order is that of preference where none is timed."""
VALUES = {"forward": 128, "backward": 112}
"""float32 values that a thread may hold in accumulators and score tiles before the compiler spills: measured by
`benchmarks.kernels_compile`, whose table shows what is left."""
BIASED = 32
"""Rows and keys of a block with a bias, whose tables' addresses take registers too; beyond 64 columns 16."""
AMPERE = 64 * 32
"""Pairs of a tile in backward before Hopper, whose products hold both factors in registers."""
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 211 * 1024}
"""Bytes of shared memory that tiles may take."""


def fits(chosen: triton.Config, arguments: Mapping[str, Any], arch: int) -> bool:
    """Whether accumulators and score tiles stay in registers and tiles in shared memory."""
    rows, keys, threads = chosen.kwargs["BLOCK_M"], chosen.kwargs["BLOCK_N"], 32 * chosen.num_warps
    width = max(arguments["WIDTH"], arguments["VALUE_WIDTH"])
    of_keys = "dk_data" in arguments
    backward = of_keys or "dq_data" in arguments
    if chosen is LAST_RESORT:
        return False  # `Tuned.usable` falls back to the last configuration by itself.
    if any(line.cells["config"] == name_of(chosen) for line in spills() if about(line, arguments, arch)):
        return False
    biased = arguments["HAS_POSITION"] or arguments["HAS_TIME"]
    if backward and arch < 90 and rows * keys > AMPERE:
        return False
    if max(rows, keys) > (BIASED if biased and width <= 64 else 16 if biased else 128):
        return False
    held = (2 * keys if of_keys else rows) * width + (2 if backward else 1) * rows * keys
    size = 4 if arguments["k_data"].dtype == torch.float32 else 2
    if size == 4:
        held += rows * keys + (rows + keys) * width // 2
    kept, streamed = (keys, rows) if of_keys else (rows, keys)
    shared = (kept * (2 if backward else 1) + streamed * 2 * chosen.num_stages) * width * size
    most = VALUES["backward" if backward else "forward"]
    fits: bool = held / threads <= most and shared <= SHARED[min(arch // 10 * 10, 100)]
    return fits


@functools.cache
def spills() -> tuple[Line, ...]:
    """The lines of `spills.csv`."""
    with Path(__file__).with_name("spills.csv").open(newline="") as file:
        return tuple(Line(cells) for cells in csv.DictReader(file))


def about(line: Line, arguments: Mapping[str, Any], arch: int) -> bool:
    """Whether a line is about a call, given its arguments by name and the generation of the GPU (80, 86, 90, 100, ...)."""
    return line.about(situation_of(arguments, arch))


def situation_of(arguments: Mapping[str, Any], arch: int) -> Situation:
    """What of a call decides which configurations fit. Features: bias, softmax, silu."""
    biased = arguments["HAS_POSITION"] or arguments["HAS_TIME"]
    return Situation(
        "dkv" if "dk_data" in arguments else "dq" if "dq_data" in arguments else "forward",
        min(arch // 10 * 10, 100),
        str(arguments["k_data"].dtype).removeprefix("torch."),
        max(arguments["WIDTH"], arguments["VALUE_WIDTH"]),
        frozenset({"softmax" if arguments["SOFTMAX"] else "silu", *(["bias"] if biased else [])}),
    )

"""What the compiled attention kernels promise on an H100, read from their machine code, without a GPU.

    python -m benchmarks.kernels_predict      # results/kernels_predict.json; benchmarks/kernels.md says what it means

For the loop over unmasked tiles, where the time goes, it counts instructions and compares three clocks of one
multiprocessor: the tensor cores' (2048 bfloat16 multiply-adds a clock), the special-function units' (16 a clock) and the
four schedulers' (an instruction a clock each). The longest is a lower bound of a tile's time, and tensor / longest an
upper bound of the tensor cores' share. What it cannot see: waiting for memory, for barriers, and for one another.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from benchmarks.kernels_compile import Job, attention_launches, dump
from genrank.schemas.console import with_progress

RESULT = Path(__file__).parent / "results" / "kernels_predict.json"
ARCH = 90
TENSOR, SPECIAL, SCHEDULERS = 2048, 16, 4
"""Of one multiprocessor of an H100, a clock (NVIDIA H100 white paper; CUDA C++ programming guide, throughput table)."""


def hot_loop(sass: str) -> Counter[str]:
    """Instructions of the first loop with tensor-core work: the unmasked tiles come first in every kernel."""
    listing = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", sass)
    code = [(int(at, 16), text) for at, text in listing]
    place = {at: index for index, (at, _) in enumerate(code)}
    loops = []
    for index, (at, text) in enumerate(code):
        jump = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if jump and int(jump[1], 16) <= at and int(jump[1], 16) in place:
            loops.append((place[int(jump[1], 16)], index))
    inner = [
        (first, last)
        for first, last in loops
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in loops)
        and any("MMA" in text for _, text in code[first : last + 1])
    ]
    if not inner:
        return Counter()
    first, last = min(inner)
    bare = (re.sub(r"^@!?U?P\w+\s+", "", text) for _, text in code[first : last + 1])
    return Counter(text.split()[0].split(".")[0] for text in bare)


def predict(job: Job) -> dict[str, Any]:
    compiled = triton.compile(job.source(), target=GPUTarget("cuda", job.arch, 32), options=job.options)
    ops = hot_loop(dump(compiled.asm["cubin"], "-sass"))
    blocks, constants = job.config.kwargs, job.launch.constants
    kernel = job.launch.kernel.__name__
    products = {"forward_kernel": 2, "backward_q_kernel": 3}.get(kernel)
    if products is None:
        products = 1 + constants["WANT_K"] * 2 + constants["WANT_V"]
    pairs, warps = blocks["BLOCK_M"] * blocks["BLOCK_N"], job.config.num_warps
    tensor = products * pairs * constants["WIDTH"] / TENSOR
    special, issue = ops["MUFU"] * 32 * warps / SPECIAL, ops.total() * warps / SCHEDULERS
    wanted = "".join(name for name, flag in (("K", "WANT_K"), ("V", "WANT_V")) if constants.get(flag))
    return {
        "kernel": kernel.removesuffix("_kernel") + (f" d{wanted}" if wanted else ""),
        "dim": constants["DIM"],
        "config": f"{blocks['BLOCK_M']}x{blocks['BLOCK_N']}, {warps} warps" + (", TMA" if blocks["TMA"] else ""),
        "instructions": ops.total(),
        "warpgroup_products": ops["HGMMA"],
        "fences": ops["MEMBAR"],
        "tensor_clocks": round(tensor),
        "special_clocks": round(special),
        "issue_clocks": round(issue),
        "tensor_share_at_most": round(tensor / max(tensor, special, issue), 2),
    }


def main() -> None:
    jobs = []
    for dim in (128, 256):
        for kind in ("plain", "tma"):
            for launch in attention_launches(torch.bfloat16, 4, dim, dim, kind):
                if launch.constants["DESCRIBED"] == (kind == "tma"):
                    jobs.append(Job(launch, launch.configs(ARCH)[0], kind, "bf16", ARCH))
    rows = [predict(job) for job in with_progress(jobs, "predictions")]
    for row in rows:
        print(row)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"triton": triton.__version__, "arch": ARCH, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

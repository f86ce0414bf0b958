"""What only a new process shows: the same bits as the one before it, and how long it takes to its first step.

python -m benchmarks.gpu.repeat DEVICE [--rehearse] [--deterministic]     # such a process; prints its digest and seconds
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.session import Session
from benchmarks.gpu.step import Case, Step, cases

STEPS = 3
"""Of the process."""


def process(device: str, rehearse: bool, deterministic: bool) -> dict[str, Any]:
    """SHA-256 of the losses of `STEPS` steps and of the parameters after them, and seconds of the first step: compiling and
    tuning, and the step itself."""
    torch.use_deterministic_algorithms(deterministic)
    step = Step(cases(rehearse)[0], device, half=not rehearse)
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    wait()
    start = time.perf_counter()
    losses = [step()]
    wait()
    seconds = time.perf_counter() - start
    losses += [step() for _ in range(0 if rehearse else STEPS - 1)]
    digest = hashlib.sha256()
    for tensor in (*losses, *step.model.parameters()):
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return {"digest": digest.hexdigest(), "seconds": round(seconds, 2)}


def run(session: Session, folder: Path, deterministic: bool, compiled: Path | None = None) -> dict[str, Any]:
    """`process` in one of its own, whose tuning cache is in `folder`. compiled: Triton's cache, by default the session's."""
    environment = os.environ | {"GENRANK_TUNING_CACHE": str(folder / "tuning.json")}
    if session.rehearse:
        environment["GENRANK_KERNELS"] = ""  # The kernels' own step is rehearsed without a process of its own.
    if compiled:
        environment["TRITON_CACHE_DIR"] = str(compiled)
    flags = ["--rehearse"] * session.rehearse + ["--deterministic"] * deterministic
    command = [sys.executable, "-m", "benchmarks.gpu.repeat", session.device, *flags]
    # What it does not end in, the sections after it would lack.
    patience = max(10.0, session.left() + 10)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=patience)
    if done.returncode:
        raise RuntimeError(f"a step's process exits {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def check_processes(session: Session) -> dict[str, Any]:
    """Under deterministic algorithms two processes compute the same bits, and neither times a kernel."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        folders = [Path(first), Path(second)]
        found = [run(session, folder, deterministic=True) for folder in folders]
        tuned = any((folder / "tuning.json").exists() for folder in folders)
    same = found[0]["digest"] == found[1]["digest"]
    return {"correct": same and not tuned, "same_bits": same, "timed_kernels": tuned}


def measure_first_step(session: Session) -> dict[str, Any]:
    """Seconds of a process's first step: nothing cached; compiled before, but not tuned; compiled and tuned before."""
    row: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        own, compiled = Path(folder), Path(folder) / "triton"
        try:
            row["cold_s"] = run(session, own, False, compiled)["seconds"]
            if session.rehearse:
                return row
            (own / "tuning.json").unlink(missing_ok=True)
            row["compiled_s"] = run(session, own, False, compiled)["seconds"]
            row["tuned_s"] = run(session, own, False, compiled)["seconds"]
        except subprocess.TimeoutExpired:
            row["left_out"] = "the time was spent"
    return row


def repeat(session: Session) -> None:
    case: Case = cases(session.rehearse)[0]
    session.attempt("correctness", f"two deterministic processes, {case.name}", lambda: check_processes(session))
    session.attempt("first step", case.name, lambda: measure_first_step(session))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--deterministic", action="store_true")
    args = parser.parse_args()
    print(json.dumps(process(args.device, args.rehearse, args.deterministic)))

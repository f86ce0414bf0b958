"""Every kernel on this machine's GPU, and a training step of the models: first their correctness, then their speed, against peers and the chip.

    python -m benchmarks.gpu [--budget 400] [--only TEXT]    measure; writes benchmarks/results/gpu.json and gpu.md
    TRITON_INTERPRET=1 python -m benchmarks.gpu --rehearse   run every path once, tiny, in Triton's interpreter

Needs torch, numpy and triton; with matplotlib it draws plots. Meta's kernel is measured when its repository lies in `peers/`:

    git clone https://github.com/facebookresearch/generative-recommenders peers/generative-recommenders

Each section is a process of its own, and writes each row as soon as it is known: a kernel that breaks the GPU's
context, hangs or crashes costs its own row, and the section goes on with the next one. Exits 1 if an op is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import busy, correctness, mlperf, repeat, report, speed, step, warmup
from benchmarks.gpu.peers import META
from benchmarks.gpu.session import Session, environment

WARMUP = 0.25
SECTIONS = {
    "correctness": 0.35,
    "attention": 0.52,
    "gluon": 0.60,
    "order": 0.63,
    "step": 0.71,
    "mlperf": 0.79,
    "busy": 0.90,
    "repeat": 0.95,
    "around": 0.96,
    "tma": 0.97,
    "flex": 1.0,
}
"""In this order; each may last until this share of the budget is spent. What one leaves over, the next ones have."""


REHEARSAL = "rehearsal"
"""All sections in one process: on a CPU, importing torch anew would be most of the time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=400, help="seconds for all of it")
    parser.add_argument("--only", default="", help="only rows whose 'section name' contains this")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes in the interpreter, nothing written")
    parser.add_argument("--section", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rehearse:
        if os.environ.get("TRITON_INTERPRET") != "1":
            sys.exit("error: --rehearse needs TRITON_INTERPRET=1 in the environment")
        os.environ["GENRANK_KERNELS"] = "triton"
    elif not torch.cuda.is_available():
        sys.exit("error: no GPU here; see --rehearse for a run without one")
    device = "cpu" if args.rehearse else "cuda"
    if args.section:
        return run_section(Session(device, args.until, args.rows, args.rehearse, args.only), *args.section)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        # Beside the results where they are kept, so that a killed run leaves its rows.
        rows = Path(folder) / "gpu.jsonl" if args.rehearse else report.RESULT.with_suffix(".jsonl")
        rows.parent.mkdir(exist_ok=True)
        rows.unlink(missing_ok=True)
        # A tuning cache of its own: everything is timed here, once for all sections.
        os.environ["GENRANK_TUNING_CACHE"] = str(Path(folder) / "tuning.json")
        session = Session(device, start + args.budget, rows, args.rehearse, args.only)
        if args.rehearse:
            run(session, REHEARSAL, start + args.budget)
            results = write_report(session)
            print(report.page(results))
            sys.exit(1 if report.wrong(results) else 0)
        session.write({"section": "warmup", "name": "warmup", **warm_up(session, start + WARMUP * args.budget)})
        for name, share in SECTIONS.items():
            run(session, name, start + share * args.budget)
            results = write_report(session)
        rows.unlink()
    print(report.page(results))
    sys.exit(1 if report.wrong(results) else 0)


def run_section(session: Session, name: str, *numbers: str) -> None:
    if name == REHEARSAL:
        for each in SECTIONS:
            run_section(session, each)
        return warmup.warm_up(session, 0, 1)
    if name == "warmup":
        return warmup.warm_up(session, *map(int, numbers))
    if name == "correctness":
        with environment("GENRANK_AUTOTUNE", "0"):
            return correctness.check_all(session)
    sections = {
        "attention": speed.attention,
        "gluon": speed.gluon,
        "order": speed.order,
        "repeat": repeat.repeat,
        "around": speed.around,
        "tma": speed.tma,
        "flex": speed.flex,
        "step": step.step,
        "mlperf": mlperf.mlperf,
        "busy": busy.busy,
    }
    return sections[name](session)


def command(session: Session, until: float, *section: str) -> list[str]:
    flags = ["--until", str(until), "--rows", str(session.rows_file), "--only", session.only]
    return [sys.executable, "-m", "benchmarks.gpu", *flags, *["--rehearse"] * session.rehearse, "--section", *section]


def run(session: Session, name: str, until: float) -> None:
    """A section, started again after each row that ended its process, as long as there are new rows."""
    while True:
        known = len(session.rows())
        # Past `until` no row begins; the last one has a little longer to end.
        patience = max(10.0, until + 20 - time.monotonic())
        try:
            status = subprocess.run(command(session, until, name), timeout=patience).returncode
        except subprocess.TimeoutExpired:
            return
        if status == 0 or len(session.rows()) == known:
            return


def warm_up(session: Session, until: float) -> dict[str, Any]:
    parts = max(1, (os.cpu_count() or 2) - 1)
    start = time.monotonic()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    commands = [command(session, until, "warmup", str(part), str(parts)) for part in range(parts)]
    workers = [subprocess.Popen(one, **quiet) for one in commands]  # type: ignore[call-overload]
    for worker in workers:
        try:
            worker.wait(timeout=max(1.0, until + 10 - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
    finished = sum(worker.returncode == 0 for worker in workers)
    return {"seconds": round(time.monotonic() - start, 1), "workers": parts, "finished": finished}


def write_report(session: Session) -> dict[str, Any]:
    """All that is known so far, as JSON, page and plot."""
    import triton

    results = {
        "gpu": "none" if session.rehearse else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "peers": {"meta_triton": "peers/generative-recommenders" if META.exists() else "not there: not measured"},
        "rows": session.rows(),
        "tuning": tuning_results(),
    }
    if not session.rehearse:
        report.RESULT.write_text(json.dumps(results, indent=1) + "\n")
        report.plot(results)
        head = report.PAGE.read_text().split(report.MARK)[0]
        report.PAGE.write_text(f"{head}{report.MARK}\n\n{report.page(results)}")
    return results


def tuning_results() -> dict[str, Any]:
    """What was chosen, as a tuning cache has it: it can be shipped."""
    path = Path(os.environ["GENRANK_TUNING_CACHE"])
    return json.loads(path.read_text()) if path.exists() else {}  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()

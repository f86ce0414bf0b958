"""How fast the synthetic marketplace is written, and in how much memory.

    python -m benchmarks.world --rows 1_000_000 10_000_000 --out benchmarks/results/world.json

Each size runs in a fresh process. `parent_mib` is the parent's peak resident set, `worker_mib` the largest worker's; `cpu_seconds` adds up all of them, so
that a busy machine can be distinguished from a slow generator. The limit it is measured against: writing exposures that lie in
memory, with nothing simulated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DAYS = 10
ROWS_PER_USER_DAY = 35.8
"""Exposures a user and day with the default traffic, hot users and bots included."""

CHILD = """
import json, resource, sys, time
from pathlib import Path
from genrank.examples.marketplace.world import generate
if __name__ == "__main__":
    begin = time.perf_counter()
    summary = generate(Path(sys.argv[1]), users=int(sys.argv[2]), days=int(sys.argv[3]), seed=0, workers=int(sys.argv[4]))
    seconds = time.perf_counter() - begin
    rows = {source: sum(days.values()) for source, days in summary["rows"].items()}
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peaks = [u.ru_maxrss / 1024 for u in usage]
    cpu = sum(u.ru_utime + u.ru_stime for u in usage)
    print(json.dumps({"seconds": seconds, "cpu": cpu, "rows": rows, "parent_mib": peaks[0], "worker_mib": peaks[1]}))
"""


def measure(rows: int, workers: int, folder: Path) -> dict[str, Any]:
    """Generate a world of about that many exposures in a fresh process."""
    users = max(100, round(rows / (ROWS_PER_USER_DAY * DAYS)))
    script = folder / "child.py"
    script.write_text(CHILD)
    out = folder / "world"
    done = subprocess.run(
        [sys.executable, str(script), str(out), str(users), str(DAYS), str(workers)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    )
    measured = json.loads(done.stdout)
    size = sum(f.stat().st_size for f in out.rglob("*.parquet"))
    ceiling = write_only(out)
    shutil.rmtree(out)
    exposures = measured["rows"]["exposures"]
    rate = exposures / measured["seconds"]
    return {
        "exposures": exposures,
        "events": sum(measured["rows"].values()),
        "users": users,
        "days": DAYS,
        "workers": workers,
        "seconds": round(measured["seconds"], 2),
        "cpu_seconds": round(measured["cpu"], 2),
        "exposures_per_cpu_second": round(exposures / measured["cpu"]),
        "exposures_per_second": round(rate),
        "write_only_exposures_per_second": round(ceiling),
        "share_of_write_only": round(rate / ceiling, 3),
        "parent_mib": round(measured["parent_mib"]),
        "worker_mib": round(measured["worker_mib"]),
        "disk_mib": round(size / 2**20),
    }


def write_only(world: Path) -> float:
    """Exposures a second when one process only writes a day that lies in memory: the floor under any generator."""
    import pyarrow.parquet as pq

    file = max(world.glob("exposures/*/*.parquet"), key=lambda f: f.stat().st_size)
    table = pq.read_table(file, partitioning=None)
    begin = time.perf_counter()
    pq.write_table(
        table, world / "again.parquet", compression="zstd", compression_level=1, use_dictionary=["scene", "device"]
    )
    return len(table) / (time.perf_counter() - begin)


def main() -> None:
    """Print one line a size and write them all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=lambda text: int(text.replace("_", "")), nargs="+", default=[1_000_000, 10_000_000]
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/world.json"))
    parser.add_argument("--tmp", type=Path, default=None, help="folder for the worlds (removed afterwards)")
    options = parser.parse_args()
    results = []
    for rows in options.rows:
        with tempfile.TemporaryDirectory(dir=options.tmp) as folder:
            results.append(measure(rows, options.workers, Path(folder)))
        print(json.dumps(results[-1]), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cores": len(os.sched_getaffinity(0)), "cpu": platform.processor() or platform.machine()}
    options.out.write_text(
        json.dumps({"machine": machine, "python": platform.python_version(), "results": results}, indent=1)
    )
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()

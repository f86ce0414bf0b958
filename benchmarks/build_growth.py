"""What an exposure costs a build in process, as buckets, rows and users grow: processor seconds, memory, and what is moved and stored.

    python -m benchmarks.build_growth --rows 100_000 --buckets 4 64 256 1024            # as many buckets as are asked for, at fixed rows
    python -m benchmarks.build_growth --rows 100_000 --buckets 4 64 --smallest 1        # what a bucket costs by itself
    python -m benchmarks.build_growth --rows 100_000 300_000 1_000_000 --per-user 100 11

The day of `benchmarks.build` (11 days of clicks, one of exposures), each build a process of its own; processor time is that of the process and its
descendants. Each build is a line of `--log`, by default a file in the temporary folder; those committed (results/build_growth.jsonl) are what
`benchmarks.build_scale` computes larger days from. (Days in a row: `benchmarks.incremental`.)
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
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.build import LAST, _cpu, _Usage, schema, write_logs


def main() -> None:
    """Print and keep a line of JSON for each build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--buckets", type=int, nargs="+", default=[0], help="asked for; 0: by the day's rows")
    parser.add_argument("--per-user", type=int, nargs="+", default=[100], help="exposures of a user and day")
    parser.add_argument("--smallest", type=int, default=0, help="rows of a bucket at least; 0: as a build has it")
    parser.add_argument("--log", type=Path, default=Path(tempfile.gettempdir()) / "genrank-build-growth.jsonl")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(*options.child)))
        return
    machine = {"cores": len(os.sched_getaffinity(0)), "cpu": _cpu(), "python": platform.python_version()}
    with tempfile.TemporaryDirectory() as folder:
        for rows in options.rows:
            for per_user in options.per_user:
                data = Path(folder) / f"logs-{rows}-{per_user}"
                write_logs(data, rows, 0, per_user)
                for buckets in options.buckets:
                    load = round(os.getloadavg()[0], 1)
                    found = measure(data, Path(folder) / "out", buckets, options.smallest)
                    per_row = {"us_an_exposure": round(found["cpu_s"] / rows * 1e6, 1)}
                    asked = {"rows": rows, "per_user": per_user, "asked_buckets": buckets, "smallest": options.smallest}
                    line = json.dumps(asked | found | per_row | {"load": load, "machine": machine})
                    print(line, flush=True)
                    with options.log.open("a") as log:
                        log.write(line + "\n")
                shutil.rmtree(data)


def child(data: str, out: str, buckets: str, smallest: str) -> dict[str, Any]:
    """One build, in this process."""
    usage = _Usage()
    usage.start()
    from genrank.pipelines import plan
    from genrank.pipelines.build import BuildConfig, build
    from genrank.pipelines.days import dt_of
    from genrank.pipelines.local_engine import LocalEngine
    from genrank.pipelines.sample_statistics import path_of

    class Counted(LocalEngine):
        moved = pieces = 0

        def map(self, *args: Any) -> Any:
            frame = super().map(*args)
            self.moved += sum(piece.size for piece in frame)
            self.pieces += len(frame)
            return frame

    if int(smallest):
        plan.FEWEST_ROWS = int(smallest)
    engine = Counted(folder=Path(out) / "staging")
    try:
        config = BuildConfig(schema(), data, Path(out), dt_of(LAST), dt_of(LAST), buckets=int(buckets) or None)
        result = build(config, engine)
    finally:
        engine.stop()
    usage.stop()
    samples = result.manifests[dt_of(LAST)].files
    return {
        "buckets": len(samples),
        "samples": result.samples,
        "cpu_s": round(usage.cpu, 2),
        "peak_mib": round(usage.peak / 2**20),
        "moved_mib": round(engine.moved / 2**20, 1),
        "pieces": engine.pieces,
        "statistics_mib": round(pq.read_table(path_of(Path(out), dt_of(LAST))).nbytes / 2**20, 3),
    }


def measure(data: Path, out: Path, buckets: int, smallest: int) -> dict[str, Any]:
    """Build the day once, in a process of its own."""
    shutil.rmtree(out, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "benchmarks.build_growth",
        "--child",
        str(data),
        str(out),
        str(buckets),
        str(smallest),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    kept = {name: list((out / name).rglob("*.parquet")) for name in ("partials", "samples")}
    return {
        **found,
        **{f"{name}_files": len(files) for name, files in kept.items()},
        **{f"{name}_mib": round(sum(f.stat().st_size for f in files) / 2**20, 2) for name, files in kept.items()},
    }


if __name__ == "__main__":
    main()

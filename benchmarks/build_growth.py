"""What an exposure costs a build in process, as buckets and rows grow: processor seconds, files and bytes of each.

    python -m benchmarks.build_growth --rows 100_000 1_000_000 --buckets 4 64 256

The day of `benchmarks.build`, each build a process of its own; processor time is that of the process and its descendants. (Days in a row:
`benchmarks.incremental`.)
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.build import LAST, schema, write_logs


def main() -> None:
    """Print a line of JSON for each build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--buckets", type=int, nargs="+", default=[4, 64, 256])
    parser.add_argument("--engine", choices=("local", "spark"), default="local")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        for rows in options.rows:
            data = Path(folder) / f"logs-{rows}"
            write_logs(data, rows, hot=0)
            for buckets in options.buckets:
                print(json.dumps(measure(data, Path(folder) / "out", rows, buckets, options.engine)), flush=True)


def child(data: str, out: str, buckets: str, engine: str) -> None:
    """One build, in this process."""
    from genrank.pipelines.build import BuildConfig, build
    from genrank.pipelines.days import dt_of

    build(BuildConfig(schema(), data, Path(out), dt_of(LAST), dt_of(LAST), engine=engine, buckets=int(buckets)))


def measure(data: Path, out: Path, rows: int, buckets: int, engine: str) -> dict[str, Any]:
    """Build the day once."""
    shutil.rmtree(out, ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "benchmarks.build_growth", "--child", str(data), str(out), str(buckets), engine]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    kept = {name: list((out / name).rglob("*.parquet")) for name in ("partials", "samples")}
    return {
        "engine": engine,
        "rows": rows,
        "buckets": buckets,
        "cpu_s": round(cpu, 2),
        "us_an_exposure": round(cpu / rows * 1e6, 1),
        **{f"{name}_files": len(files) for name, files in kept.items()},
        **{f"{name}_mib": round(sum(f.stat().st_size for f in files) / 2**20, 1) for name, files in kept.items()},
    }


if __name__ == "__main__":
    main()

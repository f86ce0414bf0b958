"""Does day 60 cost what day 6 cost? Days of equal traffic arrive one after another, and each is built when it has arrived.

    python -m benchmarks.incremental --out benchmarks/results/incremental.json
    python -m benchmarks.incremental --days 35 --rows 20_000          # smaller
    python -m benchmarks.incremental --longest 7d                     # windows that day 6 fills, too
    python -m benchmarks.incremental --history 2000                   # histories that go on growing
    python -m benchmarks.incremental --memory                         # a user with 10,000 times the median's events

Windows of 1 hour to 30 days (`--longest`) over five key sets, and a history of 60 days that is full after five (10 events a user and day, 50 kept):
what grows is the past alone. Each build runs in this process, after one that warms it up, and is measured by the processor time of the
process and by the bytes it asked the system for (`rchar`), which don't depend on what else the machine does. A milestone is the median and the mean over the days
around it; around days 30 and 60 these are eight, a whole period of the histories' snapshots.

`--memory` builds eleven days of 220,000 exposures, one task at a time, once spread over all users and once with 200,000 of them one
user's (10,000 times the median's 20), each in a process of its own, and reports the process's largest resident set.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DAY = 86_400_000
FIRST = 20_454
WINDOWS = ("1h", "1d", "7d", "30d")
AROUND = {6: range(5, 8), 12: range(10, 15), 30: range(27, 35), 60: range(57, 65)}


def schema(history: int, longest: str) -> Any:
    """Cross features of windows up to `longest` (seventeen for 30d, fourteen for 7d), two sequences, a label."""
    from genrank.schemas import (
        Candidates,
        Categorical,
        CrossFeature,
        EventLog,
        Events,
        EventSequence,
        Hashed,
        Label,
        Schema,
    )

    columns = {"user_id": "int64", "item_id": "int64", "category": "int64", "ts": "int64", "dwell": "int32"}
    side = tuple(Categorical(name=name, vocabulary=Hashed(size=1 << 20), dim=16) for name in ("item_id", "category"))
    windows = WINDOWS[: WINDOWS.index(longest) + 1]

    def cross(name: str, op: str, keys: tuple[str, ...], window: str, **more: Any) -> CrossFeature:
        return CrossFeature(name=f"{name}_{window}", op=op, source="clicks", keys=keys, window=window, **more)

    user, item = ("user_id",), ("item_id",)
    features = [
        *(cross("user_clicks", "count", user, window) for window in windows),
        *(cross("item_clicks", "count", item, window) for window in windows),
        *(cross("item_ctr", "rate", item, window, per="exposures", prior=0.1, strength=10) for window in windows[2:]),
        *(cross("user_category", "count", ("user_id", "category"), window) for window in windows[2:]),
        *(cross("user_item", "recency", ("user_id", "item_id"), window) for window in windows[2:]),
        cross("user_categories", "distinct", user, longest, value="category"),
        cross("item_dwell", "mean", item, longest, value="dwell"),
        cross("long_clicks", "count", item, longest, where="dwell > 50"),
    ]
    return Schema(
        name="incremental",
        sources=(
            EventLog(name="exposures", path="exposures/dt={dt}", columns=columns),
            EventLog(name="clicks", path="clicks/dt={dt}", columns=columns, delay="5m"),
        ),
        sequences=(
            EventSequence(
                name="history", events=(Events(source="clicks"),), features=side, max_length=history, lookback="60d"
            ),
            EventSequence(name="realtime", scope="realtime", events=(Events(source="clicks"),), features=side),
        ),
        candidates=Candidates(features=(*side, *features)),
        labels=(Label(name="click", source="clicks", window="10m"),),
    )


def write_day(folder: Path, day: int, rows: int, hot: int = 0) -> None:
    """`rows` exposures and half as many clicks, 20 and 10 a user; `hot` of the exposures, and half as many clicks, are one user's."""
    from genrank.pipelines.days import dt_of

    rng = np.random.default_rng(day)
    users, items = (rows - hot) // 20, rows // 10
    for source, n in (("exposures", rows), ("clicks", rows // 2)):
        item = np.minimum((rng.pareto(1.1, n) * items / 20).astype(np.int64), items - 1)
        table = {
            "user_id": rng.integers(1, users + 1, n),
            "item_id": item,
            "category": item % 50,
            "ts": np.sort(day * DAY + rng.integers(0, DAY, n)),
            "dwell": rng.integers(0, 100, n).astype(np.int32),
        }
        table["user_id"][rng.permutation(n)[: hot * n // rows]] = 0
        target = folder / source / f"dt={dt_of(day)}"
        target.mkdir(parents=True)
        pq.write_table(pa.table(table), target / "part-0.parquet")


def spent() -> tuple[float, int]:
    """(processor seconds, bytes asked for) of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    read = int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])
    return used.ru_utime + used.ru_stime, read


def measure(
    days: int, rows: int, history: int, longest: str, hot: int = 0
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """What each day's build took, and how many MB lie on the disk after the last."""
    from genrank.pipelines.build import BuildConfig, build
    from genrank.pipelines.days import dt_of
    from genrank.pipelines.local_engine import LocalEngine

    declared, engine = schema(history, longest), LocalEngine(threads=1)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_day(root / "warm", FIRST, rows, hot)
        build(BuildConfig(declared, root / "warm", root / "warm-out", dt_of(FIRST), dt_of(FIRST)), engine)
        for number in range(days):
            write_day(root / "data", FIRST + number, rows, hot)
            dt = dt_of(FIRST + number)
            begin, (cpu, read) = time.perf_counter(), spent()
            result = build(BuildConfig(declared, root / "data", root / "out", dt, dt), engine)
            end = spent()
            written = sum(path.stat().st_size for path in (root / "out" / "samples" / f"dt={dt}").rglob("*.parquet"))
            found.append(
                {
                    "day": number,
                    "cpu_s": round(end[0] - cpu, 3),
                    "wall_s": round(time.perf_counter() - begin, 3),
                    "read_mb": round((end[1] - read) / 1e6, 2),
                    "samples_mb": round(written / 1e6, 2),
                    "candidates": result.candidates,
                }
            )
            print(json.dumps(found[-1]), flush=True)
        sizes = {
            name: round(
                sum(path.stat().st_size for path in (root / "out" / name).rglob("*") if path.is_file()) / 1e6, 1
            )
            for name in ("partials", "blocks", "samples")
        }
    return found, sizes


def peak_mib(rows: int, hot: int) -> float:
    """Largest resident set of a process that builds eleven days."""
    code = (
        "import resource; from benchmarks.incremental import measure; "
        f"measure(11, {rows}, 50, '30d', {hot}); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return round(float(done.stdout.splitlines()[-1]), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=int, default=65)
    parser.add_argument("--rows", type=int, default=60_000, help="exposures a day")
    parser.add_argument("--history", type=int, default=50, help="events a history keeps")
    parser.add_argument("--longest", choices=WINDOWS[2:], default="30d", help="the longest window")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory", action="store_true", help="measure memory under one huge user instead")
    asked = parser.parse_args()
    if asked.memory:
        peaks = {"spread_mib": peak_mib(220_000, 0), "one_user_mib": peak_mib(220_000, 200_000)}
        print(peaks)
        if asked.out:
            asked.out.write_text(json.dumps(peaks, indent=1))
        return
    days, sizes = measure(asked.days, asked.rows, asked.history, asked.longest)
    print(f"MB on disk: {sizes}")
    milestones = {}
    for day, around in AROUND.items():
        if asked.days >= around.stop:
            around_it = [days[at] for at in around]
            milestones[day] = {
                f"{key}_{how.__name__}": round(how([one[key] for one in around_it]), 3)
                for key in ("cpu_s", "read_mb", "samples_mb")
                for how in (statistics.median, statistics.mean)
            }
            ratios = {key: round(value / milestones[6][key], 2) for key, value in milestones[day].items()}
            print(f"day {day}: {milestones[day]}; times day 6: {ratios}")
    report = {
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()},
        "rows": asked.rows,
        "history": asked.history,
        "longest": asked.longest,
        "milestones": milestones,
        "mb_on_disk": sizes,
        "days": days,
    }
    if asked.out:
        asked.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

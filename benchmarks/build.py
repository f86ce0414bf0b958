"""The sample builder beside a hand-written polars script and naive Spark SQL, on the same logs, for the same output.

    python -m benchmarks.build --rows 5_000_000 --repeats 3 --out benchmarks/results/build.json
    python -m benchmarks.build --rows 200_000 --peers local polars spark spark_sql
    python -m benchmarks.build --rows 1_000_000 --hot 100 --peers local spark     # one user has 100x the median

One day of `rows` exposures and `rows / 5` clicks, after ten days that fill the histories: 12 cross features over four key sets, 200
events of history, realtime events, a label. Every run is a fresh process; peers take turns; figures are medians. `cpu_s` is the
processor time of the process and all its children, which is what to compare on a machine that does other work too.

The polars script computes cross features by as-of joins on running counts, which is the fastest form we know by hand; it skips
deduplication, quarantine, statistics and the gate. The SQL computes them by range joins, as one would write them first, and
nothing else: no history, no label.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DAY = 86_400_000
DAYS = 11
LAST = 20_605
"""Number of the day built (2026-06-01)."""
WINDOWS = {"1h": 3_600_000, "1d": DAY, "7d": 7 * DAY}
KEYS = (("user_id",), ("item_id",), ("user_id", "item_id"), ("user_id", "category"))


def schema() -> Any:
    """Twelve cross features, two sequences, one label."""
    from schemas import Candidates, Categorical, CrossFeature, EventLog, Events, Hashed, Label, Schema, Sequence

    columns = {"user_id": "int64", "item_id": "int64", "category": "int64", "ts": "int64"}
    side = tuple(Categorical(name=name, vocabulary=Hashed(size=1 << 20), dim=16) for name in ("item_id", "category"))
    cross = [
        CrossFeature(name=f"c_{'_'.join(keys)}_{window}", op="count", source="clicks", keys=keys, window=window)
        for keys in KEYS
        for window in WINDOWS
    ]
    return Schema(
        name="benchmark",
        sources=(
            EventLog(name="exposures", path="exposures/dt={dt}", columns=columns),
            EventLog(name="clicks", path="clicks/dt={dt}", columns=columns),
        ),
        sequences=(
            Sequence(name="history", events=(Events(source="clicks"),), features=side, max_length=200, lookback="10d"),
            Sequence(
                name="realtime", scope="realtime", events=(Events(source="clicks"),), features=side, max_length=4096
            ),
        ),
        candidates=Candidates(features=(*side, *cross), max_candidates=1 << 20),
        labels=(Label(name="click", source="clicks", window="10m"),),
    )


def write_logs(folder: Path, rows: int, hot: int) -> None:
    """`DAYS` days of clicks; exposures on the last one only, so that what is measured is a day's build."""
    from pipelines.days import dt_of

    rng = np.random.default_rng(0)
    users, items = max(50, rows // 50), max(50, rows // 100)

    def table(n: int, day: int) -> pa.Table:
        user = rng.integers(1, users + 1, n)
        user[: min(n, hot * max(1, n // users))] = 0 if hot else user[0]
        item = np.minimum((rng.pareto(1.1, n) * items / 20).astype(np.int64), items - 1)
        ts = day * DAY + rng.integers(0, DAY, n)
        return pa.table({"user_id": user, "item_id": item, "category": item % 50, "ts": ts})

    for day in range(LAST - DAYS + 1, LAST + 1):
        for source, n in (("exposures", rows if day == LAST else 1), ("clicks", rows // 5)):
            target = folder / source / f"dt={dt_of(day)}"
            target.mkdir(parents=True)
            pq.write_table(table(n, day), target / "part-0.parquet", row_group_size=500_000)


# ---------------------------------------------------------------------- the contestants


def run_builder(engine: str, data: Path, out: Path) -> dict[str, Any]:
    """genrank's whole build of the day."""
    from pipelines.build import BuildConfig, build
    from pipelines.days import dt_of

    result = build(BuildConfig(schema(), data, out, dt_of(LAST), dt_of(LAST), engine=engine))
    return {"samples": result.samples, "candidates": result.candidates, "check": checksum(out)}


def checksum(out: Path) -> float:
    """Sum of every cross feature over all candidates."""
    total = 0.0
    for path in sorted((out / "samples").glob("dt=*/build=*/*.parquet")):
        candidates = pq.read_table(path, columns=["candidates"]).column(0)
        for chunk in candidates.chunks:
            for name in (field.name for field in chunk.type if field.name.startswith("c_")):
                total += float(chunk.field(name).flatten().to_numpy().astype(np.float64).sum())
    return total


def run_polars(data: Path, out: Path) -> dict[str, Any]:
    """The same day by hand."""
    import polars as pl

    start = LAST * DAY
    clicks = pl.read_parquet(data / "clicks/*/*.parquet")
    shown = pl.read_parquet(data / f"exposures/{_last(data)}/*.parquet").filter(pl.col("ts") >= start)
    shown = shown.sort("user_id", "ts").with_row_index("row")
    for keys in KEYS:
        by = list(keys)
        running = clicks.select(*by, "ts").sort("ts").with_columns(pl.int_range(1, pl.len() + 1).over(by).alias("n"))
        running = running.unique([*by, "ts"], keep="last", maintain_order=True).set_sorted("ts")
        asked = shown.select("row", *by, "ts").sort("ts")

        def upto(
            moment: pl.Expr, by: list[str] = by, running: pl.DataFrame = running, asked: pl.DataFrame = asked
        ) -> pl.DataFrame:
            return asked.with_columns(moment.alias("ts")).join_asof(running, on="ts", by=by, check_sortedness=False)

        before = upto(pl.col("ts") - 1).select("row", pl.col("n").fill_null(0))
        for window, ms in WINDOWS.items():
            left = upto(pl.col("ts") - ms).select("row", pl.col("n").fill_null(0).alias("left"))
            count = before.join(left, on="row").select(
                "row", (pl.col("n") - pl.col("left")).cast(pl.Float32).alias(f"c_{'_'.join(keys)}_{window}")
            )
            shown = shown.join(count, on="row")
    follow = clicks.select("user_id", "item_id", "ts", pl.col("ts").alias("click_ts")).sort("ts")
    shown = shown.sort("ts").join_asof(
        follow, on="ts", by=["user_id", "item_id"], strategy="forward", check_sortedness=False
    )
    shown = shown.with_columns(
        (pl.col("click_ts") - pl.col("ts") <= 600_000).fill_null(False).cast(pl.Int32).alias("click")
    )
    old = clicks.filter(pl.col("ts") < start).sort("user_id", "ts").group_by("user_id", maintain_order=True)
    history = old.agg(pl.col("item_id", "category", "ts").tail(200).name.prefix("h_"))
    today = clicks.filter(pl.col("ts") >= start).sort("user_id", "ts")
    order = today.select("user_id", "ts").with_columns(pl.int_range(1, pl.len() + 1).over("user_id").alias("sees"))
    order = order.unique(["user_id", "ts"], keep="last", maintain_order=True).sort("ts")
    seen = shown.select("row", "user_id", (pl.col("ts") - 1).alias("ts")).sort("ts")
    sees = seen.join_asof(order, on="ts", by="user_id", check_sortedness=False).select(
        "row", pl.col("sees").fill_null(0).cast(pl.Int32)
    )
    shown = shown.join(sees, on="row").sort("user_id", "ts").drop("row", "click_ts")
    samples = shown.group_by("user_id", maintain_order=True).agg(pl.all())
    samples = samples.join(history, on="user_id", how="left")
    samples = samples.join(
        today.group_by("user_id").agg(pl.col("item_id", "category", "ts").name.prefix("r_")), on="user_id", how="left"
    )
    out.mkdir(parents=True)
    samples.write_parquet(out / "samples.parquet", compression="zstd", compression_level=1, row_group_size=4096)
    names = [name for name in samples.columns if name.startswith("c_")]
    check = sum(float(shown[name].cast(pl.Float64).sum()) for name in names)
    return {"samples": samples.height, "candidates": shown.height, "check": check}


def run_spark_sql(data: Path, out: Path) -> dict[str, Any]:
    """The cross features alone, by range joins."""
    from pipelines.spark_engine import start_session

    session = start_session(
        **{
            "spark.sql.codegen.wholeStage": "true",
            "spark.sql.adaptive.enabled": "true",
            "spark.sql.shuffle.partitions": "8",
        }
    )
    session.read.parquet(str(data / "clicks")).createOrReplaceTempView("clicks")
    shown = session.read.parquet(str(data / "exposures" / _last(data)))
    shown.selectExpr("*", "monotonically_increasing_id() row").cache().createOrReplaceTempView("shown")
    parts = []
    for keys in KEYS:
        same = " and ".join(f"e.{key} = c.{key}" for key in keys)
        counts = ", ".join(
            f"count_if(c.ts > e.ts - {ms}) c_{'_'.join(keys)}_{window}" for window, ms in WINDOWS.items()
        )
        widest = max(WINDOWS.values())
        parts.append(
            f"select e.row, {counts} from shown e left join clicks c on {same} and c.ts < e.ts and c.ts > e.ts - {widest} group by e.row"
        )
    joined = " ".join(f"join ({part}) p{i} using (row)" for i, part in enumerate(parts))
    session.sql(f"select * from shown {joined}").write.parquet(str(out))
    names = [f"c_{'_'.join(keys)}_{window}" for keys in KEYS for window in WINDOWS]
    written = session.read.parquet(str(out))
    row = written.selectExpr("count(*) n", f"{' + '.join(f'sum({name})' for name in names)} total").first()
    session.stop()
    return {"samples": 0, "candidates": row.n, "check": float(row.total)}


def _last(data: Path) -> str:
    return sorted(path.name for path in (data / "exposures").iterdir())[-1]


PEERS = ("local", "spark", "polars", "spark_sql")


def child(peer: str, data: Path, out: Path) -> None:
    """One run, in this process; prints what it took as JSON."""
    peak = [0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            peak[0] = max(peak[0], sum(rss for rss, _ in _tree().values()))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    cpu: dict[int, float] = {}

    def note() -> None:
        while not over.wait(0.2):
            cpu.update({pid: seconds for pid, (_, seconds) in _tree().items()})

    threading.Thread(target=note, daemon=True).start()
    begin = time.perf_counter()
    if peer in ("local", "spark"):
        told = run_builder(peer, data, out)
    else:
        told = {"polars": run_polars, "spark_sql": run_spark_sql}[peer](data, out)
    took = time.perf_counter() - begin
    cpu.update({pid: seconds for pid, (_, seconds) in _tree().items()})
    over.set()
    print(json.dumps({"wall_s": took, "cpu_s": sum(cpu.values()), "peak_mib": peak[0] / 2**20, **told}))


def _tree() -> dict[int, tuple[int, float]]:
    """pid -> (resident bytes, processor seconds) of this process and its descendants."""
    parents: dict[int, int] = {}
    found: dict[int, tuple[int, float]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(entry)] = int(fields[1])
            found[int(entry)] = (int(fields[21]) * 4096, (int(fields[11]) + int(fields[12])) / 100)

    def ours(pid: int) -> bool:
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = parents.get(pid, 0)
        return False

    return {pid: told for pid, told in found.items() if ours(pid)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["local", "spark", "polars"])
    parser.add_argument("--hot", type=int, default=0, help="one user has so many times the median's rows")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child[0], Path(asked.child[1]), Path(asked.child[2]))
        return
    results = []
    for rows in asked.rows:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data"
            write_logs(data, rows, asked.hot)
            runs: dict[str, list[dict[str, Any]]] = {peer: [] for peer in asked.peers}
            for repeat in range(asked.repeats):
                for peer in asked.peers:
                    out = Path(folder) / f"{peer}-{repeat}"
                    command = [sys.executable, "-m", "benchmarks.build", "--child", peer, str(data), str(out)]
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                    if done.returncode:
                        sys.exit(done.stderr)
                    runs[peer].append(json.loads(done.stdout.splitlines()[-1]))
                    shutil.rmtree(out)
        checks = {run["check"] for told in runs.values() for run in told}
        if len(checks) != 1:
            sys.exit(f"the peers disagree: {checks}")
        for peer, told in runs.items():
            medians = {
                key: round(statistics.median(run[key] for run in told), 2) for key in ("wall_s", "cpu_s", "peak_mib")
            }
            results.append({"rows": rows, "hot": asked.hot, "peer": peer, **medians, "samples": told[0]["samples"]})
            print(results[-1], flush=True)
    report = {
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()},
        "results": results,
    }
    if asked.out:
        asked.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

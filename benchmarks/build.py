"""The sample builder beside the best scripts by hand (numpy, polars, DuckDB, Spark SQL), on the same logs, for the same output.

    python -m benchmarks.build --rows 1_000_000 5_000_000 --repeats 3            # local, spark, numpy, polars take turns
    python -m benchmarks.build --rows 1_000_000 --peers spark spark_sql
    python -m benchmarks.build --rows 1_000_000 --peers local duckdb               # after: pip install duckdb
    python -m benchmarks.build --rows 1_000_000 --hot 0 100 10_000 --peers local spark
    python -m benchmarks.build --rows 5_000_000 --limit 500 --resume              # in pieces of 500 s, each going on with the last

One day of `rows` exposures and `rows / 5` clicks, after ten days that fill the histories: 12 cross features over four key sets, 200
events of history, realtime events, a label. Every run is a fresh process; peers take turns; figures are medians. `cpu_s` is the
processor time of the process and all its descendants, which is what to compare on a machine that does other work too; `peak_mib` the
most that all of them had resident at one moment (pages they share count once for each).

Each run is a line of `--log` as soon as it ends; `--resume` goes on where the log ends, instead of starting a new one. The medians
of all of the log go to `--out`. Both lie in `--work` by default; those committed were written with
`--log benchmarks/results/builder.jsonl --out benchmarks/results/builder.json`.

The scripts (`build_peers.py`) skip deduplication, quarantine, statistics, the gate, partials for the next day and publishing. All
must agree on the sums of every cross feature, of labels, of visible realtime events and of history lengths; a test compares every value.
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
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks import build_peers

DAY = 86_400_000
DAYS = 11
LAST = 20_605
"""Number of the day built (2026-06-01)."""
WINDOWS = {"1h": 3_600_000, "1d": DAY, "7d": 7 * DAY}
KEYS = (("user_id",), ("item_id",), ("user_id", "item_id"), ("user_id", "category"))
CROSS = [f"c_{'_'.join(keys)}_{window}" for keys in KEYS for window in WINDOWS]

Report = dict[str, Any]
"""Figures of a run, by name."""


def schema() -> Any:
    """Twelve cross features, two sequences, one label."""
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
            EventSequence(
                name="history", events=(Events(source="clicks"),), features=side, max_length=200, lookback="10d"
            ),
            EventSequence(
                name="realtime", scope="realtime", events=(Events(source="clicks"),), features=side, max_length=4096
            ),
        ),
        candidates=Candidates(features=(*side, *cross), max_candidates=1 << 20),
        labels=(Label(name="click", source="clicks", window="10m"),),
    )


def write_logs(folder: Path, rows: int, hot: int, per_user: int = 100) -> None:
    """`DAYS` days of clicks; exposures on the last one only, `per_user` of each user, so that what is measured is a day's build. With `hot`,
    one user has so many times the median's rows (half of all at most)."""
    from genrank.pipelines.days import dt_of

    rng = np.random.default_rng(0)
    users, items = max(50, rows // per_user), max(50, rows // 100)

    def table(n: int, day: int) -> pa.Table:
        user = rng.integers(1, users + 1, n)
        user[: min(n // 2, hot * max(1, n // users))] = 0
        item = np.minimum((rng.pareto(1.1, n) * items / 20).astype(np.int64), items - 1)
        ts = day * DAY + rng.integers(0, DAY, n)
        rows = pa.table({"user_id": user, "item_id": item, "category": item % 50, "ts": ts})
        # A hot user may click an item twice in a millisecond: the builder counts that once, the peers would twice.
        return rows.group_by(rows.column_names).aggregate([]) if hot else rows

    for day in range(LAST - DAYS + 1, LAST + 1):
        for source, n in (("exposures", rows if day == LAST else 1), ("clicks", rows // 5)):
            target = folder / source / f"dt={dt_of(day)}"
            target.mkdir(parents=True)
            pq.write_table(table(n, day), target / "part-0.parquet", row_group_size=500_000)


# ---------------------------------------------------------------------- the contestants


def run_builder(peer: str, data: Path, out: Path) -> Report:
    """genrank's whole build of the day."""
    from genrank.pipelines.build import BuildConfig, build
    from genrank.pipelines.days import dt_of

    engine = _Local(out) if peer == "local" else _Spilled()
    try:
        result = build(BuildConfig(schema(), data, out, dt_of(LAST), dt_of(LAST), engine=peer), engine.inner)
        return {"samples": result.samples, "candidates": result.candidates, **engine.report()}
    finally:
        engine.inner.stop()


class _Local:
    """The local engine, and the most that lay in its files between two steps."""

    def __init__(self, out: Path) -> None:
        from genrank.pipelines.local_engine import LocalEngine

        class Counted(LocalEngine):
            most = 0

            def map(self, *args: Any) -> Any:
                frame = super().map(*args)
                self.most = max(self.most, sum(piece.size for piece in frame))
                return frame

        self.inner = Counted(folder=out / "staging")

    def report(self) -> Report:
        return {"stored_mib": self.inner.most / 2**20}


class _Spilled:
    """The Spark engine, and what its stages shuffled and spilled."""

    def __init__(self) -> None:
        from genrank.pipelines.spark_engine import SparkEngine
        from genrank.pipelines.spark_session import start_session

        self.session = start_session()
        self.inner = SparkEngine(self.session)
        self.inner._owned = True

    def report(self) -> Report:
        return spark_metrics(self.session)


def spark_metrics(session: Any) -> Report:
    """What all stages of a session shuffled and spilled, from Spark's own status store."""
    jvm = session.sparkContext._jvm
    store = session.sparkContext._jsc.sc().statusStore()
    empty = jvm.java.util.ArrayList()
    stages = store.stageList(empty, False, False, session.sparkContext._gateway.new_array(jvm.double, 0), empty)
    names = {"shuffle_mib": "shuffleWriteBytes", "spilled_disk_mib": "diskBytesSpilled"}
    return {
        report: sum(getattr(stages.apply(i), name)() for i in range(stages.size())) / 2**20
        for report, name in names.items()
    }


def check_samples(out: Path) -> list[float]:
    """Sums over what `genrank build` wrote, as `check_lists` has them."""
    cross = clicked = sees = history = 0.0
    for path in sorted((out / "samples").glob("dt=*/build=*/*.parquet")):
        table = pq.read_table(path, columns=["candidates", "labels", "mask", "history"])
        for batch in table.to_batches():
            candidates = batch.column("candidates")
            for name in CROSS:
                cross += float(candidates.field(name).flatten().to_numpy().astype(np.float64).sum())
            clicked += float(pc.sum(batch.column("labels").field("click").flatten()).as_py() or 0)
            sees += float(pc.sum(batch.column("mask").field("candidate_sees").flatten()).as_py() or 0)
            history += len(batch.column("history").field("ts").flatten())
    return [cross, clicked, sees, history]


def the_day(data: Path) -> build_peers.Day:
    """What the scripts make."""
    return build_peers.Day(data / "clicks", data / "exposures" / _last(data), LAST * DAY, WINDOWS, KEYS)


def run_numpy(peer: str, data: Path, out: Path) -> Report:
    """The same day by hand."""
    return dict(build_peers.numpy_day(the_day(data), out))


def run_polars(peer: str, data: Path, out: Path) -> Report:
    """The same day by hand."""
    return dict(build_peers.polars_day(the_day(data), out))


def run_duckdb(peer: str, data: Path, out: Path) -> Report:
    """The same day in DuckDB's SQL."""
    return dict(build_peers.duckdb_day(the_day(data), out))


def check_lists(out: Path) -> list[float]:
    """Sums of every cross feature, of labels, of visible realtime events, and of history lengths."""
    import polars as pl

    lazy = pl.scan_parquet(out / "*.parquet")
    sums = [pl.sum_horizontal(pl.col(name).explode().cast(pl.Float64).sum() for name in CROSS).alias("cross")]
    sums += [pl.col(name).explode().cast(pl.Float64).sum() for name in ("click", "sees")]
    sums += [pl.col("h_ts").list.len().cast(pl.Float64).sum()]
    return list(lazy.select(sums).collect().row(0))


def run_spark_sql(peer: str, data: Path, out: Path) -> Report:
    """The same day in SQL, in a session with Spark's own defaults for SQL."""
    from genrank.pipelines.spark_session import start_session

    session = start_session(
        **{
            "spark.sql.codegen.wholeStage": "true",
            "spark.sql.adaptive.enabled": "true",
            "spark.shuffle.compress": "true",
            "spark.driver.memory": "6g",
            "spark.driver.extraJavaOptions": "-XX:+UseParallelGC",
        }
    )
    build_peers.spark_sql_day(session, the_day(data), out)
    report = spark_metrics(session)
    session.stop()
    return report


def _last(data: Path) -> str:
    return sorted(path.name for path in (data / "exposures").iterdir())[-1]


Run = Callable[[str, Path, Path], Report]
Check = Callable[[Path], list[float]]
PEERS: dict[str, tuple[Run, Check]] = {
    "local": (run_builder, check_samples),
    "spark": (run_builder, check_samples),
    "numpy": (run_numpy, check_lists),
    "polars": (run_polars, check_lists),
    "duckdb": (run_duckdb, check_lists),
    "spark_sql": (run_spark_sql, check_lists),
}


# ---------------------------------------------------------------------- one run


def child(peer: str, data: Path, out: Path) -> None:
    """One run, in this process; prints what it took as JSON."""
    run, check = PEERS[peer]
    usage = _Usage()
    usage.start()
    begin = time.perf_counter()
    report = run(peer, data, out)
    wall = time.perf_counter() - begin
    usage.stop()
    took = {"wall_s": wall, "cpu_s": usage.cpu, "peak_mib": usage.peak / 2**20}
    print(json.dumps({**took, **report, "check": check(out)}))


class _Usage(threading.Thread):
    """Watches this process and its descendants: the most resident at once, and processor time, of those that ended too."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.cpu = 0, 0.0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.1):
            self._look()

    def stop(self) -> None:
        self._over.set()
        self.join()
        self._look()

    def _look(self) -> None:
        parents: dict[int, int] = {}
        found: dict[int, tuple[int, float]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
                except OSError:
                    continue
                parents[int(entry)] = int(fields[1])
                ticks = sum(int(fields[i]) for i in (11, 12, 13, 14))
                found[int(entry)] = (int(fields[21]) * PAGE, ticks / TICKS)
        own, size = {os.getpid()}, 0
        while len(own) > size:
            size = len(own)
            own |= {pid for pid, parent in parents.items() if parent in own}
        self.peak = max(self.peak, sum(found[pid][0] for pid in own if pid in found))
        self.cpu = max(self.cpu, sum(found[pid][1] for pid in own if pid in found))


PAGE, TICKS = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------------- all runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["local", "spark", "numpy", "polars"])
    parser.add_argument("--hot", type=int, nargs="+", default=[0], help="one user has so many times the median's rows")
    work = Path(tempfile.gettempdir()) / "genrank-benchmark"
    parser.add_argument("--log", type=Path, default=work / "builder.jsonl", help="a line per run")
    parser.add_argument("--resume", action="store_true", help="go on where the log ends")
    parser.add_argument(
        "--limit", type=float, default=float("inf"), help="begin no run that may end after so many seconds"
    )
    parser.add_argument("--out", type=Path, default=work / "builder.json", help="medians of all of the log")
    parser.add_argument("--work", type=Path, default=work, help="folder for logs and outputs")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if "duckdb" in asked.peers and find_spec("duckdb") is None:
        sys.exit("--peers duckdb: DuckDB is not installed, and no dependency of this project: pip install duckdb")
    if asked.child:
        child(asked.child[0], Path(asked.child[1]), Path(asked.child[2]))
        return
    begun = time.monotonic()
    if not asked.resume:
        asked.log.unlink(missing_ok=True)
    done = read_log(asked.log)
    plan = [
        (rows, hot, repeat, peer)
        for rows in asked.rows
        for hot in asked.hot
        for repeat in range(asked.repeats)
        for peer in asked.peers
    ]
    todo = [one for one in plan if one not in done]
    for i, (rows, hot, repeat, peer) in enumerate(todo):
        data = asked.work / f"logs-{rows}-{hot}"
        if not (data / "whole").is_file():
            shutil.rmtree(data, ignore_errors=True)
            write_logs(data, rows, hot)
            (data / "whole").touch()
        if time.monotonic() - begun + _expected(done, rows, hot, peer) > asked.limit:
            print(f"{len(todo) - i} runs are left: give the command again with --resume")
            break
        run = one_run(peer, data, asked.work / "out")
        done[rows, hot, repeat, peer] = {"rows": rows, "hot": hot, "repeat": repeat, "peer": peer, **run}
        asked.log.parent.mkdir(parents=True, exist_ok=True)
        with open(asked.log, "a") as log:
            log.write(json.dumps(done[rows, hot, repeat, peer]) + "\n")
        print(
            json.dumps({key: done[rows, hot, repeat, peer][key] for key in ("rows", "hot", "repeat", "peer", *FIGURES)})
        )
        _agree(done)
    machine = {"cores": len(os.sched_getaffinity(0)), "cpu": _cpu(), "python": platform.python_version()}
    asked.out.write_text(json.dumps({"machine": machine, "results": medians(done)}, indent=1) + "\n")


FIGURES = ("wall_s", "cpu_s", "peak_mib")
Key = tuple[int, int, int, str]


def one_run(peer: str, data: Path, out: Path) -> Report:
    """A run in a fresh process."""
    shutil.rmtree(out, ignore_errors=True)
    load = os.getloadavg()[0]
    command = [sys.executable, "-m", "benchmarks.build", "--child", peer, str(data), str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    shutil.rmtree(out, ignore_errors=True)
    if ended.returncode:
        sys.exit(f"{peer} failed ({ended.returncode}):\n{ended.stderr[-4000:]}")
    report = json.loads(ended.stdout.splitlines()[-1])
    return {key: round(value, 2) if isinstance(value, float) else value for key, value in report.items()} | {
        "load_before": round(load, 2)
    }


def read_log(path: Path) -> dict[Key, Report]:
    """Runs by (rows, hot, repeat, peer)."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return {(r["rows"], r["hot"], r["repeat"], r["peer"]): r for r in map(json.loads, lines)}


def _expected(done: dict[Key, Report], rows: int, hot: int, peer: str) -> float:
    """Seconds a run may take: as the slowest of its kind; of an unknown kind, in proportion to another size."""
    same = [run["wall_s"] for (r, h, _, p), run in done.items() if (r, h, p) == (rows, hot, peer)]
    others = [run["wall_s"] * rows / r for (r, _, _, p), run in done.items() if p == peer]
    return 1.2 * max(same or others, default=0.0) + 15


def _agree(done: dict[Key, Report]) -> None:
    """Exit unless all runs over the same logs gave the same sums."""
    for rows, hot in {(rows, hot) for rows, hot, _, _ in done}:
        checks = {(peer, tuple(run["check"])) for (r, h, _, peer), run in done.items() if (r, h) == (rows, hot)}
        widest = max((check for _, check in checks), key=len)
        if any(check != widest[: len(check)] for _, check in checks):
            sys.exit(f"the peers disagree at {rows} rows: {checks}")


def medians(done: dict[Key, Report]) -> list[Report]:
    """A row per size and peer: medians, and the ratio to the numpy script where it ran."""
    found = []
    for rows, hot, peer in sorted({(rows, hot, peer) for rows, hot, _, peer in done}):
        runs = [run for (r, h, _, p), run in done.items() if (r, h, p) == (rows, hot, peer)]
        figures = [key for key in runs[0] if key.endswith(("_s", "_mib"))]
        middle = {key: round(statistics.median(run[key] for run in runs), 2) for key in figures}
        found.append({"rows": rows, "hot": hot, "peer": peer, "runs": len(runs), **middle})
    for row in found:
        for other in found:
            if other["peer"] == "numpy" and (other["rows"], other["hot"]) == (row["rows"], row["hot"]):
                row["wall_to_numpy"] = round(row["wall_s"] / other["wall_s"], 2)
                row["cpu_to_numpy"] = round(row["cpu_s"] / other["cpu_s"], 2)
    return found


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()

"""The job on a cluster of separate executor processes, submitted as operators submit it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from genrank.pipelines.build import BuildConfig, build
from genrank.pipelines.spark_engine import package
from genrank.schemas.manifest import sample_days, sample_files
from tests.pipelines.test_engines import stored
from tests.pipelines.worlds import full_schema, write_world

pytestmark = [pytest.mark.timeout(900), pytest.mark.spark, pytest.mark.slow, pytest.mark.xdist_group("spark")]
ROOT = Path(__file__).parents[2]

JOB = """
# A standalone cluster of two hosts in this JVM (speculation never runs a copy on the straggler's own host), and steps that fail
# or straggle on their first attempt.
import json, sys, time
from pathlib import Path
from pyspark import SparkContext, TaskContext
from genrank.pipelines import build
from genrank.pipelines.spark_engine import SparkEngine
from genrank.pipelines.spark_session import start_session
from tests.pipelines.worlds import full_schema

root, first, last = sys.argv[1:]
SparkContext._ensure_initialized()
jvm = SparkContext._jvm
conf, none, deploy = jvm.org.apache.spark.SparkConf(), jvm.scala.Option.empty(), jvm.org.apache.spark.deploy
port = deploy.master.Master.startRpcEnvAndEndpoint("127.0.0.1", 0, 0, conf)._1().address().port()
masters = SparkContext._gateway.new_array(jvm.java.lang.String, 1)
masters[0] = f"spark://127.0.0.1:{port}"
for host in ("127.0.0.1", "127.0.0.2"):
    deploy.worker.Worker.startRpcEnvAndEndpoint(host, 0, 0, 1, 1024, masters, root + "/work", none, conf, none)
session = start_session(masters[0])
conf = [session.conf.get(f"spark.{key}") for key in ("sql.adaptive.enabled", "shuffle.compress", "ui.enabled")]


def faulty(title, step):
    def run(slot, tables):
        stage, attempt = title.split()[0], TaskContext.get().attemptNumber()
        with open(f"{root}/attempts.jsonl", "a") as log:
            log.write(json.dumps([stage, slot, attempt]) + "\\n")
        if attempt == 0 and (stage, slot) == ("partials", 1) and "exposures" in title:
            time.sleep(120)
        pieces = list(step(slot, tables))
        if attempt == 0 and (stage, slot) == ("samples", 0):
            raise RuntimeError("lost after it wrote its files")
        if attempt == 0 and (stage, slot) == ("samples", 1):
            time.sleep(120)
        yield from pieces
    return run


class Faulty(SparkEngine):
    def exchange(self, title, frames, slots, step):
        return super().exchange(title, frames, slots, faulty(title, step))


days = build.BuildConfig(full_schema(), Path(root) / "data", Path(root) / "out", first, last, engine="spark", buckets=2)
result = build.build(days, Faulty(session))
session.stop()
print("RESULT", json.dumps({"days": result.days, "samples": result.samples, "conf": conf}))
"""


def test_executors_get_the_packages_they_import(tmp_path: Path) -> None:
    names = zipfile.ZipFile(package(tmp_path / "packages.zip")).namelist()
    assert {"genrank/pipelines/compaction/reader.py", "genrank/schemas/base.py"} <= set(names)
    assert not any(name.startswith(("tests", "genrank/model")) for name in names)


def test_a_lost_task_and_stragglers_change_nothing(tmp_path: Path, plain_gate: None) -> None:
    """By spark-submit, on executors that import nothing from this checkout but what was shipped: a task that fails after it wrote its files,
    and stragglers, before and after writing theirs, whose speculative copies win."""
    days = write_world(tmp_path / "data", seed=72, days=1, users=6, per_day=60)
    build(BuildConfig(full_schema(), tmp_path / "data", tmp_path / "undisturbed", days[0], days[-1], buckets=2))
    (tmp_path / "job.py").write_text(JOB)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYSPARK_GATEWAY_PORT")}
    environment |= {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    submitted = {
        "speculation": "true",
        "speculation.quantile": "0.5",
        "speculation.multiplier": "1.1",
        "task.maxFailures": "4",
        "executor.memory": "512m",
        "executorEnv.PYTHONPATH": "",
        "driver.host": "127.0.0.1",
        "driver.bindAddress": "127.0.0.1",
        "sql.adaptive.enabled": "true",
        "shuffle.compress": "true",
    }
    command = [str(Path(sys.executable).with_name("spark-submit")), "--master", "local[1]"]
    for name, value in submitted.items():
        command += ["--conf", f"spark.{name}={value}"]
    command += [str(tmp_path / "job.py"), str(tmp_path), days[0], days[-1]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=840, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith("RESULT")).removeprefix("RESULT")
    )
    assert result["days"] == sample_days(tmp_path / "out" / "samples") == days
    assert result["conf"] == ["true", "true", "false"]  # What was submitted, and a default of ours.
    attempts = Counter(tuple(json.loads(line)) for line in (tmp_path / "attempts.jsonl").read_text().splitlines())
    for stage, slot in (("partials", 1), ("samples", 0), ("samples", 1)):
        assert attempts[stage, slot, 0] >= attempts[stage, slot, 1] == 1, attempts
    out, listed = tmp_path / "out", set[Path]()
    for dt in days:
        assert stored(out, dt) == stored(tmp_path / "undisturbed", dt)
        listed |= set(sample_files(out / "samples", dt))
    for record in (out / "partials").glob("*/dt=*/*/partial.json"):
        listed |= {record.parent / name for name in json.loads(record.read_text())["files"].values()}
    left = {path for path in out.rglob("*.parquet") if path.relative_to(out).parts[0] not in ("stats", "quarantine")}
    assert left == listed
    rejected = [len(list((tmp_path / root / "quarantine").rglob("*.parquet"))) for root in ("out", "undisturbed")]
    assert rejected[0] == rejected[1] > 0

"""The job on a cluster of separate executor processes, submitted as operators submit it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipelines.spark_engine import package
from schemas.manifest import sample_days, sample_files
from tests.pipelines.worlds import write_world

pytestmark = [pytest.mark.timeout(900), pytest.mark.spark, pytest.mark.slow, pytest.mark.xdist_group("spark")]
ROOT = Path(__file__).parents[2]

JOB = """
import json, sys
from pathlib import Path
from pipelines import build
from tests.pipelines.worlds import full_schema
build.gate = lambda checks, rates: None
root, first, last = sys.argv[1:]
result = build.build(build.BuildConfig(full_schema(), Path(root) / "data", Path(root) / "out", first, last, engine="spark", buckets=2))
print("RESULT", json.dumps({"days": result.days, "samples": result.samples}))
"""


def test_executors_get_the_rooms_they_import(tmp_path: Path) -> None:
    names = zipfile.ZipFile(package(tmp_path / "rooms.zip")).namelist()
    assert {"pipelines/samples.py", "schemas/contract.py"} <= set(names)
    assert not any(name.startswith(("tests", "model")) for name in names)


def test_separate_executors_by_spark_submit(tmp_path: Path) -> None:
    """Two executor JVMs that import nothing from this checkout but what was shipped, with speculation on."""
    days = write_world(tmp_path / "data", seed=71, days=2, users=6, per_day=60)
    (tmp_path / "job.py").write_text(JOB)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYSPARK_GATEWAY_PORT")}
    environment |= {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    submit = Path(sys.executable).with_name("spark-submit")
    command = [
        str(submit),
        *("--master", "local-cluster[2,1,1024]"),
        *(
            "--conf",
            "spark.executor.memory=1g",
            "--conf",
            "spark.speculation=true",
            "--conf",
            "spark.task.maxFailures=4",
        ),
        *("--conf", "spark.driver.host=127.0.0.1", "--conf", "spark.driver.bindAddress=127.0.0.1"),
        *("--conf", "spark.executorEnv.PYTHONPATH="),
        *(str(tmp_path / "job.py"), str(tmp_path), days[0], days[-1]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=840, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith("RESULT")).removeprefix("RESULT")
    )
    assert told["days"] == sample_days(tmp_path / "out" / "samples") == days
    assert all(sample_files(tmp_path / "out" / "samples", dt) for dt in days)

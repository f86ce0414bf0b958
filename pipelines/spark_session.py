"""Spark's session: started quietly, with settings for steps that are Python functions over whole Arrow tables."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from genrank.schemas import UserError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def start_session(master: str | None = None, **settings: str) -> SparkSession:
    """A quiet session. Under `spark-submit` its master and all that is set there hold (`--conf`, `--properties-file`, `spark-defaults.conf`);
    else this machine's cores.

    Args:
        settings: before all others.

    Raises:
        UserError: Java is missing or older than 17.
    """
    check_java()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    # Tasks are what runs in parallel; inside a task one thread.
    for threads in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ.setdefault(threads, "1")
    logging.getLogger("py4j").setLevel(logging.ERROR)
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("genrank build")
    if master or "MASTER" not in os.environ:
        builder = builder.master(master or "local[*]") if master or not _submitted() else builder
    defaults = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.adaptive.enabled": "false",
        "spark.driver.memory": "2g",
        # A large result is fetched from the driver's address, which need not be the host's.
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.log.level": "ERROR",
        # The JVM moves tables and looks into none, so its optimising compiler would cost more than it gains.
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={_quiet_logging()} -XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
        # Pieces come compressed.
        "spark.shuffle.compress": "false",
        "spark.shuffle.spill.compress": "false",
        "spark.executorEnv.OMP_NUM_THREADS": "1",
        "spark.executorEnv.POLARS_MAX_THREADS": "1",
    }
    if _submitted():
        defaults = without_set(defaults, _submitted_settings())
    for key, value in (defaults | settings).items():
        builder = builder.config(key, value)
    with _jvm_quiet():
        session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return session


@contextmanager
def _jvm_quiet() -> Iterator[None]:
    """A JVM started in here prints nothing to stderr; if it doesn't start, its last line is in the error.

    Its warning of incubator modules and its remarks on log levels come before any setting of ours is read, so it is its
    inherited stderr that goes elsewhere. What fails later reaches Python as an exception.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as output:
        kept = os.dup(2)
        os.dup2(output.fileno(), 2)
        try:
            yield
        except Exception as error:
            output.seek(0)
            lines = [line for line in output.read().decode(errors="replace").splitlines() if line.strip()]
            raise UserError(f"Spark didn't start: {error}" + (f" ({lines[-1]})" if lines else "")) from error
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _quiet_logging() -> str:
    """A file that has Spark's JVM log errors only; a failed task's are reported once, by the exception that ends the build."""
    path = Path(mkdtemp(prefix="genrank-")) / "log4j2.properties"
    path.write_text(
        "rootLogger.level = error\nrootLogger.appenderRef.stderr.ref = stderr\n"
        "appender.stderr.type = Console\nappender.stderr.name = stderr\nappender.stderr.target = SYSTEM_ERR\n"
        "appender.stderr.layout.type = PatternLayout\nappender.stderr.layout.pattern = %d{HH:mm:ss} %p %c{1}: %m%n\n"
        "logger.tasks.name = org.apache.spark.executor.Executor\nlogger.tasks.level = off\n"
        "logger.sets.name = org.apache.spark.scheduler.TaskSetManager\nlogger.sets.level = off\n"
    )
    return str(path)


DEPLOYMENT = ("spark.driver.memory", "spark.driver.host", "spark.driver.bindAddress")
"""What `spark-submit` decides even where nobody sets it."""


def without_set(defaults: Mapping[str, str], submitted: Mapping[str, str]) -> dict[str, str]:
    """Those of our defaults that were left to us; what is set for the driver's JVM came too late in any case."""
    return {key: value for key, value in defaults.items() if key not in submitted and key not in DEPLOYMENT}


def _submitted_settings() -> dict[str, str]:
    """What `spark-submit` handed to the JVM that is already running."""
    from pyspark import SparkConf, SparkContext

    SparkContext._ensure_initialized()
    return dict(SparkConf().getAll())


def _submitted() -> bool:
    return "PYSPARK_GATEWAY_PORT" in os.environ


def check_java() -> None:
    """UserError unless `java` is there and new enough for Spark 4."""
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    remedy = "install Java 17 (apt install openjdk-17-jre-headless), or use --engine local"
    if not java or not Path(java).exists():
        raise UserError(f"--engine spark needs Java 17 and there is no java; {remedy}")
    printed = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
    version = re.search(r'version "(\d+)', printed)
    if not version or int(version[1]) < 17:
        raise UserError(f"--engine spark needs Java 17, {java} is {version[1] if version else 'unknown'}; {remedy}")

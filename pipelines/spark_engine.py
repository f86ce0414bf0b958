"""The engine of a cluster: Spark schedules, moves, spills and retries; rows travel as whole Arrow tables.

A Spark row is a piece: (slot, tag, Arrow IPC stream). The JVM thus moves a few large values instead of millions of small ones,
no type is translated on the way, and what a step computes is what the local engine computes, to the bit. Steps are Python
functions over Arrow tables run by `mapInArrow`; a shuffle partition is a slot.

On a cluster, submit the command itself; the session found there ships these rooms to its executors, which need the libraries:

    venv-pack -o environment.tar.gz
    spark-submit --master yarn --archives environment.tar.gz#environment --conf spark.pyspark.python=./environment/bin/python \\
        genrank/__main__.py build --engine spark --schema schema.py --data /shared/logs --out /shared/out --from 2026-01-01 --to 2026-01-07

`--out` is a folder that driver and executors share, and so is `--data` unless it is a URI; tables of a catalog (Hive, Iceberg) and
what lies at URIs (s3a://, gs://, hdfs://) are read by Spark and copied below `--out`, a day at a time, when they changed. A task writes files under names of its own attempt and only the winners'
are listed, so retries and speculation are harmless.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from threading import Event, Thread
from typing import TYPE_CHECKING, TypeVar
from zipimport import zipimporter

import numpy as np
import pyarrow as pa
from tqdm import tqdm

import genrank
from genrank.pipelines.engine import Piece, Step, gather
from genrank.schemas import EventLog, Snapshot, UserError
from genrank.schemas.digest import digest
from genrank.schemas.files import write_atomically

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Unit = TypeVar("Unit")

Days = dict[str, tuple[str, Callable[[], "DataFrame"]]]
"""Day -> (what changes when its rows do, its rows)."""

PACKAGE = Path(genrank.__file__).resolve().parent
SHIPPED = ("pipelines", "schemas")
"""Subpackages that a task imports."""
COLUMNS = "slot int, tag string, rows binary"
_ARROW = pa.schema({"slot": pa.int32(), "tag": pa.string(), "rows": pa.binary()})
_COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4")
PIECE_BYTES = 32 << 20
"""A piece is cut into rows of about this size."""


class SparkEngine:
    """Runs on an existing session, or starts one: local[*], or what `spark-submit` set.

    Raises:
        UserError: there is no Java 17.
    """

    name = "spark"

    def __init__(self, session: SparkSession | None = None) -> None:
        self._owned = session is None
        self.session = session or start_session()
        # A record is a whole table here.
        self.session.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "64")
        _ship_code(self.session)

    def map(self, title: str, units: Sequence[Unit], step: Callable[[Unit], Iterable[Piece]]) -> DataFrame:
        units = list(units)

        def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            _settle()
            for batch in batches:
                for at in batch.column("slot").to_pylist():
                    yield from _batches(step(units[at]))

        # A few tasks a core: a task costs more to start than a small unit takes.
        tasks = max(1, min(len(units), 4 * self.session.sparkContext.defaultParallelism))
        numbers = self.session.range(len(units)).selectExpr(
            "cast(id as int) as slot", f"cast(id % {tasks} as int) as task"
        )
        numbers = numbers.repartitionById(tasks, "task").select("slot")
        return numbers.mapInArrow(run, COLUMNS)

    def exchange(self, title: str, frames: Sequence[DataFrame], slots: int, step: Step) -> DataFrame:
        def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            _settle()
            by_slot: dict[int, list[Piece]] = {}
            for batch in batches:
                for piece in _pieces(batch):
                    by_slot.setdefault(piece.slot, []).append(piece)
            for slot in sorted(by_slot):
                yield from _batches(step(slot, gather(by_slot.pop(slot))))

        together = frames[0]
        for frame in frames[1:]:
            together = together.unionAll(frame)
        return together.repartitionById(slots, "slot").mapInArrow(run, COLUMNS)

    def collect(self, frame: DataFrame) -> dict[str, pa.Table]:
        from pyspark.errors import PySparkException

        try:
            with _progress(self.session):
                rows = frame.collect()
        except PySparkException as error:
            raise _told(error) from error
        except Exception as error:
            if type(error).__module__.startswith("py4j"):
                raise _told(error) from error
            raise
        return gather(Piece(row.slot, row.tag, _read(row.rows)) for row in rows)

    def land(self, source: EventLog | Snapshot, uri: str | None, first: str, last: str, folder: Path) -> None:
        from pyspark.errors import PySparkException

        where = uri or f"table {source.catalog}"
        try:
            found = self._files(source, uri, first, last) if uri else self._table(source, first, last)
            for old in folder.glob("dt=*"):
                if first <= (dt := old.name.removeprefix("dt=")) <= last and dt not in found:
                    shutil.rmtree(old)
            for dt, (mark, rows) in found.items():
                told = folder / f"dt={dt}" / "_landed"
                if not told.is_file() or told.read_text() != mark:
                    physical = [source.physical(column) for column in source.columns]
                    frame = rows()
                    _has_columns(source, where, frame, physical)
                    frame.select(*physical).write.mode("overwrite").parquet(f"file://{told.parent.absolute()}")
                    write_atomically(told, mark)
        except Exception as error:
            if isinstance(error, PySparkException) or type(error).__module__.startswith("py4j"):
                raise UserError(f"source {source.name!r}: {where} can't be read: {_first_line(error)}") from error
            raise

    def _table(self, source: EventLog | Snapshot, first: str, last: str) -> Days:
        """Days of a catalog table; their content is the mark."""
        from pyspark.sql import functions as f

        assert source.catalog is not None
        table = self.session.table(source.catalog)
        physical = [source.physical(column) for column in source.columns]
        _has_columns(source, f"table {source.catalog}", table, [source.partition, *physical])
        dt = f.col(source.partition).cast("string")
        rows = table.where((dt >= first) & (dt <= last))
        mark = f.concat_ws(":", f.count(f.lit(1)), f.sum(f.xxhash64(*physical).cast("decimal(38,0)")))
        marks = rows.groupBy(dt.alias("dt")).agg(mark.alias("mark")).collect()
        return {day.dt: (day.mark, partial(rows.where, dt == day.dt)) for day in marks}

    def _files(self, source: EventLog | Snapshot, uri: str, first: str, last: str) -> Days:
        """Days that lie at a URI, through Hadoop's file systems; names, lengths, times and etags of the files are the mark."""
        from py4j.java_gateway import is_instance_of

        context = self.session.sparkContext
        jvm, gateway = context._jvm, context._gateway
        parts = uri.split("/")
        at = next(i for i, part in enumerate(parts) if "{dt}" in part)
        parent = jvm.org.apache.hadoop.fs.Path("/".join(parts[:at]))
        system = parent.getFileSystem(context._jsc.hadoopConfiguration())
        if not system.exists(parent):
            raise UserError(
                f"source {source.name!r}: there is no {parent.toString()}; check --data and the source's path {source.path!r}"
            )
        pattern = re.compile(re.escape(parts[at]).replace(r"\{dt\}", r"(\d{4}-\d\d-\d\d)"))
        found: Days = {}
        for child in system.listStatus(parent):
            match = pattern.fullmatch(child.getPath().getName())
            if not match or not first <= match[1] <= last:
                continue
            day = jvm.org.apache.hadoop.fs.Path("/".join([child.getPath().toString(), *parts[at + 1 :]]))
            if not system.exists(day):
                continue
            stamps = {}
            listed = system.listFiles(day, True)
            while listed.hasNext():
                file = listed.next()
                path = file.getPath().toString()
                inside = path.removeprefix(day.toString()).split("/")
                if path.endswith(".parquet") and not any(part.startswith(("_", ".")) for part in inside):
                    etag = file.getEtag() if is_instance_of(gateway, file, "org.apache.hadoop.fs.EtagSource") else ""
                    stamps[path] = [file.getLen(), file.getModificationTime(), etag]
            if stamps:
                found[match[1]] = (digest(stamps), partial(self.session.read.parquet, *sorted(stamps)))
        return dict(sorted(found.items()))

    def stop(self) -> None:
        if self._owned:
            self.session.stop()


def _has_columns(source: EventLog | Snapshot, where: str, frame: DataFrame, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in frame.columns:
            raise UserError(
                f"source {source.name!r}: {where} has no column {column!r}; it has {', '.join(frame.columns)}"
            )


def _first_line(error: Exception) -> str:
    """What went wrong, without the stack: of a Java exception, its own words."""
    java = getattr(error, "java_exception", None)
    return str(java.toString() if java is not None else error).splitlines()[0]


@contextmanager
def _progress(session: SparkSession) -> Iterator[None]:
    """Tasks of the stages under way, as a bar in a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield
        return
    over = Event()

    def watch() -> None:
        tracker = session.sparkContext.statusTracker()
        with tqdm(unit="task", leave=False) as bar:
            while not over.wait(0.5):
                stages = [info for at in tracker.getActiveStageIds() if (info := tracker.getStageInfo(at))]
                bar.desc = f"spark stage {max((info.stageId for info in stages), default=0)}"
                bar.total = sum(info.numTasks for info in stages)
                bar.n = sum(info.numCompletedTasks for info in stages)
                bar.refresh()

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def start_session(master: str | None = None, **settings: str) -> SparkSession:
    """A quiet session. Under `spark-submit` its master and settings hold; else this machine's cores.

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
        for local in ("spark.driver.memory", "spark.driver.host", "spark.driver.bindAddress"):
            del defaults[local]
    for key, value in (defaults | settings).items():
        builder = builder.config(key, value)
    with _jvm_quiet():
        session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return session


@contextmanager
def _jvm_quiet() -> Iterator[None]:
    """A JVM started in here keeps its greetings to itself; if it doesn't start, what it said is told.

    Its warning of incubator modules and its words on log levels come before any setting of ours is read, so it is its
    inherited stderr that goes elsewhere. What fails later reaches Python as an exception.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as said:
        kept = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        except Exception as error:
            said.seek(0)
            lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
            raise UserError(f"Spark didn't start: {error}" + (f" ({lines[-1]})" if lines else "")) from error
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _quiet_logging() -> str:
    """A file that has Spark's JVM log errors only; a failed task's are told once, by the exception that ends the build."""
    path = Path(mkdtemp(prefix="genrank-")) / "log4j2.properties"
    path.write_text(
        "rootLogger.level = error\nrootLogger.appenderRef.stderr.ref = stderr\n"
        "appender.stderr.type = Console\nappender.stderr.name = stderr\nappender.stderr.target = SYSTEM_ERR\n"
        "appender.stderr.layout.type = PatternLayout\nappender.stderr.layout.pattern = %d{HH:mm:ss} %p %c{1}: %m%n\n"
        "logger.tasks.name = org.apache.spark.executor.Executor\nlogger.tasks.level = off\n"
        "logger.sets.name = org.apache.spark.scheduler.TaskSetManager\nlogger.sets.level = off\n"
    )
    return str(path)


def _submitted() -> bool:
    return "PYSPARK_GATEWAY_PORT" in os.environ


def check_java() -> None:
    """UserError unless `java` is there and new enough for Spark 4."""
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    remedy = "install Java 17 (apt install openjdk-17-jre-headless), or use --engine local"
    if not java or not Path(java).exists():
        raise UserError(f"--engine spark needs Java 17 and there is no java; {remedy}")
    told = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
    version = re.search(r'version "(\d+)', told)
    if not version or int(version[1]) < 17:
        raise UserError(f"--engine spark needs Java 17, {java} is {version[1] if version else 'unknown'}; {remedy}")


def package(target: Path) -> Path:
    """A zip of the packages that executors import, for `--py-files`."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (PACKAGE / "__init__.py", *(p for name in SHIPPED for p in sorted((PACKAGE / name).rglob("*.py")))):
            archive.write(path, path.relative_to(PACKAGE.parent))
    return target


def _ship_code(session: SparkSession) -> None:
    """Executors on other machines (or in other processes) get this code; threads of this one have it."""
    context = session.sparkContext
    if not context.master.startswith("local["):
        folder = Path(mkdtemp(prefix="genrank-"))
        context.addPyFile(str(package(folder / "genrank.zip")))
    elif (root := str(PACKAGE.parent)) not in (paths := os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, paths)])
        context.environment["PYTHONPATH"] = os.environ["PYTHONPATH"]


def _settle() -> None:
    """Spare a reused Python worker what Spark has it do around each task, 0.2 s or more of processor time: reading the
    directories of pyspark's zip and of Spark's jar again, which don't change, and collecting garbage among all that is imported."""
    for finder in sys.path_importer_cache.values():
        if isinstance(finder, zipimporter):
            finder.invalidate_caches = _nothing  # type: ignore[method-assign]
    gc.freeze()


def _nothing() -> None:
    return None


def _batches(pieces: Iterable[Piece]) -> Iterator[pa.RecordBatch]:
    for piece in pieces:
        cuts = max(1, -(-piece.rows.nbytes // PIECE_BYTES))
        step = max(1, -(-piece.rows.num_rows // cuts))
        for at in range(0, max(1, piece.rows.num_rows), step):
            sink = pa.BufferOutputStream()
            part = piece.rows.slice(at, step)
            with pa.ipc.new_stream(sink, part.schema, options=_COMPRESSED) as writer:
                writer.write_table(part)
            stream = sink.getvalue()
            ends = pa.py_buffer(np.array([0, stream.size], np.int32))
            rows = pa.Array.from_buffers(pa.binary(), 1, [None, ends, stream])
            row = [pa.array([piece.slot], pa.int32()), pa.array([piece.tag]), rows]
            yield pa.RecordBatch.from_arrays(row, schema=_ARROW)


def _pieces(batch: pa.RecordBatch) -> Iterator[Piece]:
    for slot, tag, rows in zip(
        batch.column("slot").to_pylist(), batch.column("tag").to_pylist(), batch.column("rows"), strict=True
    ):
        yield Piece(slot, tag, pa.ipc.open_stream(rows.as_buffer()).read_all())


def _read(rows: bytes | bytearray) -> pa.Table:
    return pa.ipc.open_stream(pa.py_buffer(rows)).read_all()


def _told(error: Exception) -> Exception:
    """The one line of a UserError that was raised in a task; any other failure as it is."""
    found = re.search(r"schemas\.errors\.UserError: (.+)", str(error))
    return UserError(found[1].strip()) if found else error

"""The engine of a cluster: Spark schedules, moves, spills and retries; rows travel as whole Arrow tables.

A Spark row is a piece: (slot, tag, Arrow IPC stream). The JVM thus moves a few large values instead of millions of small ones,
no type is translated on the way, and what a step computes is what the local engine computes, to the bit. Steps are Python
functions over Arrow tables run by `mapInArrow`; a shuffle partition is a slot.

On a cluster, submit the command itself; the session found there ships these packages to its executors, which need the libraries:

    venv-pack -o environment.tar.gz
    spark-submit --master yarn --archives environment.tar.gz#environment --conf spark.pyspark.python=./environment/bin/python \\
        genrank/__main__.py build --engine spark --schema schema.py --data /shared/logs --out /shared/out --from 2026-01-01 --to 2026-01-07

What `spark-submit` is given (`--conf`, a properties file) comes before the session's own settings. A step has a task for each unit of its work, so that
executors that come later under dynamic allocation find some.

`--out` is a folder that driver and executors share, and so is `--data` unless it is a URI; tables of a catalog (Hive, Iceberg) and
what lies at URIs (s3a://, gs://, hdfs://) are read by Spark and copied below `--out`, a day at a time, when they changed
(`spark_ingest`). A task writes files under names of its own attempt and only the winners' are listed, so retries and speculation
are harmless.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, TypeVar
from zipimport import zipimporter

import numpy as np
import pyarrow as pa

import genrank
from genrank.pipelines.engine import Piece, SlotPiece, Step, gather, joined
from genrank.pipelines.memory import keep_freed_memory
from genrank.pipelines.spark_ingest import SparkIngest
from genrank.pipelines.spark_progress import stage_progress
from genrank.pipelines.spark_session import start_session
from genrank.schemas import EventLog, Snapshot, UserError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Unit = TypeVar("Unit")

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
        """As `Engine.map`; a frame is a lazy Spark DataFrame of pieces."""
        units = list(units)
        tasks = max(1, len(units))

        def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            _settle()
            numbers = (at for batch in batches for at in batch.column("slot").to_pylist())
            yield from _batches(joined(piece for at in numbers for piece in step(units[at])))

        # A task a unit, however many cores there are now: more may come, and a unit is no smaller than a task is worth starting for.
        numbers = self.session.range(0, len(units), 1, tasks).selectExpr("cast(id as int) as slot")
        return numbers.mapInArrow(run, COLUMNS)

    def exchange(self, title: str, frames: Sequence[DataFrame], slots: int, step: Step) -> DataFrame:
        """As `Engine.exchange`; a shuffle partition is a slot."""

        def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            _settle()
            by_slot: dict[int, list[SlotPiece]] = {}
            for batch in batches:
                for piece in _pieces(batch):
                    by_slot.setdefault(piece.slot, []).append(piece)
            made = (piece for slot in sorted(by_slot) for piece in step(slot, gather(by_slot.pop(slot))))
            yield from _batches(joined(made))

        together = frames[0]
        for frame in frames[1:]:
            together = together.unionAll(frame)
        return together.repartitionById(slots, "slot").mapInArrow(run, COLUMNS)

    def collect(self, frame: DataFrame) -> dict[str, pa.Table]:
        """As `Engine.collect`; a UserError raised in a task is raised here."""
        from pyspark.errors import PySparkException

        try:
            with stage_progress(self.session):
                rows = frame.collect()
        except PySparkException as error:
            raise _user_error(error) from error
        except Exception as error:
            if type(error).__module__.startswith("py4j"):
                raise _user_error(error) from error
            raise
        return gather(SlotPiece(row.slot, row.tag, _read(row.rows)) for row in rows)

    def ingest(self, source: EventLog | Snapshot, uri: str | None, first: str, last: str, folder: Path) -> None:
        """As `Engine.ingest`; each day that changed is copied whole."""
        SparkIngest(self.session).copy(source, uri, first, last, folder)

    def stop(self) -> None:
        """Stop the session, if this engine started it."""
        if self._owned:
            self.session.stop()


def package(target: Path) -> Path:
    """A zip of the packages that executors import, for `--py-files`."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (PACKAGE / "__init__.py", *(p for name in SHIPPED for p in sorted((PACKAGE / name).rglob("*.py")))):
            archive.write(path, path.relative_to(PACKAGE.parent))
    return target


def _ship_code(session: SparkSession) -> None:
    """Executors on other machines (or in other processes) get this code; threads of this one have it."""
    context = session.sparkContext
    if not str(context.master).startswith("local["):
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
    keep_freed_memory()


def _nothing() -> None:
    return None


def _batches(pieces: Iterable[SlotPiece]) -> Iterator[pa.RecordBatch]:
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


def _pieces(batch: pa.RecordBatch) -> Iterator[SlotPiece]:
    for slot, tag, rows in zip(
        batch.column("slot").to_pylist(), batch.column("tag").to_pylist(), batch.column("rows"), strict=True
    ):
        yield SlotPiece(slot, tag, pa.ipc.open_stream(rows.as_buffer()).read_all())


def _read(rows: bytes | bytearray) -> pa.Table:
    return pa.ipc.open_stream(pa.py_buffer(rows)).read_all()


def _user_error(error: Exception) -> Exception:
    """The one line of a UserError that was raised in a task; any other failure as it is."""
    found = re.search(r"schemas\.errors\.UserError: (.+)", str(error))
    return UserError(found[1].strip()) if found else error

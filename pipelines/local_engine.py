"""The engine without Java: threads of this process, and files for what is on its way between two steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory, mkstemp
from typing import NamedTuple, TypeVar

import pyarrow as pa

from genrank.pipelines.engine import Piece, SlotPiece, Step, gather, joined
from genrank.schemas import EventLog, Snapshot, UserError
from genrank.schemas.console import with_progress

Unit = TypeVar("Unit")

TASKS = 8
"""Of a step, for each thread, at most: units beyond share one."""


class Stored(NamedTuple):
    """A piece in a file: its bytes `begin` to `begin + size` are an Arrow IPC message, a record batch."""

    slot: int
    tag: str
    file: Path
    begin: int
    size: int
    schema: pa.Schema

    def read(self) -> SlotPiece:
        """The piece itself."""
        with open(self.file, "rb", buffering=0) as file:
            message = os.pread(file.fileno(), self.size, self.begin)
        batch = pa.ipc.read_record_batch(pa.py_buffer(message), self.schema)
        return SlotPiece(self.slot, self.tag, pa.Table.from_batches([batch], self.schema))


class LocalEngine:
    """Steps run in a thread per core; NumPy, Arrow and polars release the interpreter's lock where the work is.

    Pieces wait for their slot's turn in a file of the task that made them, so that memory follows the slots at work and not the job.

    Args:
        threads: units or slots at work at once; default one for each core.
        folder: where the files lie, in a folder of their own that `stop` removes; default the system's temporary folder.
    """

    name = "local"

    def __init__(self, threads: int | None = None, folder: Path | None = None) -> None:
        self._threads = threads or len(os.sched_getaffinity(0))
        self._parent = folder
        self._folder: TemporaryDirectory[str] | None = None

    def map(self, title: str, units: Sequence[Unit], step: Callable[[Unit], Iterable[Piece]]) -> list[Stored]:
        """As `Engine.map`; pieces lie in files."""
        if self._folder is None:
            if self._parent:
                self._parent.mkdir(parents=True, exist_ok=True)
            self._folder = TemporaryDirectory(prefix="genrank-pieces-", dir=self._parent)
        folder = self._folder.name
        size = max(1, len(units) // (TASKS * self._threads))
        tasks = [units[at : at + size] for at in range(0, len(units), size)]

        def run(task: Sequence[Unit]) -> list[Stored]:
            return _store(joined(piece for unit in task for piece in step(unit)), folder)

        with ThreadPoolExecutor(self._threads) as pool:
            done = pool.map(run, tasks)
            return [piece for pieces in with_progress(done, title, len(tasks), unit="task") for piece in pieces]

    def exchange(self, title: str, frames: Sequence[list[Stored]], slots: int, step: Step) -> list[Stored]:
        """As `Engine.exchange`; files of what was exchanged are removed."""
        by_slot: dict[int, list[Stored]] = {}
        for piece in (piece for frame in frames for piece in frame):
            by_slot.setdefault(piece.slot, []).append(piece)
        made = self.map(title, sorted(by_slot), lambda slot: step(slot, gather(map(Stored.read, by_slot[slot]))))
        for frame in frames:
            _remove(frame)
        return made

    def collect(self, frame: list[Stored]) -> dict[str, pa.Table]:
        """As `Engine.collect`; the files are removed."""
        tables = gather(map(Stored.read, frame))
        _remove(frame)
        return tables

    def ingest(self, source: EventLog | Snapshot, uri: str | None, first: str, last: str, folder: Path) -> None:
        """Refused: catalogs and URIs are read by Spark."""
        what = f"lies at {uri}" if uri else f"is table {source.catalog} of a Spark catalog"
        raise UserError(f"source {source.name!r} {what}, which --engine local can't read; use --engine spark")

    def stop(self) -> None:
        """Remove the folder of pieces."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def _store(pieces: Iterable[SlotPiece], folder: str) -> list[Stored]:
    """Each as it is made."""
    descriptor, name = mkstemp(".arrow", dir=folder)
    os.close(descriptor)
    path = Path(name)
    stored: list[Stored] = []
    with pa.OSFile(name, "wb") as file:
        for piece in pieces:
            rows = piece.rows if piece.rows.num_rows else piece.rows.schema.empty_table()
            for batch in rows.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], rows.schema)]:
                begin = file.tell()
                file.write(batch.serialize())
                stored.append(Stored(piece.slot, piece.tag, path, begin, file.tell() - begin, rows.schema))
    return stored


def _remove(frame: list[Stored]) -> None:
    """The files of pieces that have been read."""
    for file in {piece.file for piece in frame}:
        file.unlink()
    frame.clear()

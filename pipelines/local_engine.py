"""The engine without Java: threads of this process, and files for what is on its way between two steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory, mkstemp
from typing import NamedTuple, TypeVar

import pyarrow as pa

from genrank.pipelines.engine import Piece, Step, gather
from genrank.schemas import EventLog, Snapshot, UserError
from genrank.schemas.console import with_progress

Unit = TypeVar("Unit")


class Stored(NamedTuple):
    """A piece in a file: its bytes `begin` to `begin + size` are an Arrow IPC stream."""

    slot: int
    tag: str
    file: Path
    begin: int
    size: int

    def read(self) -> Piece:
        """The piece itself."""
        with pa.OSFile(str(self.file)) as file:
            file.seek(self.begin)
            return Piece(self.slot, self.tag, pa.ipc.open_stream(file.read_buffer(self.size)).read_all())


class LocalEngine:
    """Steps run in a thread per core; NumPy, Arrow and polars release the interpreter's lock where the work is.

    Pieces wait for their slot's turn in a file of the unit that made them, so that memory follows the slots at work and not the job.

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
        with ThreadPoolExecutor(self._threads) as pool:
            done = pool.map(lambda unit: _store(step(unit), folder), units)
            return [piece for pieces in with_progress(done, title, len(units), unit="task") for piece in pieces]

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


def _store(pieces: Iterable[Piece], folder: str) -> list[Stored]:
    """Each as it is made."""
    descriptor, name = mkstemp(".arrow", dir=folder)
    os.close(descriptor)
    stored: list[Stored] = []
    with pa.OSFile(name, "wb") as file:
        for piece in pieces:
            begin = file.tell()
            with pa.ipc.new_stream(file, piece.rows.schema) as stream:
                stream.write_table(piece.rows)
            stored.append(Stored(piece.slot, piece.tag, Path(name), begin, file.tell() - begin))
    return stored


def _remove(frame: list[Stored]) -> None:
    """The files of pieces that have been read."""
    for file in {piece.file for piece in frame}:
        file.unlink()
    frame.clear()

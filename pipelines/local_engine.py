"""The engine without Java: threads of this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from tqdm import tqdm

from pipelines.engine import Piece, Step, gather
from schemas import EventLog, Snapshot, UserError

Unit = TypeVar("Unit")


class LocalEngine:
    """Steps run in a thread per core; NumPy, Arrow and polars let go of the interpreter where the work is."""

    name = "local"

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads or len(os.sched_getaffinity(0))

    def map(self, title: str, units: Sequence[Unit], step: Callable[[Unit], Iterable[Piece]]) -> list[Piece]:
        with ThreadPoolExecutor(self._threads) as pool:
            done = pool.map(lambda unit: list(step(unit)), units)
            told = tqdm(done, desc=title, total=len(units), unit="task", leave=False, disable=None)
            return [piece for pieces in told for piece in pieces]

    def exchange(self, title: str, frames: Sequence[list[Piece]], slots: int, step: Step) -> list[Piece]:
        by_slot: dict[int, list[Piece]] = {}
        for frame in frames:
            for piece in frame:
                by_slot.setdefault(piece.slot, []).append(piece)
            frame.clear()
        return self.map(title, sorted(by_slot), lambda slot: step(slot, gather(by_slot.pop(slot))))

    def collect(self, frame: list[Piece]) -> dict[str, pa.Table]:
        return gather(frame)

    def land(self, source: EventLog | Snapshot, uri: str | None, first: str, last: str, folder: Path) -> None:
        what = f"lies at {uri}" if uri else f"is table {source.catalog} of a Spark catalog"
        raise UserError(f"source {source.name!r} {what}, which --engine local can't read; use --engine spark")

    def stop(self) -> None:
        return None

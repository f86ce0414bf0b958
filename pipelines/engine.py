"""The few verbs a build needs, which Spark and this machine's threads both have.

A frame is a lazy bag of pieces. A piece is an Arrow table with a tag (what it is) and a slot (which task it goes to next).
Engines move pieces, whole tables at a time; they never look at rows, so both compute the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from genrank.pipelines.merge_scan import Int
from genrank.schemas import EventLog, Snapshot, UserError
from genrank.schemas.console import logger

Unit = TypeVar("Unit")
Frame = TypeVar("Frame")


class Piece(NamedTuple):
    """Rows on their way to a slot."""

    slot: int
    tag: str
    rows: pa.Table


Step = Callable[[int, dict[str, pa.Table]], Iterable[Piece]]
"""What a slot does with all rows sent to it, by tag."""


class Engine(Protocol, Generic[Frame]):
    """A runner of tasks."""

    name: str

    def map(self, title: str, units: Sequence[Unit], step: Callable[[Unit], Iterable[Piece]]) -> Frame:
        """Run `step` on every unit, in parallel."""
        ...

    def exchange(self, title: str, frames: Sequence[Frame], slots: int, step: Step) -> Frame:
        """Bring all pieces of a slot together and run `step` once for each slot that got any."""
        ...

    def collect(self, frame: Frame) -> dict[str, pa.Table]:
        """Run everything; the (small) result by tag."""
        ...

    def land(self, source: EventLog | Snapshot, uri: str | None, first: str, last: str, folder: Path) -> None:
        """Copy the days first .. last of a catalog table (or of `uri`, which has `{dt}` in it) to `folder/dt=...`: those that
        changed since they were last copied. A day that is no longer there is removed.

        Raises:
            UserError: this engine reads neither, or what lies there isn't what the schema declares.
        """
        ...

    def stop(self) -> None:
        """Let go of whatever was started."""
        ...


def scatter(rows: pa.Table, slots: np.ndarray[tuple[int], np.dtype[np.int32]], tag: str) -> Iterator[Piece]:
    """A piece per slot; rows keep their order within a slot."""
    if not rows.num_rows:
        return
    order: Int = np.argsort(slots, kind="stable")
    ordered = slots[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    sorted_rows = rows.take(pa.array(order)) if len(starts) > 1 else rows
    for start, end in zip(starts, np.append(starts[1:], len(ordered)), strict=True):
        yield Piece(int(ordered[start]), tag, sorted_rows.slice(int(start), int(end - start)))


def gather(pieces: Iterable[Piece]) -> dict[str, pa.Table]:
    """Tables by tag, pieces in a fixed order (by content-independent arrival is not fixed: steps sort what they need sorted)."""
    by_tag: dict[str, list[pa.Table]] = {}
    for piece in pieces:
        by_tag.setdefault(piece.tag, []).append(piece.rows)
    return {tag: pa.concat_tables(tables) for tag, tables in by_tag.items()}


def default_engine() -> tuple[str, str]:
    """(`spark`, "") where Spark can run; else (`local`, why)."""
    from importlib.util import find_spec

    if find_spec("pyspark") is None:
        return "local", "pyspark is not installed"
    from genrank.pipelines.spark_engine import check_java

    try:
        check_java()
    except UserError:
        return "local", "no Java 17 found"
    return "spark", ""


def open_engine(name: str, folder: Path) -> Engine[object]:
    """`spark`, `local` or `auto` (see `default_engine`); in `folder` the local one keeps what is on its way between two steps.

    Raises:
        UserError: no such engine, or Spark without Java.
    """
    if name == "auto":
        name, reason = default_engine()
        if reason:
            logger.info("engine: %s (%s)", name, reason)
    if name == "local":
        from genrank.pipelines.local_engine import LocalEngine

        return LocalEngine(folder=folder)
    if name == "spark":
        from genrank.pipelines.spark_engine import SparkEngine

        return SparkEngine()
    raise UserError(f"--engine {name!r} is unknown; choose spark or local")

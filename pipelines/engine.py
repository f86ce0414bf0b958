"""The few verbs a build needs, which Spark and this machine's threads both have.

A frame is a lazy bag of pieces. A piece is an Arrow table with a tag (what it is) and the slots (which tasks) that its rows go to next.
What a task's units send is joined before it is scattered, so that a task sends a slot one table of a tag however many units it has.
Engines move whole tables; they never look at rows, so both compute the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from genrank.pipelines.arrays import taken
from genrank.pipelines.merge_scan import Int
from genrank.schemas import EventLog, Snapshot

Unit = TypeVar("Unit")
Frame = TypeVar("Frame")


Slots = np.ndarray[tuple[int], np.dtype[np.int32]]

TASKS = 16
"""Of a step at least, where it has as many units."""
JOINED_BYTES = 32 << 20
"""Of pieces that a task holds until it scatters them."""


class Piece(NamedTuple):
    """Rows on their way."""

    slot: int | Slots
    """Of all of them, or of each."""
    tag: str
    rows: pa.Table


class SlotPiece(NamedTuple):
    """Rows on their way to one slot."""

    slot: int
    tag: str
    rows: pa.Table


Step = Callable[[int, dict[str, pa.Table]], Iterable[Piece]]
"""What a slot does with all rows sent to it, by tag."""


class Engine(Protocol, Generic[Frame]):
    """A runner of tasks."""

    name: str
    """As `--engine` and the manifest have it."""

    def map(self, title: str, units: Sequence[Unit], step: Callable[[Unit], Iterable[Piece]]) -> Frame:
        """Run `step` on every unit, in parallel; a unit is about as much as a task should do (`together`)."""
        ...

    def exchange(self, title: str, frames: Sequence[Frame], slots: int, step: Step) -> Frame:
        """Bring all pieces of a slot together and run `step` once for each slot that got any."""
        ...

    def collect(self, frame: Frame) -> dict[str, pa.Table]:
        """Run everything; the (small) result by tag."""
        ...

    def ingest(self, source: EventLog | Snapshot, uri: str | None, first: str, last: str, folder: Path) -> None:
        """Copy the days first .. last of a catalog table (or of `uri`, which has `{dt}` in it) to `folder/dt=...`: those that
        changed since they were last copied. A day that is no longer there is removed.

        Raises:
            UserError: this engine reads neither, or what lies there isn't what the schema declares.
        """
        ...

    def stop(self) -> None:
        """Release whatever was started."""
        ...


AnyEngine = Engine[Any]
"""An engine, whatever its frames are."""


def together(units: Sequence[Unit], rows: Callable[[Unit], int], most: int) -> list[tuple[Unit, ...]]:
    """Neighbouring units joined to `most` rows, or to a `TASKS`th of all rows where that is less: many small files are few tasks."""
    most = min(most, -(-sum(map(rows, units)) // TASKS))
    tasks: list[list[Unit]] = []
    held = 0
    for unit in units:
        if not tasks or held + rows(unit) > most:
            tasks.append([])
            held = 0
        tasks[-1].append(unit)
        held += rows(unit)
    return [tuple(task) for task in tasks]


def joined(pieces: Iterable[Piece], most: int = JOINED_BYTES) -> Iterator[SlotPiece]:
    """What a task sends: pieces of a tag joined while all that is held is below `most` bytes, then scattered; their order is kept."""
    held: dict[str, list[Piece]] = {}
    size = 0
    for piece in pieces:
        held.setdefault(piece.tag, []).append(piece)
        size += piece.rows.nbytes
        if size >= most:
            yield from _sent(held)
            held, size = {}, 0
    yield from _sent(held)


def _sent(held: dict[str, list[Piece]]) -> Iterator[SlotPiece]:
    for tag, pieces in held.items():
        if len(pieces) == 1 and isinstance(slot := pieces[0].slot, int):
            yield SlotPiece(slot, tag, pieces[0].rows)
            continue
        slots = [np.full(p.rows.num_rows, p.slot, np.int32) if isinstance(p.slot, int) else p.slot for p in pieces]
        yield from scatter(pa.concat_tables([piece.rows for piece in pieces]), np.concatenate(slots), tag)


def scatter(rows: pa.Table, slots: Slots, tag: str) -> Iterator[SlotPiece]:
    """A piece per slot; rows keep their order within a slot."""
    if not rows.num_rows:
        return
    # Of 16 bits, a stable sort counts instead of comparing.
    order: Int = np.argsort(slots.astype(np.uint16) if int(slots.max()) < 1 << 16 else slots, kind="stable")
    ordered = slots[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    sorted_rows = taken(rows.combine_chunks(), order) if len(starts) > 1 else rows
    for start, end in zip(starts, np.append(starts[1:], len(ordered)), strict=True):
        yield SlotPiece(int(ordered[start]), tag, sorted_rows.slice(int(start), int(end - start)))


def gather(pieces: Iterable[SlotPiece]) -> dict[str, pa.Table]:
    """Tables by tag, pieces in a fixed order (by content-independent arrival is not fixed: steps sort what they need sorted)."""
    by_tag: dict[str, list[pa.Table]] = {}
    for piece in pieces:
        by_tag.setdefault(piece.tag, []).append(piece.rows)
    return {tag: pa.concat_tables(tables) for tag, tables in by_tag.items()}

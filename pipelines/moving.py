"""Files that tasks staged go to where they belong: few by this process, many by tasks, whatever their number."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from genrank.pipelines.engine import AnyEngine, Piece

FILES = 1024
"""A task renames; fewer aren't worth one."""

Move = tuple[Path, Path]
"""From, to: on one file system, into a folder that is there."""


def move_files(engine: AnyEngine, moves: Sequence[Move]) -> None:
    """Rename files that are on the disk already. On a file system over a network a rename takes a millisecond, and a large day has a
    hundred thousand files."""
    if len(moves) <= FILES:
        rename(moves)
        return
    chunks = [tuple(moves[at : at + FILES]) for at in range(0, len(moves), FILES)]
    engine.collect(engine.map("move files", chunks, renamed))


def renamed(moves: Sequence[Move]) -> Iterable[Piece]:
    """`rename`, as a task's step."""
    rename(moves)
    return ()


def rename(moves: Sequence[Move]) -> None:
    """Also where another attempt of the same task renamed some before.

    Raises:
        FileNotFoundError: a file is neither here nor there.
    """
    for staged, final in moves:
        try:
            os.rename(staged, final)
        except FileNotFoundError:
            if not final.exists():
                raise

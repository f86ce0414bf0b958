"""Progress of Spark's stages as bars in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING

from genrank.schemas.console import progress_bar

if TYPE_CHECKING:
    from pyspark import StatusTracker
    from pyspark.sql import SparkSession

POLL_SECONDS = 0.5


@contextmanager
def stage_progress(session: SparkSession) -> Iterator[None]:
    """Tasks of the stage under way, one bar after the other while the block runs; nothing off a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    over = Event()
    watcher = Thread(target=_watch, args=(session.sparkContext.statusTracker(), over), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _watch(tracker: StatusTracker, over: Event) -> None:
    while not over.wait(POLL_SECONDS):
        if active := tracker.getActiveStageIds():
            _show_stage(tracker, max(active), over)


def _show_stage(tracker: StatusTracker, stage: int, over: Event) -> None:
    """Until the stage is over."""
    if (info := tracker.getStageInfo(stage)) is None:
        return
    done = 0
    with progress_bar(f"spark stage {stage}", info.numTasks, unit="task") as bar:
        while info is not None:
            bar.advance(info.numCompletedTasks - done)
            done = info.numCompletedTasks
            if over.wait(POLL_SECONDS) or stage not in tracker.getActiveStageIds():
                return
            info = tracker.getStageInfo(stage)

"""What of the Spark engine needs no Java: pieces as rows, and the progress of stages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import SimpleNamespace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrank.pipelines import spark_engine, spark_progress
from genrank.pipelines.engine import SlotPiece, gather


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab"), st.integers(0, 40)), max_size=6))
def test_pieces_become_rows_and_pieces_again(made: list[tuple[int, str, int]]) -> None:
    sent = [SlotPiece(slot, tag, pa.table({"n": pa.array(range(rows), pa.int64())})) for slot, tag, rows in made]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spark_engine, "PIECE_BYTES", 100)
        batches = list(spark_engine._batches(sent))
    assert len(batches) >= len(sent)
    found = [piece for batch in batches for piece in spark_engine._pieces(batch)]
    for slot in range(4):
        expected = gather(piece for piece in sent if piece.slot == slot)
        arrived = gather(piece for piece in found if piece.slot == slot)
        assert {tag: rows.to_pylist() for tag, rows in arrived.items()} == {
            tag: rows.to_pylist() for tag, rows in expected.items()
        }


class Tracker:
    """Stages 0 and 1 of three and two tasks, one task done at each look."""

    def __init__(self, over: Event) -> None:
        self.done, self.over = 0, over

    def getActiveStageIds(self) -> list[int]:
        if self.done >= 5:
            self.over.set()
            return []
        return [0 if self.done < 3 else 1]

    def getStageInfo(self, stage: int) -> SimpleNamespace | None:
        self.done += 1
        tasks = (3, 2)[stage]
        return SimpleNamespace(numTasks=tasks, numCompletedTasks=min(tasks, self.done - 3 * stage))


def test_each_stage_has_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: dict[str, list[int]] = {}

    @contextmanager
    def bar(title: str, total: int | None, *, unit: str) -> Iterator[SimpleNamespace]:
        assert (total, unit) == ({"spark stage 0": 3, "spark stage 1": 2}[title], "task")
        yield SimpleNamespace(advance=bars.setdefault(title, []).append)

    monkeypatch.setattr(spark_progress, "progress_bar", bar)
    monkeypatch.setattr(spark_progress, "POLL_SECONDS", 0.001)
    over = Event()
    spark_progress._watch(Tracker(over), over)  # type: ignore[arg-type]
    assert {title: sum(steps) for title, steps in bars.items()} == {"spark stage 0": 3, "spark stage 1": 2}

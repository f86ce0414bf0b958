"""What lies on disk between two steps: what its slots have yet to take, and nothing once they have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from genrank.pipelines.engine import Piece
from genrank.pipelines.local_engine import LocalEngine


def made(unit: int) -> Iterator[Piece]:
    whole = pa.table({"unit": [unit] * 4, "text": ["a", None, "c", "d"], "lists": [[1.5], [], None, [2.0, 3.0]]})
    for slot in range(3):
        yield Piece(slot, "rows", whole.slice(slot, 2))
    yield Piece(unit, "none", whole.slice(0, 0))


def test_pieces_come_back_as_they_were_and_their_files_go(tmp_path: Path) -> None:
    engine = LocalEngine(folder=tmp_path / "staging")
    frame = engine.map("make", range(3), made)
    assert len(list(tmp_path.rglob("*.arrow"))) == 3

    def step(slot: int, tables: dict[str, pa.Table]) -> Iterator[Piece]:
        wanted = [piece.rows for unit in range(3) for piece in made(unit) if (piece.slot, piece.tag) == (slot, "rows")]
        assert tables["rows"].equals(pa.concat_tables(wanted))
        assert tables["none"].num_rows == 0
        yield Piece(0, "slots", pa.table({"slot": [slot]}))

    answered = engine.exchange("meet", [frame], 3, step)
    assert engine.collect(answered)["slots"].column("slot").to_pylist() == [0, 1, 2]
    assert not list(tmp_path.rglob("*.arrow"))
    engine.stop()
    assert not list((tmp_path / "staging").iterdir())


def test_a_step_that_fails_leaves_no_files_behind_a_stopped_engine(tmp_path: Path) -> None:
    engine = LocalEngine(folder=tmp_path)
    frame = engine.map("make", range(3), made)

    def step(slot: int, tables: dict[str, pa.Table]) -> Iterator[Piece]:
        yield Piece(0, "slots", pa.table({"slot": [slot]}))
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        engine.exchange("meet", [frame], 3, step)
    engine.stop()
    assert not list(tmp_path.iterdir())

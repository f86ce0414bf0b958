"""Staged files go to their places by tasks, any of which may be tried again."""

from __future__ import annotations

from pathlib import Path

import pytest

from genrank.pipelines import moving
from genrank.pipelines.local_engine import LocalEngine


@pytest.mark.parametrize("per_task", [1, 3, 100])
def test_every_file_goes_to_its_place(per_task: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "FILES", per_task)
    final = tmp_path / "final"
    final.mkdir()
    moves = []
    for i in range(7):
        staged = tmp_path / f"attempt-{i}"
        staged.write_text(str(i))
        moves.append((staged, final / f"part-{i}"))
    moving.move_files(LocalEngine(2, tmp_path / "pieces"), moves)
    assert [(final / f"part-{i}").read_text() for i in range(7)] == [str(i) for i in range(7)]
    assert not list(tmp_path.glob("attempt-*"))


def test_a_task_goes_on_where_another_attempt_of_it_ended(tmp_path: Path) -> None:
    staged = [tmp_path / "a", tmp_path / "b"]
    for path in staged:
        path.write_text(path.name)
    moves = [(path, tmp_path / f"final-{path.name}") for path in staged]
    moving.rename(moves[:1])
    moving.rename(moves)
    assert [final.read_text() for _, final in moves] == ["a", "b"]
    moves[1][1].unlink()
    with pytest.raises(FileNotFoundError):
        moving.rename(moves)

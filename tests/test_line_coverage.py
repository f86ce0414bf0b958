"""Marks say of every statement whether it ran, as Python's own tracing does, and change nothing else."""

from __future__ import annotations

import ast
import inspect
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "line_coverage"))
import line_marks  # noqa: E402

PROGRAM = textwrap.dedent('''
    """A docstring."""

    from __future__ import annotations

    from dataclasses import dataclass
    from typing import TYPE_CHECKING

    if TYPE_CHECKING:
        import nothing_of_this_name

    @dataclass
    class Point:
        """A class."""

        x: int = 1
        """Of an attribute."""

        def move(self, by: int) -> int:
            global moved
            moved = by
            if by > 2:
                self.x += by
            elif by == 2:
                raise ValueError(by)
            else:
                for _ in range(by):
                    self.x += 1
                else:
                    self.x *= 2
            return self.x

    def kind(value):
        match value:
            case int():
                return "int"
            case _:
                return "other"

    def attempt(by):
        try:
            Point().move(by)
            return 0
        except ValueError:
            caught = True
        finally:
            moved
        with open("/dev/null") as file:
            inner = lambda: file
        while caught:
            caught = False
            continue
            never = 1
        def nested():
            return caught
        return nested()

    result = [attempt(n) for n in CALLS], kind("a")
''')


def traced(code: CodeType, given: dict[str, Any]) -> set[int]:
    """Lines that ran, by `sys.settrace`."""
    lines = set()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != code.co_filename:
            return None
        if event == "line":
            lines.add(frame.f_lineno)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        exec(code, given)
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("calls", [[], [0], [1], [2], [3], [2, 0], [3, 2, 1]])
def test_marks_are_the_lines_that_tracing_sees(
    calls: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(line_marks.FOLDER, raising=False)
    source = tmp_path / "program.py"
    source.write_text(PROGRAM)
    plain: dict[str, Any] = {"CALLS": calls, "__name__": __name__}
    want = traced(compile(PROGRAM, str(source), "exec"), plain)
    marked: dict[str, Any] = {"CALLS": calls, "__name__": __name__}
    exec(compile(line_marks.mark(ast.parse(PROGRAM), str(source)), str(source), "exec"), marked)
    assert marked["result"] == plain["result"]
    assert marked["__doc__"] == "A docstring." and marked["Point"].__doc__ == "A class."
    statements = line_marks.statement_lines(ast.parse(PROGRAM))
    assert {line for line, hit in enumerate(marked[line_marks.MARKS]) if hit} == want & statements
    assert inspect.getsource(marked["kind"]) == inspect.getsource(plain["kind"])


def test_statements_are_counted_once_each() -> None:
    """The oracle: a line of the program's own bytecode, less what never runs as a statement."""
    statements = line_marks.statement_lines(ast.parse(PROGRAM))
    lines = PROGRAM.splitlines()
    assert {lines[n - 1].strip() for n in statements} >= {
        "never = 1",
        "return self.x",
        "elif by == 2:",
        "self.x *= 2",
        "moved = by",
    }
    assert not {
        n
        for n in statements
        if lines[n - 1].strip().startswith(('"""', "global", "else", "case", "import nothing", "from __future__"))
    }


def test_every_process_marks_the_same_file(tmp_path: Path) -> None:
    """The parent, a fork that is killed, and a command of its own; a function's marks go with it when it is pickled."""
    run = """
        import os, signal, subprocess, sys
        from genrank.schemas import digest
        assert "__line_marks__" in vars(digest), sorted(vars(digest))
        if (child := os.fork()) == 0:
            from genrank.schemas import local_days
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        subprocess.run([sys.executable, "-c", "import genrank.pipelines.days"], check=True)
    """
    home = str(Path(line_marks.__file__).parent)
    paths = os.pathsep.join([home, str(ROOT)])
    environment = os.environ | {line_marks.FOLDER: str(tmp_path), "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(run)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(line_marks.FOLDER, str(tmp_path))
        for name in ("schemas/digest.py", "schemas/local_days.py", "pipelines/days.py"):
            ran = line_marks.lines_run(ROOT / name)
            assert ran and ran <= line_marks.statement_lines(ast.parse((ROOT / name).read_bytes())), name
        assert not line_marks.lines_run(ROOT / "model" / "trainer.py")
        marks = line_marks.marks_of(str(ROOT / "model" / "interface.py"))
        pickle.loads(pickle.dumps(marks))[7] = 1
        assert marks[7] == 1

"""`pytest -p tests.line_coverage.plugin`: reports the lines that the tests ran, and fails under `--coverage-floor`.

Loaded before any conftest, so that nothing of ours is imported yet.
"""

from __future__ import annotations

import ast
import os
import sys
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

HERE = str(Path(__file__).parent)
sys.path.append(HERE)
import line_marks  # noqa: E402

IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if line_marks.FOLDER not in os.environ:
    _folder = TemporaryDirectory(prefix="line-marks-")
    os.environ[line_marks.FOLDER] = _folder.name
if not IS_WORKER:
    os.environ["PYTHONPATH"] = os.pathsep.join([HERE, *filter(None, [os.environ.get("PYTHONPATH")])])
line_marks.start()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--coverage-floor", type=float, default=0.0, help="fail if fewer percent of the lines ran")
    parser.addoption("--coverage-report", type=Path, help="where each file's lines that did not run are listed")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if IS_WORKER:
        return
    session.config.stash[MEASURED] = measured = Measured()
    floor = session.config.getoption("--coverage-floor")
    if session.exitstatus == pytest.ExitCode.OK and measured.percent() < floor:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if report := session.config.getoption("--coverage-report"):
        report.write_text(measured.missing())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not (measured := config.stash.get(MEASURED, None)):
        return
    terminalreporter.section("lines run")
    for package in (*line_marks.PACKAGES, ""):
        terminalreporter.line(
            f"{measured.percent(package):5.1f}% of {measured.lines(package):6,} {package or 'in all'}"
        )
    if measured.percent() < (floor := config.getoption("--coverage-floor")):
        terminalreporter.line(
            f"error: {measured.percent():.1f}% of the lines ran; the floor is {floor}%: test what a change adds",
            red=True,
        )


class Measured:
    """Lines of each file of ours, and which of them ran."""

    def __init__(self) -> None:
        self.files = {
            path.relative_to(line_marks.ROOT): (
                lines := line_marks.statement_lines(ast.parse(path.read_bytes())),
                lines & line_marks.lines_run(path),
            )
            for path in line_marks.measured_files()
        }

    def lines(self, package: str = "") -> int:
        """Lines of a package, of all without one."""
        return sum(len(lines) for path, (lines, _) in self.files.items() if package in ("", path.parts[0]))

    def percent(self, package: str = "") -> float:
        """Share of a package's lines that ran, of all without one."""
        ran = sum(len(ran) for path, (_, ran) in self.files.items() if package in ("", path.parts[0]))
        return 100 * ran / max(1, self.lines(package))

    def missing(self) -> str:
        """A line a file, fewest run first: percent, path and the lines that did not run."""
        rows = sorted(
            (len(ran) / len(lines), path, lines, ran) for path, (lines, ran) in self.files.items() if lines - ran
        )
        return "".join(
            f"{100 * share:5.1f}% {path}: {_ranges(sorted(lines), ran)}\n" for share, path, lines, ran in rows
        )


MEASURED = pytest.StashKey[Measured]()


def _ranges(lines: list[int], ran: set[int]) -> str:
    """`3-8, 12`: runs of lines, neighbours among the statements, that did not run."""
    parts = []
    for has_run, group in groupby(lines, key=ran.__contains__):
        run = list(group)
        if not has_run:
            parts.append(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]))
    return ", ".join(parts)

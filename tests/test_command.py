"""The command as a user meets it: help that reads well, one clear line on bad input, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer

from genrank import environment
from genrank.command import app
from genrank.command.demo import steps
from genrank.schemas import UserError
from genrank.schemas.configuration import parse_dates

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "genrank", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
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


def test_help_lists_the_environment_variables() -> None:
    words = " ".join(run("--help").stdout.split())
    for variable in environment.VARIABLES:
        assert f"{variable.name} ({variable.values})" in words


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ([], ["INFO: informed", "WARNING: warned"]),
        (["-v"], ["DEBUG: detailed", "INFO: informed", "WARNING: warned"]),
        (["--quiet"], ["WARNING: warned"]),
    ],
)
def test_how_much_is_shown(flags: list[str], shown: list[str]) -> None:
    code = (
        "import sys, genrank.command\n"
        "from genrank.schemas.console import logger\n"
        "@genrank.command.app.command()\n"
        "def speak(): logger.debug('detailed'); logger.info('informed'); logger.warning('warned')\n"
        f"sys.argv = ['genrank', *{flags!r}, 'speak']\n"
        "genrank.command.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.stderr.splitlines() == shown


def test_the_demo_gives_flags_that_exist(tmp_path: Path) -> None:
    """Each step up to where it needs what the step before wrote: nothing there is a usage error."""
    for step in steps(tmp_path / "demo"):
        if step[0] != "world":
            with pytest.raises((UserError, OSError)):
                app(step, standalone_mode=False)


def commands(app: typer.Typer) -> Iterator[Any]:
    yield from (command.callback for command in app.registered_commands)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance)


def test_a_placeholder_that_spells_its_option_does_not_name_it() -> None:
    """typer 0.27 makes `--RUN` of a parameter `run` with the metavar RUN, unless `--run` is written out."""
    spelled = 0
    for command in commands(app):
        for name, hint in get_type_hints(command, include_extras=True).items():
            for option in get_args(hint)[1:]:
                if isinstance(option, typer.models.OptionInfo) and (option.metavar or "").lower() == name:
                    spelled += 1
                    # Option's first positional argument is called `default`; inside Annotated it is a name.
                    names = (option.default, *(option.param_decls or ()))
                    assert f"--{name}" in names, f"{command.__name__}: write out --{name}"
    assert spelled == 8


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("2026-01-01", ["2026-01-01"]),
        ("2026-01-01:", ["2026-01-01"]),
        ("2026-02-27:2026-03-01", ["2026-02-27", "2026-02-28", "2026-03-01"]),
    ],
)
def test_dates(text: str, days: list[str]) -> None:
    assert parse_dates(text) == days


@pytest.mark.parametrize("text", ["2026-01-02:2026-01-01", "yesterday", ":2026-01-01", ""])
def test_dates_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--dates"):
        parse_dates(text)


@pytest.mark.parametrize(("own", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77")])
def test_waiting_threads_sleep_soon_unless_the_user_says_otherwise(own: dict[str, str], spins: str) -> None:
    """GNU OpenMP itself prints what it read: it is loaded with torch, after the command has begun."""
    done = run("evaluate", "--run=none", "--samples=none", "--dates=2026-01-01", OMP_DISPLAY_ENV="verbose", **own)
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("PyTorch is not built on GNU OpenMP here")
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr

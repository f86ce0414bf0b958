"""The `genrank` command: thin, imports lazily, one clear line on bad input."""

from __future__ import annotations

import errno
import logging
import os
from typing import Annotated

import typer

from genrank import environment
from genrank.command import data, demo, models, schema, scores, serve, verify
from genrank.command.interruption import Interrupted, interruptible
from genrank.command.output import fail
from genrank.schemas.console import show_log_messages
from genrank.schemas.errors import UserError

app = typer.Typer(
    name="genrank",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (demo, data, verify, models, scores, serve):
    app.add_typer(group.app)
app.add_typer(schema.app, rich_help_panel="Start here")


@app.callback(epilog=environment.in_one_line())
def root(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show messages of each step.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and errors alone.")] = False,
) -> None:
    """Generative ranking, from exposure log to score.

    The usual way through: [bold]world[/] (or your own logs) → [bold]build[/] → [bold]train[/] → [bold]evaluate[/] →
    [bold]report[/]. [bold]genrank demo[/] runs all of it.
    """
    show_log_messages(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)


def main() -> None:
    """Run the command; bad input ends in one line on stderr and exit status 1."""
    _let_threads_sleep()
    try:
        with interruptible():
            app(standalone_mode=True)
    except UserError as error:
        fail(str(error))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            where = error.filename or "the output folder"
            fail(f"no space left on the disk of {where}; free some and run the command again")
        if error.filename is None:
            fail(
                f"{str(error).splitlines()[0] or type(error).__name__}; check the disk, and that this user may read and write there"
            )
        path = error.filename2 or error.filename
        fail(f"{path}: {(error.strerror or str(error)).lower()}; check the path and its permissions")
    except MemoryError:
        fail("out of memory; give the process more of it, or less to do at once")
    except Interrupted as interrupted:
        fail(str(interrupted), interrupted.status)


def _let_threads_sleep() -> None:
    """Beside other work, PyTorch's waiting threads (GNU OpenMP, which reads this when it is loaded) hold the cores that the
    working ones need: they wait actively for 1,000 rounds instead of 300,000, as GNU OpenMP does itself where it has more threads
    than cores. What it brings: benchmarks/train.md.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"

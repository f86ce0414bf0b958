"""`genrank verify`: is every stored file as it was written?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from genrank.command.output import say
from genrank.schemas.configuration import parse_dates
from genrank.schemas.errors import UserError

app = typer.Typer()
T = TypeVar("T")


@app.command(rich_help_panel="Data")
def verify(
    samples: Annotated[
        Path | None,
        typer.Option("--samples", metavar="DIR", help="The --out folder of `genrank build`, every published day."),
    ] = None,
    dates: Annotated[
        str | None, typer.Option("--dates", metavar="FROM:TO", help="These days of --samples alone.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="The --out folder of `genrank train`, every checkpoint.")
    ] = None,
) -> None:
    """Compare every file of samples, or of a run's checkpoints, with its digest; a line a damaged file, and exit status 1 if there is one."""
    if samples is None and run is None:
        raise UserError("verify: give --samples, --run or both")
    if dates is not None and samples is None:
        raise UserError("--dates chooses among days of samples; give --samples too")
    damaged: list[str] = []
    counted: list[str] = []
    if samples is not None:
        damaged += _samples(samples, parse_dates(dates) if dates else None, counted)
    if run is not None:
        damaged += _checkpoints(run, counted)
    for line in damaged:
        typer.echo(line)
    if damaged:
        raise typer.Exit(1)
    say(f"{' and '.join(counted)}: every file is as it was written")


def _samples(samples: Path, dates: Sequence[str] | None, counted: list[str]) -> list[str]:
    from genrank.model.config import samples_folder
    from genrank.schemas.manifest import damaged_samples, sample_days

    folder = samples_folder(samples)
    days = dates or sample_days(folder)
    if not days:
        raise UserError(f"--samples {samples}: no day is published there; build one first")
    counted.append(_count(len(days), "day of samples", "days of samples"))
    return _damaged(lambda day: damaged_samples(folder, day), days)


def _checkpoints(run: Path, counted: list[str]) -> list[str]:
    from genrank.model.checkpoint import damaged_files, steps_of

    steps = steps_of(run)
    if not steps:
        raise UserError(f"--run {run}: no complete checkpoint in it; give the --out folder of `genrank train`")
    counted.append(_count(len(steps), "checkpoint", "checkpoints"))
    return _damaged(damaged_files, [run / "checkpoints" / f"step-{step}" for step in steps])


def _damaged(check: Callable[[T], list[str]], each: Iterable[T]) -> list[str]:
    """Lines of every day or checkpoint; one whose manifest can't be read is a line too."""
    found: list[str] = []
    for one in each:
        try:
            found += check(one)
        except UserError as error:
            found.append(str(error))
    return found


def _count(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"

"""`genrank world | inputs | build | status | clean | stats | show`: logs, samples, and what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genrank.command.options import (
    AsOfFlag,
    ConfigCommand,
    DataFlag,
    OutFlag,
    SamplesFlag,
    SchemaFlag,
    takes,
)
from genrank.command.output import fail, say
from genrank.pipelines.config import BuildConfig
from genrank.schemas.configuration import parse_dates
from genrank.schemas.errors import UserError

app = typer.Typer()


@app.command(rich_help_panel="Data")
def world(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the logs.", show_default=False)],
    users: Annotated[int, typer.Option("--users", min=1, help="Users in the marketplace.")] = 2_000,
    days: Annotated[int, typer.Option("--days", min=1, help="Days of logs.")] = 10,
    seed: Annotated[int, typer.Option("--seed", help="Same arguments, same bytes.")] = 0,
) -> None:
    """Write a synthetic marketplace whose true click probabilities are known."""
    from genrank.examples.marketplace.world import generate

    generate(out, users=users, days=days, seed=seed)
    say(f"wrote the logs of {users:,} users over {days} days to {out}")


@app.command(rich_help_panel="Data")
def inputs(
    schema: SchemaFlag,
    data: DataFlag,
    day: Annotated[str, typer.Option("--day", metavar="DAY", help="YYYY-MM-DD.", show_default=False)],
    marker: Annotated[
        str | None, typer.Option("--marker", help="A file that closes a day's folder, such as _SUCCESS.")
    ] = None,
) -> None:
    """Have the day's logs landed? Exits with 75 and names what is missing if not (for schedulers)."""
    from genrank.pipelines.landing import missing_inputs
    from genrank.schemas import load_schema

    (day,) = parse_dates(day, "--day", one=True)
    if lacks := missing_inputs(load_schema(schema), data, day, marker):
        fail("; ".join(lacks), status=75)
    say(f"{day}: every source has landed")


@app.command(rich_help_panel="Data", cls=ConfigCommand)
@takes(BuildConfig, engine="auto")
def build(config: BuildConfig) -> None:
    """Turn days of logs into point-in-time samples; gate them, then publish them day by day."""
    from rich.markup import escape

    from genrank.pipelines.build import build as build_days
    from genrank.pipelines.losses import losses

    result = build_days(config)
    if result.unchanged:
        say(f"up to date: {_days(len(result.unchanged))}, {result.unchanged[0]} to {result.unchanged[-1]}")
    if result.days:
        counted = f"{result.samples:,} samples, {result.candidates:,} candidates"
        say(f"published {_days(len(result.days))} to {config.out / 'samples'}: {counted}")
    for line in losses(manifest.counts for manifest in result.manifests.values()):
        say(escape(line))


def _days(count: int) -> str:
    return f"{count} day" if count == 1 else f"{count} days"


@app.command(rich_help_panel="Data")
def status(schema: SchemaFlag, data: DataFlag, out: OutFlag, as_of: AsOfFlag = None) -> None:
    """Which days are published, missing or stale, and why."""
    from genrank.pipelines.presentation.status import print_status
    from genrank.pipelines.status import status as days_status
    from genrank.schemas import load_schema

    print_status(days_status(load_schema(schema), data, out, as_of))


@app.command(rich_help_panel="Data")
def gate(
    out: OutFlag,
    dates: Annotated[
        str | None, typer.Option("--dates", metavar="FROM:TO", help="Default: every day that the gate judged.")
    ] = None,
) -> None:
    """Write Great Expectations' pages of what the quality gate found of each day; those of refused days are there already."""
    from genrank.pipelines.gate.data_docs import write_pages

    for page in write_pages(out, parse_dates(dates) if dates else None):
        say(str(page))


@app.command(rich_help_panel="Data")
def clean(
    out: OutFlag,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
) -> None:
    """Remove files that no manifest points to (left by killed builds, or replaced by newer ones)."""
    from genrank.pipelines.clean import clean as clean_folder
    from genrank.pipelines.presentation.clean import print_cleaned

    print_cleaned(clean_folder(out, dry_run))


@app.command(rich_help_panel="Data")
def stats(
    out: OutFlag,
    dates: Annotated[
        str | None, typer.Option("--dates", metavar="FROM:TO", help="Default: every published day.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page instead.")] = None,
) -> None:
    """What the samples hold: null rates, lengths, quantiles, label rates, how often joins found a partner; and drift (PSI)."""
    from genrank.pipelines.presentation.sample_statistics import print_statistics, write_statistics
    from genrank.pipelines.sample_statistics import statistics

    days = statistics(out, parse_dates(dates) if dates else None)
    if html is None:
        print_statistics(days)
    else:
        write_statistics(days, html)
        say(f"wrote {html}")


@app.command(rich_help_panel="Data")
def show(
    samples: SamplesFlag,
    schema: SchemaFlag,
    sample_id: Annotated[str | None, typer.Argument(help="user:day:chunk. Default: a varied one of --day.")] = None,
    day: Annotated[str | None, typer.Option("--day", metavar="DAY", help="Choose a sample of this day.")] = None,
    png: Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Draw it to a picture instead.")] = None,
) -> None:
    """Draw one sample: its tokens by group, their values and times, and what sees what."""
    from genrank.model.config import samples_folder
    from genrank.schemas import load_schema
    from genrank.tokenization.inspect_sample import interesting_sample
    from genrank.tokenization.present.sample import show_sample

    declared, folder = load_schema(schema), samples_folder(samples)
    if sample_id is None:
        if day is None:
            raise UserError("show: give a SAMPLE_ID, or --day to have one chosen")
        sample_id = interesting_sample(folder, declared, parse_dates(day, "--day", one=True)[0])
    show_sample(folder, sample_id, schema=declared, png=png)
    if png:
        say(f"wrote {png}")

"""`genrank schema check | explain | diff | docs | convert | json-schema | requests`: each calls one function and prints what it returns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from genrank.command.options import SchemaFlag
from genrank.schemas.configuration import parse_dates
from genrank.schemas.errors import UserError

if TYPE_CHECKING:
    from genrank.schemas.schema import Schema

app = typer.Typer(name="schema", no_args_is_help=True, help="Check, explain, compare and document a feature schema.")


@app.command()
def check(
    schema: SchemaFlag,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="Root folder of the sources; without it, only the declaration is checked."
        ),
    ] = None,
    sample_rows: Annotated[
        int, typer.Option("--sample-rows", min=1, help="Rows read of each source's newest day.")
    ] = 200_000,
    days: Annotated[int, typer.Option("--days", min=1, help="Newest days whose footers are read.")] = 14,
    columns: Annotated[
        bool, typer.Option("--columns", help="Also print null rates, distinct values and ranges.")
    ] = False,
) -> None:
    """Hold the schema against itself, and against the sources' real files and rows.

    Ends with status 1 if something was found that would stop a build or ruin a feature.
    """
    from genrank.schemas.load import load_schema
    from genrank.schemas.review.check import check as check_sources
    from genrank.schemas.review.lint import lint

    declared = load_schema(schema)
    advice = lint(declared)
    for line in advice:
        typer.echo(f"advice: {line}")
    if data is None:
        typer.echo(
            f"the declaration of {declared.name} holds ({_count(len(advice), 'piece')} of advice); add --data to check its sources"
        )
        return
    checked = check_sources(declared, data, sample_rows=sample_rows, days=days)
    if columns:
        width = max((len(f"{c.source}.{c.column}") for c in checked.columns), default=0)
        typer.echo(f"{'column':{width}}  {'type':<28} {'rows':>10} {'null':>7} {'distinct':>10}  range")
        for c in checked.columns:
            name = f"{c.source}.{c.column}"
            span = f"{c.low} to {c.high}" if c.low else ""
            typer.echo(f"{name:{width}}  {c.physical:<28} {c.rows:>10,} {c.null_rate:>7.2%} {c.distinct:>10,}  {span}")
    for source, (first, last, count) in checked.days.items():
        typer.echo(f"{source}: {_count(count, 'day')}, {first} to {last}")
    for finding in checked.findings:
        typer.echo(str(finding))
    errors = sum(finding.level == "error" for finding in checked.findings)
    warnings = len(checked.findings) - errors
    typer.echo(f"{_count(errors, 'error')}, {_count(warnings, 'warning')}, {_count(len(advice), 'piece')} of advice")
    if not checked.ok:
        raise typer.Exit(1)


@app.command()
def explain(
    schema: SchemaFlag,
    ranks: Annotated[int, typer.Option("--ranks", min=1, help="Show the tables' bytes on each of so many ranks.")] = 1,
    samples: Annotated[
        Path | None, typer.Option("--samples", metavar="DIR", help="Compare the tables with the ids of these samples.")
    ] = None,
    dates: Annotated[
        str | None, typer.Option("--dates", metavar="FROM:TO", help="Days of --samples. Default: all.")
    ] = None,
) -> None:
    """Print the merged-table plan: rows, bytes, what merged with what and why not; tokens and FLOPs a sample."""
    from rich.console import Console

    from genrank.schemas import load_schema
    from genrank.tokenization.explain import explain as explain_plan
    from genrank.tokenization.plan import make_plan
    from genrank.tokenization.present.plan import render

    declared, observed = load_schema(schema), None
    if samples is not None:
        from genrank.model.config import samples_folder
        from genrank.schemas.manifest import sample_days
        from genrank.tokenization.id_statistics import observe_ids

        folder = samples_folder(samples)
        observed = observe_ids(folder, declared, parse_dates(dates) if dates else sample_days(folder))
    Console().print(render(explain_plan(make_plan(declared), world_size=ranks, observed=observed)))


@app.command()
def diff(
    old: Annotated[
        str, typer.Argument(metavar="OLD", help="A schema file, RUN/schema.json, or a sample's .parquet file.")
    ],
    new: Annotated[str, typer.Argument(metavar="NEW")],
    at_most: Annotated[
        Literal["nothing", "retrain", "rebuild"],
        typer.Option("--at-most", help="End with status 1 if a change costs more."),
    ] = "rebuild",
) -> None:
    """Say of each change what it costs: nothing, a retraining from the checkpoint, or a rebuild of samples."""
    from genrank.schemas.review.diff import COSTS
    from genrank.schemas.review.diff import diff as compare

    changes = compare(_load(old), _load(new))
    if not changes:
        typer.echo("no difference of meaning")
    for cost in COSTS:
        found = [change for change in changes if change.cost == cost]
        if found:
            typer.echo(
                {
                    "rebuild": "rebuild samples: `genrank build` the days you train and evaluate on, then train --from-checkpoint",
                    "retrain": "retrain from the checkpoint: train --from-checkpoint on the samples as they are",
                    "nothing": "nothing",
                }[cost]
            )
        for change in found:
            typer.echo(f"  {change.where}: {change.what}\n      {change.consequence}")
    if any(COSTS.index(change.cost) < COSTS.index(at_most) for change in changes):
        raise typer.Exit(1)


@app.command()
def docs(
    schema: SchemaFlag,
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("features.html"),
) -> None:
    """Write the feature catalogue: one HTML page with lineage from source column to token."""
    from genrank.schemas.load import load_schema
    from genrank.schemas.present.docs import feature_page

    _write(out, feature_page(load_schema(schema)))


@app.command()
def convert(
    schema: SchemaFlag,
    out: Annotated[Path, typer.Option("--out", help="A .yaml or .json file.", show_default=False)],
) -> None:
    """Write the schema as YAML (without defaults, as one would by hand) or JSON (in full)."""
    from genrank.schemas.load import load_schema
    from genrank.schemas.present.serialization import to_json, to_yaml

    if out.suffix not in (".yaml", ".yml", ".json"):
        raise UserError(f"--out {out}: end it in .yaml or .json")
    _write(out, (to_json if out.suffix == ".json" else to_yaml)(load_schema(schema)))


@app.command("json-schema")
def json_schema(
    out: Annotated[Path | None, typer.Option("--out", help="The file to write; standard output without it.")] = None,
) -> None:
    """Print the JSON Schema by which editors check and complete .yaml and .json schemas."""
    from genrank.schemas.present.serialization import json_schema as described

    _print(described(), out)


@app.command()
def requests(
    schema: SchemaFlag,
    out: Annotated[Path | None, typer.Option("--out", help="The file to write; standard output without it.")] = None,
) -> None:
    """Print the JSON Schema of the requests that a server of this schema's models takes."""
    from genrank.schemas.load import load_schema
    from genrank.serving.request_contract import RequestContract
    from genrank.serving.request_schema import request_json_schema

    _print(request_json_schema(RequestContract(load_schema(schema))), out)


def _print(document: dict[str, object], out: Path | None) -> None:
    """JSON to standard output, or to a file."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    if out is None:
        typer.echo(text)
    else:
        _write(out, text + "\n")


def _load(spec: str) -> Schema:
    from genrank.schemas.load import load_schema
    from genrank.schemas.manifest import built_schema

    path = Path(spec)
    return built_schema(path) if path.suffix == ".parquet" and path.is_file() else load_schema(spec)


def _write(path: Path, text: str) -> None:
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}")
    path.write_text(text, encoding="utf-8")
    typer.echo(f"wrote {path}")


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"

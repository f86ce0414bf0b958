"""The `genrank` command: thin, imports lazily, one clear line on bad input."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from genrank.schemas.cli import app as schema_app
from genrank.schemas.errors import UserError

app = typer.Typer(
    name="genrank",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DEMO_USERS, DEMO_DAYS = 2_000, 10
"""One more day of logs is simulated than is built, so that the last day's purchases have had their day."""
DEMO_MODELS = ("mtgr-tiny", "din")
DEMO_TOKENS = "2048"
"""Of a batch: a week of so small a marketplace is some 90 steps at the default, too few to learn from."""

SchemaFlag = Annotated[
    str, typer.Option("--schema", metavar="FILE.py:NAME", help="The feature schema.", show_default=False)
]
DataFlag = Annotated[
    str, typer.Option("--data", metavar="DIR", help="Root folder of the sources, or a URI.", show_default=False)
]
OutFlag = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Root folder of what is built.", show_default=False)
]
AsOfFlag = Annotated[
    str | None,
    typer.Option("--as-of", metavar="TIME", help="Labels as known then (ISO 8601). Default: the newest day's end."),
]
SamplesFlag = Annotated[
    Path, typer.Option("--samples", metavar="DIR", help="The --out folder of `genrank build`.", show_default=False)
]
DatesFlag = Annotated[
    str, typer.Option("--dates", metavar="FROM:TO", help="Days, both ends included; or one day.", show_default=False)
]


@app.callback()
def root() -> None:
    """Generative ranking, from exposure log to score.

    The usual way through: [bold]world[/] (or your own logs) → [bold]build[/] → [bold]train[/] → [bold]evaluate[/] →
    [bold]report[/]. [bold]genrank demo[/] runs all of it.
    """


def main() -> None:
    """Run the command; bad input ends in one line on stderr and exit status 1."""
    _let_threads_sleep()
    try:
        app(standalone_mode=True)
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            where = error.filename or "the output folder"
            _fail(f"no space left on the disk of {where}; free some and run the command again")
        if error.filename is None:
            raise
        path = error.filename2 or error.filename
        _fail(f"{path}: {(error.strerror or str(error)).lower()}; check the path and its permissions")
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to go on", status=130)


def _let_threads_sleep() -> None:
    """Beside other work, PyTorch's waiting threads (GNU OpenMP, which reads this when it is loaded) hold the cores that the
    working ones need: they wait actively for 1,000 rounds instead of 300,000, as GNU OpenMP does itself where it has more threads
    than cores. What it brings: benchmarks/train.md."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"


def _fail(message: str, status: int = 1) -> None:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def _days(count: int) -> str:
    return f"{count} day" if count == 1 else f"{count} days"


def _say(text: str) -> None:
    Console(soft_wrap=True, highlight=False).print(text)


def parse_dates(text: str, flag: str = "--dates") -> list[str]:
    """`2026-01-01:2026-01-03` or one day, as a list of days."""
    first, _, last = text.partition(":")
    begin, end = _day(first, flag), _day(last or first, flag)
    if end < begin:
        raise UserError(f"{flag} {text}: the first day is after the last; write FROM:TO")
    return [(begin + timedelta(days=i)).isoformat() for i in range((end - begin).days + 1)]


def _day(text: str, flag: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UserError(f"{flag} {text!r} is not a day; write YYYY-MM-DD") from None


# ---------------------------------------------------------------------- the whole way


@app.command(rich_help_panel="Start here")
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for everything the demo writes.")] = Path(
        "runs/demo"
    ),
) -> None:
    """The whole way on a synthetic marketplace: logs, samples, two rankers, a report. A few minutes on two cores."""
    schema = str(Path(__file__).parent / "examples" / "marketplace" / "schema.py")
    logs, built = out / "logs", out / "data"
    first, last = "2026-01-01", f"2026-01-{DEMO_DAYS:02d}"
    trained = f"2026-01-03:2026-01-{DEMO_DAYS - 1:02d}"
    steps: list[list[str]] = [
        ["world", "--out", str(logs), "--users", str(DEMO_USERS), "--days", str(DEMO_DAYS + 1)],
        ["build", "--schema", schema, "--data", str(logs), "--out", str(built), "--from", first, "--to", last],
    ]
    runs = []
    for model in DEMO_MODELS:
        folder = str(out / model)
        runs += ["--run", folder]
        steps.append(
            [
                "train",
                "--schema",
                schema,
                "--samples",
                str(built),
                "--dates",
                trained,
                "--out",
                folder,
                "--model",
                model,
                "--token-budget",
                DEMO_TOKENS,
            ]
        )
        steps.append(["evaluate", "--run", folder, "--samples", str(built), "--dates", last])
    steps.append(["report", *runs, "--samples", str(built), "--out", str(out / "report.html")])
    for step in steps:
        _say(f"[bold]$ genrank {' '.join(step)}[/]")
        if status := subprocess.run([sys.executable, "-m", "genrank", *step], check=False).returncode:
            sys.exit(status)


# ---------------------------------------------------------------------- schema


@schema_app.command()
def explain(
    schema: SchemaFlag,
    ranks: Annotated[int, typer.Option(min=1, help="Show the tables' bytes on each of so many ranks.")] = 1,
    samples: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Compare the tables with the ids of these samples.")
    ] = None,
    dates: Annotated[str | None, typer.Option(metavar="FROM:TO", help="Days of --samples. Default: all.")] = None,
) -> None:
    """Print the merged-table plan: rows, bytes, what merged with what and why not; tokens and FLOPs a sample."""
    from rich.console import Console

    from genrank.schemas import load_schema
    from genrank.tokenization.explain import render
    from genrank.tokenization.plan import make_plan

    declared, observed = load_schema(schema), None
    if samples is not None:
        from genrank.model.config import samples_folder
        from genrank.schemas.manifest import sample_days
        from genrank.tokenization.observed import observe_ids

        folder = samples_folder(samples)
        observed = observe_ids(folder, declared, parse_dates(dates) if dates else sample_days(folder))
    Console().print(render(make_plan(declared).explain(world_size=ranks, observed=observed)))


app.add_typer(schema_app, rich_help_panel="Start here")


# ---------------------------------------------------------------------- data


@app.command(rich_help_panel="Data")
def world(
    out: Annotated[Path, typer.Option(help="Folder for the logs.", show_default=False)],
    users: Annotated[int, typer.Option(min=1, help="Users in the marketplace.")] = 2_000,
    days: Annotated[int, typer.Option(min=1, help="Days of logs.")] = 10,
    seed: Annotated[int, typer.Option(help="Same arguments, same bytes.")] = 0,
) -> None:
    """Write a synthetic marketplace whose true click probabilities are known."""
    from genrank.examples.marketplace.world import generate

    generate(out, users=users, days=days, seed=seed)
    _say(f"wrote the logs of {users:,} users over {days} days to {out}")


@app.command(rich_help_panel="Data")
def inputs(
    schema: SchemaFlag,
    data: DataFlag,
    day: Annotated[str, typer.Option("--day", metavar="DAY", help="YYYY-MM-DD.", show_default=False)],
    marker: Annotated[str | None, typer.Option(help="A file that closes a day's folder, such as _SUCCESS.")] = None,
) -> None:
    """Have the day's logs landed? Exits with 75 and names what is missing if not (for schedulers)."""
    from genrank.pipelines.inputs import missing_inputs
    from genrank.schemas import load_schema

    parse_dates(day, "--day")
    if lacks := missing_inputs(load_schema(schema), data, day, marker):
        _fail("; ".join(lacks), status=75)
    _say(f"{day}: every source has landed")


@app.command(rich_help_panel="Data")
def build(
    schema: SchemaFlag,
    data: DataFlag,
    out: OutFlag,
    from_: Annotated[str, typer.Option("--from", metavar="DAY", help="First day.", show_default=False)],
    to: Annotated[str, typer.Option("--to", metavar="DAY", help="Last day.", show_default=False)],
    engine: Annotated[
        Literal["spark", "local"] | None, typer.Option(help="Default: spark where Java 17 is found, else local.")
    ] = None,
    as_of: AsOfFlag = None,
    buckets: Annotated[
        int | None,
        typer.Option(
            min=1, help="Buckets of users that a day is built by, fixed by the first build. Default: by its exposures."
        ),
    ] = None,
    days_per_job: Annotated[
        int, typer.Option(min=1, help="Days built together; the disk that a build needs on the way grows with it.")
    ] = 10,
    force: Annotated[bool, typer.Option("--force", help="Build again even what is up to date.")] = False,
) -> None:
    """Turn days of logs into point-in-time samples; gate them, then publish them day by day."""
    from genrank.pipelines.build import BuildConfig
    from genrank.pipelines.build import build as build_days
    from genrank.pipelines.engine import default_engine
    from genrank.schemas import load_schema

    chosen, reason = (engine, "") if engine else default_engine()
    config = BuildConfig(
        schema=load_schema(schema),
        data=data,
        out=out,
        first=from_,
        last=to,
        engine=chosen,
        as_of=as_of,
        buckets=buckets,
        days_per_job=days_per_job,
        force=force,
    )
    if reason:
        _say(f"engine: {chosen} ({reason})")
    result = build_days(config)
    if result.unchanged:
        _say(f"up to date: {_days(len(result.unchanged))}, {result.unchanged[0]} to {result.unchanged[-1]}")
    if result.days:
        counted = f"{result.samples:,} samples, {result.candidates:,} candidates"
        _say(f"published {_days(len(result.days))} to {out / 'samples'}: {counted}")


@app.command(rich_help_panel="Data")
def status(schema: SchemaFlag, data: DataFlag, out: OutFlag, as_of: AsOfFlag = None) -> None:
    """Which days are published, missing or stale, and why."""
    from genrank.pipelines import planner
    from genrank.schemas import load_schema

    planner.print_status(planner.status(load_schema(schema), data, out, as_of))


@app.command(rich_help_panel="Data")
def clean(
    out: OutFlag,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
) -> None:
    """Remove files that no manifest points to (left by killed builds, or replaced by newer ones)."""
    from genrank.pipelines import planner

    planner.print_cleaned(planner.clean(out, dry_run))


@app.command(rich_help_panel="Data")
def stats(
    out: OutFlag,
    dates: Annotated[str | None, typer.Option(metavar="FROM:TO", help="Default: every published day.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page instead.")] = None,
) -> None:
    """What the samples hold: null rates, lengths, quantiles, label rates, how often joins found a partner; and drift (PSI)."""
    from genrank.pipelines import stats as sample_statistics

    days = sample_statistics.statistics(out, parse_dates(dates) if dates else None)
    if html is None:
        sample_statistics.print_statistics(days)
    else:
        sample_statistics.write_statistics(days, html)
        _say(f"wrote {html}")


@app.command(rich_help_panel="Data")
def show(
    sample_id: Annotated[str | None, typer.Argument(help="user:day:chunk. Default: a telling one of --day.")] = None,
    samples: SamplesFlag = ...,  # type: ignore[assignment]
    schema: SchemaFlag = ...,  # type: ignore[assignment]
    day: Annotated[str | None, typer.Option("--day", metavar="DAY", help="Choose a sample of this day.")] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it to a picture instead.")] = None,
) -> None:
    """Draw one sample: its tokens by group, their values and times, and what sees what."""
    from genrank.model.config import samples_folder
    from genrank.schemas import load_schema
    from genrank.tokenization.show import interesting_sample
    from genrank.tokenization.show import show as show_sample

    declared, folder = load_schema(schema), samples_folder(samples)
    if sample_id is None:
        if day is None:
            raise UserError("show: give a SAMPLE_ID, or --day to have one chosen")
        sample_id = interesting_sample(folder, declared, parse_dates(day, "--day")[0])
    show_sample(folder, sample_id, schema=declared, png=png)
    if png:
        _say(f"wrote {png}")


# ---------------------------------------------------------------------- models


@app.command(rich_help_panel="Models")
def train(
    schema: SchemaFlag,
    samples: SamplesFlag,
    dates: DatesFlag,
    out: Annotated[
        Path, typer.Option(metavar="RUN", help="Folder of this run; an interrupted run goes on.", show_default=False)
    ],
    model: Annotated[
        str,
        typer.Option(
            help="mtgr-{tiny,small,medium,large}, hstu-{tiny,small,large}, din, dlrm, dcn, sasrec; hstu-retrieval-{tiny,small,large}."
        ),
    ] = "mtgr-tiny",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the model (repeatable).")
    ] = None,
    eval_dates: Annotated[
        str | None, typer.Option(metavar="FROM:TO", help="Evaluate on these days on the way.")
    ] = None,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations; 0: each epoch.")] = 0,
    patience: Annotated[int, typer.Option(help="Stop after so many evaluations without gain; 0: never.")] = 0,
    epochs: Annotated[int, typer.Option(help="Passes over the days.")] = 1,
    max_steps: Annotated[int, typer.Option(help="Stop after so many steps; 0: no limit.")] = 0,
    token_budget: Annotated[int, typer.Option(help="Tokens of a batch, per rank.")] = 8192,
    accumulate: Annotated[int, typer.Option(help="Batches per optimizer step.")] = 1,
    view: Annotated[
        Literal["user_day", "request", "session"] | None, typer.Option(help="Default: the schema's.")
    ] = None,
    by_length: Annotated[
        bool, typer.Option("--by-length", help="Batches of similar lengths: for models that pad.")
    ] = False,
    lr: Annotated[float, typer.Option(help="AdamW, dense parameters.")] = 2e-3,
    sparse_lr: Annotated[float, typer.Option(help="Embedding tables.")] = 0.05,
    sparse_state: Annotated[
        Literal["device", "host"], typer.Option(help="Where the tables' optimizer state is kept (backend torch).")
    ] = "device",
    weight_decay: Annotated[float, typer.Option(help="AdamW's, of matrices.")] = 0.01,
    warmup_steps: Annotated[int, typer.Option(help="Linear warm-up.")] = 50,
    decay: Annotated[Literal["cosine", "linear", "none"], typer.Option(help="Of --lr, after warm-up.")] = "cosine",
    final_lr: Annotated[float, typer.Option(help="Where the decay ends, as a share of --lr.")] = 0.1,
    clip_norm: Annotated[float, typer.Option(help="Of the dense gradient; 0: off.")] = 1.0,
    spike_factor: Annotated[
        float, typer.Option(help="Skip a batch whose loss is so many times the running mean; 0: never.")
    ] = 4.0,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    precision: Annotated[Literal["auto", "fp32", "bf16"], typer.Option(help="auto: bf16 on a GPU.")] = "auto",
    backend: Annotated[Literal["auto", "torchrec", "torch"], typer.Option(help="Of the embedding tables.")] = "auto",
    dense_parallel: Annotated[
        Literal["ddp", "fsdp"], typer.Option(help="With several processes: dense parameters whole on each, or sharded.")
    ] = "ddp",
    lookups_ahead: Annotated[
        bool, typer.Option(help="With sharded tables: the next batch's ids travel while this one is computed.")
    ] = True,
    compile_: Annotated[bool, typer.Option("--compile", help="torch.compile the encoder.")] = False,
    recompute: Annotated[bool, typer.Option("--recompute", help="Activation checkpointing.")] = False,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="The same weights, to the bit.")] = False,
    seed: Annotated[int, typer.Option()] = 0,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints; 0: each epoch.")] = 0,
    checkpoint_minutes: Annotated[
        float, typer.Option(help="Minutes after which a checkpoint is due besides; 0: never.")
    ] = 10.0,
    keep_checkpoints: Annotated[int, typer.Option(help="Older ones are removed; the best one stays.")] = 2,
    log_every: Annotated[int, typer.Option(help="Steps between lines of log.jsonl.")] = 10,
    from_checkpoint: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on from this run on other days (T+1).")
    ] = None,
    reset_table: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="With --from-checkpoint: start this table anew (repeatable)."),
    ] = None,
    progressive: Annotated[
        bool,
        typer.Option("--progressive", help="Learn each day once, from the day before's checkpoint; judge on the next."),
    ] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Write a profiler trace to RUN/profile.")] = False,
) -> None:
    """Train a ranker, or a retrieval model, on published samples."""
    from genrank.model.config import TrainConfig
    from genrank.schemas import load_schema

    settings = dict(_setting(text) for text in set_ or ())
    config = TrainConfig(
        schema=load_schema(schema),
        samples=samples,
        dates=tuple(parse_dates(dates)),
        out=out,
        model=model,
        settings=settings,
        epochs=epochs,
        max_steps=max_steps,
        token_budget=token_budget,
        accumulate=accumulate,
        view=view,
        by_length=by_length,
        lr=lr,
        sparse_lr=sparse_lr,
        sparse_state=sparse_state,
        weight_decay=weight_decay,
        warmup_steps=warmup_steps,
        decay=decay,
        final_lr=final_lr,
        clip_norm=clip_norm,
        spike_factor=spike_factor,
        eval_dates=tuple(parse_dates(eval_dates, "--eval-dates")) if eval_dates else (),
        eval_every=eval_every,
        patience=patience,
        device=device,
        precision=precision,
        backend=backend,
        dense_parallel=dense_parallel,
        lookups_ahead=lookups_ahead,
        compile=compile_,
        recompute=recompute,
        deterministic=deterministic,
        seed=seed,
        checkpoint_every=checkpoint_every,
        checkpoint_minutes=checkpoint_minutes,
        keep_checkpoints=keep_checkpoints,
        log_every=log_every,
        from_checkpoint=from_checkpoint,
        reset_tables=tuple(reset_table or ()),
        profile=profile,
    )
    if progressive:
        from genrank.model.progressive import progressive as run_days
        from genrank.model.terminal import print_progressive

        print_progressive(run_days(config))
    else:
        from genrank.model.trainer import train as run_training

        done = run_training(config)
        if done.was_complete:
            _say(f"{out} is complete ({done.steps:,} steps): nothing to do; more --epochs go on from it")
            return
        if os.environ.get("RANK", "0") == "0":  # Of several ranks the first tells.
            from genrank.model.run_dir import training_message

            _say(training_message(out))
    _say(f"wrote {out}")


def _setting(text: str) -> tuple[str, str]:
    field, equals, value = text.partition("=")
    if not equals or not field:
        raise UserError(f"--set {text}: write FIELD=VALUE, such as layers=4")
    return field, value


@app.command(rich_help_panel="Models")
def evaluate(
    run: Annotated[
        Path, typer.Option("--run", metavar="RUN", help="The --out folder of `genrank train`.", show_default=False)
    ],
    samples: SamplesFlag,
    dates: DatesFlag,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: RUN/metrics.json.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    bootstrap: Annotated[int, typer.Option(help="Replicates of the intervals; 0: none.")] = 200,
) -> None:
    """AUC, GAUC, NE and calibration per task, beside the oracle and what counting alone achieves; HR, NDCG and MRR of retrieval."""
    from genrank.model.evaluate import EvaluateConfig
    from genrank.model.evaluate import evaluate as run_evaluation
    from genrank.model.terminal import print_metrics

    metrics = run_evaluation(
        EvaluateConfig(
            run=run, samples=samples, dates=tuple(parse_dates(dates)), out=out, device=device, bootstrap=bootstrap
        )
    )
    print_metrics(run.name, metrics)
    _say(f"wrote {out or run / 'metrics.json'}")


@app.command(rich_help_panel="Models")
def report(
    run: Annotated[
        list[Path], typer.Option("--run", metavar="RUN", help="An evaluated run; the first is compared with the rest.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The HTML page.")] = Path("report.html"),
    samples: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw one sample from the --out folder of `genrank build`.")
    ] = None,
) -> None:
    """One self-contained HTML page: metrics against baselines, learning curves, merged tables, a drawn sample."""
    from genrank.model.report import write_report

    write_report(run, out, samples)
    _say(f"wrote {out}")

"""`genrank train | evaluate | report | scale`: samples, checkpoint, metrics, one HTML page; sweeps of size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from genrank.command.options import ConfigCommand, takes
from genrank.command.output import say
from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.scaling.config import ScaleConfig

app = typer.Typer()


@app.command(rich_help_panel="Models", cls=ConfigCommand)
@takes(TrainConfig)
def train(
    config: TrainConfig,
    progressive: Annotated[
        bool,
        typer.Option("--progressive", help="Learn each day once, from the day before's checkpoint; judge on the next."),
    ] = False,
) -> None:
    """Train a ranker, or a retrieval model, on published samples."""
    if progressive:
        from genrank.model.progressive import progressive as run_days
        from genrank.model.terminal import print_progressive

        print_progressive(run_days(config))
    else:
        from genrank.model.trainer import train as run_training

        done = run_training(config)
        if done.was_complete:
            say(f"{config.out} is complete ({done.steps:,} steps): nothing to do; more --epochs go on from it")
            return
        if os.environ.get("RANK", "0") == "0":  # Of several ranks, the first reports.
            from genrank.model.run_dir import training_message

            say(training_message(config.out))
    say(f"wrote {config.out}")


@app.command(rich_help_panel="Models", cls=ConfigCommand)
@takes(EvaluateConfig)
def evaluate(config: EvaluateConfig) -> None:
    """GAUC, AUC, metrics by request, NE and calibration per task, beside the oracle and what needs no training; HR, NDCG and MRR of retrieval."""
    from genrank.model.documents import RankingEvaluation
    from genrank.model.evaluate import evaluate as run_evaluation
    from genrank.model.terminal import print_importance, print_metrics

    found = run_evaluation(config)
    print_metrics(config.run.name, found)
    if isinstance(found, RankingEvaluation):
        print_importance(found)
    say(f"wrote {config.out or config.run / 'metrics.json'}")


@app.command(rich_help_panel="Models", cls=ConfigCommand)
@takes(ScaleConfig)
def scale(config: ScaleConfig) -> None:
    """Sweep history length, width and depth; NE and GAUC over training FLOPs, fitted, beside the baselines."""
    from genrank.model.scaling.page import print_scale
    from genrank.model.scaling.sweep import scale as run_sweep

    print_scale(run_sweep(config))
    say(f"wrote {config.out / 'scale.html'}, scale.png and scale.json")


@app.command(rich_help_panel="Models")
def report(
    run: Annotated[
        list[Path], typer.Option("--run", metavar="RUN", help="An evaluated run; the first is compared with the rest.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The HTML page.")] = Path("report.html"),
    samples: Annotated[
        Path | None,
        typer.Option("--samples", metavar="DIR", help="Draw one sample from the --out folder of `genrank build`."),
    ] = None,
) -> None:
    """One self-contained HTML page: metrics against baselines, learning curves, merged tables, a drawn sample."""
    from genrank.model.report import write_report

    write_report(run, out, samples)
    say(f"wrote {out}")

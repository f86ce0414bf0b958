"""`genrank score | export`: a trained run's scores, outside of training."""

from __future__ import annotations

import typer

from genrank.command.options import ConfigCommand, takes
from genrank.command.output import say
from genrank.serving.config import ExportConfig, ScoreConfig

app = typer.Typer()


@app.command(rich_help_panel="Serving", cls=ConfigCommand)
@takes(ScoreConfig)
def score(config: ScoreConfig) -> None:
    """Score every candidate of some days: a Parquet row each, with every task's probability."""
    from genrank.serving.stored_samples import score as run_scoring

    for dt, candidates in run_scoring(config).items():
        say(f"wrote {config.out / 'scores' / f'dt={dt}'} ({candidates:,} candidates)")


@app.command(rich_help_panel="Serving", cls=ConfigCommand)
@takes(ExportConfig)
def export(config: ExportConfig) -> None:
    """Write a run as one folder that is served without the trainer: programs, memory-mapped tables, an example with its scores."""
    from genrank.serving.export import export as run_export

    manifest = run_export(config)
    size = sum(file.bytes for file in manifest.files.values())
    say(f"wrote {config.out} ({manifest.model.name}, step {manifest.step:,}, {size / 1e6:,.1f} MB)")

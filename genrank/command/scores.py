"""`genrank score`: a trained run's scores, outside of training."""

from __future__ import annotations

import typer

from genrank.command.options import ConfigCommand, takes
from genrank.command.output import say
from genrank.serving.config import ScoreConfig

app = typer.Typer()


@app.command(rich_help_panel="Serving", cls=ConfigCommand)
@takes(ScoreConfig)
def score(config: ScoreConfig) -> None:
    """Score every candidate of some days: a Parquet row each, with every task's probability."""
    from genrank.serving.stored_samples import score as run_scoring

    for dt, candidates in run_scoring(config).items():
        say(f"wrote {config.out / 'scores' / f'dt={dt}'} ({candidates:,} candidates)")

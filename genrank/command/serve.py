"""`genrank requests | serve`: stored samples as requests, and a server that answers them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from genrank.command.interruption import Interrupted
from genrank.command.options import ConfigCommand, SamplesFlag, SchemaFlag, takes
from genrank.command.output import say
from genrank.schemas.configuration import parse_dates
from genrank.schemas.errors import UserError
from genrank.serving.server.config import ServeConfig

app = typer.Typer()


@app.command(rich_help_panel="Serving")
def requests(
    schema: SchemaFlag,
    samples: SamplesFlag,
    dates: Annotated[str, typer.Option("--dates", metavar="FROM:TO", help="Days of the samples.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FILE",
            help=".jsonl: a JSON object a line; .arrow: an Arrow IPC stream.",
            show_default=False,
        ),
    ],
    view: Annotated[
        Literal["request", "user_day"],
        typer.Option("--view", help="What becomes one request: each of the log's, or a whole stored sample."),
    ] = "request",
    limit: Annotated[int, typer.Option("--limit", min=0, help="Requests at most; 0: all of these days.")] = 0,
) -> None:
    """Write stored samples as the requests that a server would have been sent: to replay, to load a server, to try a client."""
    from genrank.model.config import samples_folder
    from genrank.schemas import load_schema
    from genrank.serving.stored_requests import write_requests

    done = write_requests(samples_folder(samples), load_schema(schema), parse_dates(dates), out, view, limit)
    say(f"wrote {done.requests:,} requests with {done.candidates:,} candidates to {out}")


@app.command(rich_help_panel="Serving", cls=ConfigCommand)
@takes(ServeConfig)
def serve(config: ServeConfig) -> None:
    """Score requests over HTTP. A new checkpoint is picked up while requests are answered; SIGTERM lets those at work finish."""
    try:
        from genrank.serving.server.run import serve as run_server
    except ModuleNotFoundError as error:
        if error.name in ("fastapi", "uvicorn", "prometheus_client"):
            raise UserError(f"genrank serve needs {error.name}: pip install 'genrank[serve]'") from None
        raise
    try:
        run_server(config)
    except Interrupted:  # raised when the server has ended in order
        say("stopped: every request that was taken is answered")

"""`genrank requests | serve | replay`: stored samples as requests, a server that answers them, and the check that its answers are right."""

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


@app.command(rich_help_panel="Serving")
def replay(
    requests: Annotated[
        Path, typer.Option("--requests", metavar="FILE", help="What `genrank requests` wrote.", show_default=False)
    ],
    run: Annotated[Path, typer.Option("--run", metavar="RUN", help="Whose predictions are right.", show_default=False)],
    samples: SamplesFlag,
    server: Annotated[
        str | None, typer.Option("--server", metavar="URL", help="A server to ask: http://127.0.0.1:8000.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", metavar="DIR", help="A model to load in process instead.")
    ] = None,
    tolerance: Annotated[float, typer.Option("--tolerance", min=0, help="Largest difference of a score.")] = 1e-5,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or auto.")] = "auto",
) -> None:
    """Answer stored requests and compare score by score with evaluation's; name the features that differ. Status 1 beyond --tolerance."""
    from rich.markup import escape

    from genrank.model.config import samples_folder
    from genrank.model.ranks import own_device
    from genrank.serving.model_folder import open_model
    from genrank.serving.replay import InProcess, OverHttp, report
    from genrank.serving.replay import replay as run_replay

    if (server is None) == (model is None):
        raise UserError("replay: give --server URL, or --model DIR")
    answer = OverHttp(server) if server else InProcess(open_model(model or run, own_device(device))[0])
    found = run_replay(requests, run, samples_folder(samples), answer, device=device)
    report(found, tolerance, lambda line: say(escape(line)))
    if not found.within(tolerance):
        raise typer.Exit(1)

"""`genrank demo`: the whole way, each step a command of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from genrank.command.interruption import Interrupted
from genrank.command.output import say

DEMO_USERS, DEMO_DAYS = 2_000, 10
"""One more day of logs is simulated than is built, so that the last day's purchases have had their day."""
DEMO_MODELS = ("mtgr-tiny", "din")
DEMO_TOKENS = "2048"
"""Of a batch: a week of so small a marketplace is some 90 steps at the default, too few to learn from."""
SCHEMA = Path(__file__).parents[1] / "examples" / "marketplace" / "schema.py"

app = typer.Typer()


@app.command(rich_help_panel="Start here")
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for everything the demo writes.")] = Path(
        "runs/demo"
    ),
) -> None:
    """The whole way on a synthetic marketplace: logs, samples, two rankers, a report. A few minutes on two cores."""
    for step in steps(out):
        say(f"[bold]$ genrank {' '.join(step)}[/]")
        if status := _run([sys.executable, "-m", "genrank", *step]):
            sys.exit(status)


def _run(command: list[str]) -> int:
    """Its exit status. Ctrl-C reaches it too, SIGTERM is passed on, and either is reported by it."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except Interrupted as interrupted:
            if interrupted.signal == signal.SIGTERM:
                process.terminate()
            process.wait()
            sys.exit(interrupted.status)


def steps(out: Path) -> list[list[str]]:
    """Arguments of the commands, in order."""
    schema, logs, built = ["--schema", str(SCHEMA)], str(out / "logs"), str(out / "data")
    first, last = "2026-01-01", f"2026-01-{DEMO_DAYS:02d}"
    samples, trained = ["--samples", built], f"2026-01-03:2026-01-{DEMO_DAYS - 1:02d}"
    found = [
        ["world", "--out", logs, "--users", str(DEMO_USERS), "--days", str(DEMO_DAYS + 1)],
        ["build", *schema, "--data", logs, "--out", built, "--from", first, "--to", last],
    ]
    runs = []
    for model in DEMO_MODELS:
        run = str(out / model)
        runs += ["--run", run]
        which = ["--out", run, "--model", model, "--token-budget", DEMO_TOKENS]
        found.append(["train", *schema, *samples, "--dates", trained, *which])
        found.append(["evaluate", "--run", run, *samples, "--dates", last])
    return [*found, ["report", *runs, *samples, "--out", str(out / "report.html")]]
